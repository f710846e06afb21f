"""Labels tell whether samples look as the model expects them: does a simple change make it right far more often?

The model answers for labelled samples as given, and for the same samples changed in ways in which data goes wrong:
another scale, channels in reverse order, pixels in another layout. A change is clearly better only if an exact sign
test over the samples on which the two disagree (McNemar, "Note on the sampling error of the difference between
correlated proportions or percentages", Psychometrika 1947, with the exact binomial distribution) says so at a
significance that is divided by the number of changes tried (Bonferroni). It must also be so beside an answer that is
always the most frequent class: samples that a change has spoilt are often all taken for one class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from calibration.arrays import AnyArray

PredictClass: TypeAlias = Callable[[AnyArray], int]
"""From one sample, without the batch axis, to the class that the model says."""
Float32s: TypeAlias = npt.NDArray[np.float32]
ChangeCode = Literal["range", "channels", "layout"]

NUM_FIRST = 16
"""Where the model must still be asked about samples as they are: if it is right on half of these, that is enough."""
NUM_SCREENED = 8
LEAST_WINS = 2
"""A change that mends fewer than 2 of the first 8 wrong answers is not followed."""
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
MEAN_OF_BGR = np.array([103.939, 116.779, 123.68], np.float32)
"""ImageNet's: of Torch's models (RGB, 0..1), and of Caffe's (BGR, 0..255)."""


@dataclass(frozen=True)
class Change:
    """One way to read a sample otherwise."""

    code: ChangeCode
    words: str
    """As in: "with ... the model is right"."""
    apply: Callable[[AnyArray], AnyArray]
    """From a sample to a sample of the same shape and dtype."""


@dataclass(frozen=True)
class Better:
    """A change that makes the model right clearly more often."""

    change: Change
    num_samples: int
    num_right: int
    """With the change."""
    num_right_as_given: int
    p_value: float
    """Of the sign tests, one-sided, the larger; not yet times the number of changes tried."""


def better_change(
    answer: PredictClass,
    probe: Sequence[tuple[AnyArray, int]],
    changes: Sequence[Change],
    significance: float,
    right: Sequence[bool] = (),
) -> Better | None:
    """The change that makes the model right most often, if one is clearly better than none.

    Cheap where all is well: a change can only mend wrong answers, so where these are too few to prove anything the
    model is not asked again.

    Args:
        answer: the FP32 model.
        probe: samples and their classes.
        changes: what is tried.
        significance: how likely it may be that a change is named that is no better, over all changes.
        right: whether the model is right on each sample as given, where that is known; else it is asked.
    """
    if not changes:
        return None
    known = list(right)
    for sample, label in probe[len(known) :]:
        known.append(answer(sample) == label)
        if not right and len(known) == NUM_FIRST and 2 * sum(known) >= NUM_FIRST:
            return None
    wrong = [pair for pair, is_right in zip(probe, known) if not is_right]
    correct = [pair for pair, is_right in zip(probe, known) if is_right]
    level = significance / len(changes)
    improvements = []
    for change in changes:
        mended = _right(answer, change, wrong[:NUM_SCREENED])
        if len(wrong) < _least_wins(level) or sum(mended) < LEAST_WINS:
            continue
        mended += _right(answer, change, wrong[NUM_SCREENED:])
        if sum(mended) < _least_wins(level):
            continue
        still = _right(answer, change, correct)
        p_value = max(
            sign_test(sum(mended), len(still) - sum(still)),
            _against_one_class([label for _, label in (*wrong, *correct)], [*mended, *still]),
        )
        if p_value < level:
            improvements.append(Better(change, len(probe), sum(mended) + sum(still), len(correct), p_value))
    return max(improvements, key=lambda better: better.num_right, default=None)


def sign_test(wins: int, losses: int) -> float:
    """How likely so many wins or more are among wins + losses fair coins."""
    num = wins + losses
    return float(sum(math.comb(num, k) for k in range(wins, num + 1)) / 2**num)


def _least_wins(level: float) -> int:
    """Wins that are significant if there is no loss: 2^-n below the level."""
    return math.floor(-math.log2(level)) + 1


def _right(answer: PredictClass, change: Change, pairs: Sequence[tuple[AnyArray, int]]) -> list[bool]:
    return [answer(change.apply(sample)) == label for sample, label in pairs]


def _against_one_class(labels: Sequence[int], right: Sequence[bool]) -> float:
    """The sign test against whoever says the most frequent class of all samples, which wrong data often comes to."""
    top = max(set(labels), key=labels.count)
    wins = sum(is_right for label, is_right in zip(labels, right) if label != top)
    return sign_test(wins, sum(not is_right for label, is_right in zip(labels, right) if label == top))


