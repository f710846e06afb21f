"""Areas: each pixel is of a class. The mean intersection over union (mIoU) of the classes that labels have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.arrays import Floats
from calibration.data.labels.masks import IGNORED
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.answers import SampleCounts, empty_notes

Areas = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Overlaps:
    """Pixels of each picture and class, counted."""

    both: Floats
    named: Floats
    labelled: Floats
    """(N, C) each: named as the class and labelled so, named so at all, labelled so at all."""
    is_nan: bool
    """A score is no number."""

    def value(self, counts: SampleCounts) -> float:
        """The mean over classes of Σ both ÷ (Σ named + Σ labelled − Σ both), the sums over all pictures."""
        if self.is_nan:
            return math.nan
        both, named, labelled = (counts @ pixels for pixels in (self.both, self.named, self.labelled))
        counted = labelled > 0
        if not counted.any():
            raise ConfigError("metric 'miou': no pixel is labelled with a class; use other evaluation data")
        return float((both[counted] / (named + labelled - both)[counted]).mean())

    def notes(self) -> list[str]:
        """Classes that no pixel has."""
        empty = np.flatnonzero(~self.labelled.any(axis=0)).tolist()
        return empty_notes("miou", empty, self.labelled.shape[1])


def miou(scores: Array, labels: Array) -> Overlaps:
    """For ``miou``: scores (N, C, H, W) or (N, H, W, C), or the classes themselves (N, H, W); labels (N, H', W').

    Where H, W are not H', W', the classes are brought to the size of the labels, each pixel the nearest.

    Raises:
        ConfigError: no picture of classes, or labels beyond them.
    """
    if labels.ndim != 3 or labels.dtype.kind not in "biu":
        raise ConfigError(
            f"metric 'miou': labels are {labels.dtype} {labels.shape}, a class for each pixel (N, H, W) is expected; "
            "set labels to a folder of masks, or store such an array"
        )
    classes, num_classes = _class_pictures(scores, labels)
    judged = labels != IGNORED
    numbers = labels[judged]
    low, high = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 0)
    if num_classes and (low < 0 or high >= num_classes):
        raise ConfigError(
            f"metric 'miou': labels go from {low} to {high}, the output has the classes 0 to {num_classes - 1} "
            f"({IGNORED} is not judged); correct the labels, or name another output"
        )
    if numbers.size and high == 0 and not judged.all():
        raise ConfigError(
            f"metric 'miou': labels are 0 and {IGNORED} alone, and {IGNORED} is not judged; where it is to be a class, "
            "write it as 1"
        )
    num_classes = num_classes or max(high, int(classes.max(initial=0))) + 1
    rows = [_pixels(*picture, num_classes) for picture in zip(classes, labels, strict=True)]
    both, named, labelled = (np.array(parts, np.float64) for parts in zip(*rows, strict=True))
    is_nan = scores.dtype.kind == "f" and bool(np.isnan(scores).any())
    return Overlaps(both, named, labelled, is_nan)


def _pixels(classes: Areas, labels: Areas, num_classes: int) -> tuple[Areas, Areas, Areas]:
    """Of one picture: (C,) both, named, labelled."""
    judged = labels != IGNORED
    ours, theirs = classes[judged].astype(np.int64), labels[judged].astype(np.int64)
    both, named, labelled = (
        np.bincount(values, minlength=num_classes) for values in (ours[ours == theirs], ours, theirs)
    )
    return both, named, labelled


def _class_pictures(scores: Array, labels: Array) -> tuple[Areas, int]:
    """The class of each pixel, in the size of the labels; and how many classes there are, 0 if it is not known."""
    size = labels.shape[1:]
    if scores.ndim == 4 and 1 in scores.shape[1::2] and scores.dtype.kind in "biu":
        scores = scores.reshape(len(scores), *(scores.shape[2:] if scores.shape[1] == 1 else scores.shape[1:3]))
    if scores.ndim == 3 and scores.dtype.kind in "biu":
        if scores.dtype.kind == "i" and scores.min(initial=0) < 0:
            raise ConfigError(
                f"metric 'miou': the output has the class {int(scores.min())}, 0 or more is expected; name another"
            )
        return _scaled(scores.astype(np.int64), size), 0
    axes = [] if scores.ndim != 4 else [axis for axis in (1, 3) if _is_like(_size_without(scores, axis), size)]
    for tells in (_is_exactly_like, _is_equal):
        axes = [axis for axis in axes if tells(_size_without(scores, axis), size)] or axes
    if (len(axes) == 1 and scores.shape[axes[0]] == 1) or scores.shape[1:] == size:
        raise ConfigError(
            f"metric 'miou': the output is {scores.shape}, one score for each pixel; a score for each class, or the "
            "classes as whole numbers, are expected: let the network end in them, or use a function of your own as "
            "module:function"
        )
    if len(axes) != 1:
        why = "could be either" if len(axes) == 2 else "is neither"
        raise ConfigError(
            f"metric 'miou': the output is {scores.shape} with labels of {size[0]} x {size[1]} pixels; (N, classes, H, "
            f"W) or (N, H, W, classes) in the same aspect is expected, it {why}; name another "
            "output, or a function of your own as module:function"
        )
    return _scaled(np.argmax(scores, axis=axes[0]), size), scores.shape[axes[0]]


def _size_without(scores: Array, axis: int) -> tuple[int, ...]:
    """Height and width, where that axis has the classes."""
    return tuple(size for at, size in enumerate(scores.shape) if at not in (0, axis))


def _is_like(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a picture of one size is the other's, enlarged or reduced alike in both directions, up to rounding."""
    ratio = math.sqrt(other[0] * other[1] / max(size[0] * size[1], 1))
    return all(abs(ours * ratio - theirs) <= max(ratio, 1.0) for ours, theirs in zip(size, other, strict=True))


def _is_exactly_like(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return size[0] * other[1] == size[1] * other[0]


def _is_equal(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return size == other


def _scaled(classes: Areas, size: tuple[int, ...]) -> Areas:
    """(N, H, W) brought to another height and width: each pixel is the one at its centre."""
    if classes.shape[1:] == size:
        return classes
    rows, columns = (
        ((np.arange(wanted) + 0.5) * have / wanted).astype(np.int64)
        for wanted, have in zip(size, classes.shape[1:], strict=True)
    )
    return classes[:, rows[:, None], columns[None, :]]
