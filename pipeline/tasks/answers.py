"""Answers and labels in the form in which a metric counts them, or the sentence that says why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from calibration.arrays import Floats, Ints
from engines.contract import Array
from pipeline.errors import ConfigError

SampleCounts = Ints
"""(num_samples,): how often each sample counts; 1 for all of them is the metric, others are resamples."""


class Tally(Protocol):
    """Answers that were compared with their labels once, for a metric of any counts of the samples."""

    def value(self, counts: SampleCounts) -> float:
        """The metric where sample i occurs ``counts[i]`` times; NaN where an answer is.

        Raises:
            ConfigError: it is not defined for those, such as where none of a class is among them.
        """
        ...

    def notes(self) -> list[str]:
        """Sentences on what of the labels is not counted, such as a class that they do not have."""
        ...


TallyMaker = Callable[[Array, Array], Tally]
"""From one output and the labels, each with one row for each sample."""


def squeezed(array: Array) -> Array:
    """Without axes of length 1, but for the first: (N, 1, 1, C) -> (N, C)."""
    return array.reshape(array.shape[0], *(size for size in array.shape[1:] if size != 1))


def last_places(falling: Array) -> Ints:
    """The last place of each score among falling ones, (N,), so that equal scores count together."""
    return np.flatnonzero(np.append(np.diff(falling) != 0, True))


def class_labels(name: str, labels: Array, num_classes: int) -> Ints:
    """(N,) class indices, each below ``num_classes``; ``name`` is the metric's.

    Raises:
        ConfigError: they are of another kind, or larger.
    """
    flat = squeezed(labels)
    if flat.ndim != 1 or flat.dtype.kind not in "biu":
        raise ConfigError(
            f"metric '{name}': labels are {labels.dtype} {labels.shape}, whole numbers (N,) are expected; store each "
            "class's index"
        )
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high >= num_classes:
        raise ConfigError(
            f"metric '{name}': labels go from {low} to {high}, the output has the classes 0 to {num_classes - 1}; "
            "correct "
            "the labels, or name another output"
        )
    return flat.astype(np.int64)


def same_shape(name: str, scores: Array, labels: Array) -> tuple[Floats, Floats]:
    """Both as float64 of one shape, up to axes of length 1; never broadcast.

    Raises:
        ConfigError: they have several.
    """
    got, want = squeezed(scores), squeezed(labels)
    if got.shape != want.shape:
        raise ConfigError(
            f"metric '{name}': the output is {scores.shape}, the labels are {labels.shape}, the same shape is "
            "expected; "
            "store labels in the shape of the output"
        )
    return got.astype(np.float64), want.astype(np.float64)


def numbers_only(name: str, labels: Array) -> None:
    """That labels are numbers.

    Raises:
        ConfigError: they are text, or of another kind.
    """
    if labels.dtype.kind not in "biuf":
        raise ConfigError(f"metric '{name}': labels are {labels.dtype}, numbers are expected; store numbers")


def empty_notes(name: str, classes: Sequence[int], num_classes: int) -> list[str]:
    """A sentence on classes of which there is no sample, where there are such; ``name`` is the metric's."""
    if not classes:
        return []
    listed = ", ".join(map(str, classes[:8])) + ", …" * (len(classes) > 8)
    which = f"class {listed} has" if len(classes) == 1 else f"classes {listed} have"
    return [f"{name}: {which} no sample among the labels, the mean is over the other {num_classes - len(classes)}"]