def changes_for(sample: AnyArray, low: float, high: float) -> list[Change]:
    """The changes that make sense for samples such as this one, without the batch axis, and of values low to high.

    Bytes are on the only scale that they can have.
    """
    shape, is_scaled = sample.shape, sample.dtype.kind == "f"
    axis = channel_axis(shape)
    changes = _scalings(low, high) if is_scaled else []
    if axis is not None and shape[axis] == 3:
        changes.append(Change("channels", "the channels in reverse order (BGR and RGB)", lambda x: np.flip(x, axis)))
    if axis is not None and shape[axis] > 1:
        changes.append(Change("layout", layout_words(axis), lambda x: other_layout(x, axis)))
    rows = 1 if axis == 0 else 0
    if axis is not None and shape[rows] == shape[rows + 1]:
        changes.append(Change("layout", "rows and columns exchanged", lambda x: np.swapaxes(x, rows, rows + 1)))
    if axis is not None and shape[axis] == 3 and is_scaled:
        changes += _imagenet(low, high, axis)  # The simpler ones first: of two that mend as much, the first is named.
    return [Change(c.code, c.words, _contiguous(c.apply)) for c in changes]


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """0 for pictures (C, H, W), 2 for (H, W, C), with 1 to 4 channels and more rows and columns; else None."""
    if len(shape) != 3:
        return None
    axes = [axis for axis in (0, 2) if shape[axis] <= 4 < min(shape[1], shape[2 - axis])]
    return axes[0] if axes else None


def other_layout(sample: AnyArray, axis: int) -> AnyArray:
    """The same bytes taken for the other layout, and put into this one.

    So a picture that was brought from (H, W, C) to (C, H, W), or back, by a reshape instead of a transpose is mended.
    """
    if axis == 0:
        channels, height, width = sample.shape
        return sample.reshape(height, width, channels).transpose(2, 0, 1)
    height, width, channels = sample.shape
    return sample.reshape(channels, height, width).transpose(1, 2, 0)


def layout_words(axis: int) -> str:
    """What ``other_layout`` does."""
    have, want = ("(H, W, C)", "(C, H, W)") if axis == 0 else ("(C, H, W)", "(H, W, C)")
    return f"the same bytes read as {have} and transposed to {want}"


def _scalings(low: float, high: float) -> list[Change]:
    if low >= 0 and high <= 1:
        pairs = [("× 255", 255.0, 0.0), ("× 2 − 1", 2.0, -1.0)]
    elif -1 <= low < 0 and high <= 1:
        pairs = [("(x + 1) ÷ 2", 0.5, 0.5), ("(x + 1) × 127.5", 127.5, 127.5), ("× 255", 255.0, 0.0)]
    elif low >= 0 and 2 < high <= 255:
        pairs = [("÷ 255", 1 / 255, 0.0), ("÷ 127.5 − 1", 1 / 127.5, -1.0)]
    else:  # No picture: forgotten or doubled scaling is still a factor of 255 most often.
        pairs = [("÷ 255", 1 / 255, 0.0), ("× 255", 255.0, 0.0)]
    return [_affine(words, np.float32(scale), np.float32(shift)) for words, scale, shift in pairs]


def _imagenet(low: float, high: float, axis: int) -> list[Change]:
    """ImageNet's normalizations by channel, for pictures 0..1 or 0..255, and back."""
    shape = (3, 1, 1) if axis == 0 else (1, 1, 3)
    mean, std, bgr = MEAN.reshape(shape), STD.reshape(shape), MEAN_OF_BGR.reshape(shape)
    if low >= 0 and high <= 255 and not 1 < high <= 2:
        unit = np.float32(1 if high <= 1 else 1 / 255)
        standard = _affine("ImageNet's mean and std", unit / std, -mean / std)
        caffe = Change(
            "range",
            "Caffe's preprocessing (BGR, 0..255, less the mean)",
            lambda x: np.flip(x, axis).astype(np.float32) * (255 * unit) - bgr,
        )
        return [standard, caffe]
    if -3 < low < 0 < high < 3 and not (low >= -1 and high <= 1):
        return [_affine("× ImageNet's std + mean", std, mean), _affine("(× std + mean) × 255", 255 * std, 255 * mean)]
    return []


def _affine(words: str, scale: Float32s | np.float32, shift: Float32s | np.float32) -> Change:
    return Change("range", words, lambda x: x.astype(np.float32) * scale + shift)


def _contiguous(apply: Callable[[AnyArray], AnyArray]) -> Callable[[AnyArray], AnyArray]:
    """The same in the sample's dtype and in the order in memory that runtimes take."""
    return lambda x: np.ascontiguousarray(apply(x), dtype=x.dtype)
