"""Exact histograms with power-of-two ranges: from values, merged, widened."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from calibration.errors import DataError

NUM_BINS = 16384
LOG2_NUM_BINS = 14
LEAST_EXPONENT = -110
"""Below 2^-110 the factor 16384 / 2^e would leave float32; values as small share one range."""
CHUNK = 1 << 16
"""Values histogrammed at a time: their copies stay in the processor's second-level cache."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """What is known of a tensor's finite values: exact counts over [0, 2^exponent), exact extremes."""

    counts: Counts
    """(16384,) values per bin of |x|."""
    exponent: int
    min: float
    max: float
    num_zeros: int
    num_infinite: int = 0
    """Infinities beside the values, such as a mask has; they say nothing of a range."""

    @property
    def num_values(self) -> int:
        """All finite values, zeros included."""
        return int(self.counts.sum())

    @property
    def amax(self) -> float:
        """The largest |x|."""
        return max(abs(self.min), abs(self.max))

    @property
    def bin_width(self) -> float:
        """Width of a bin, exact."""
        return math.ldexp(1.0, self.exponent - LOG2_NUM_BINS)

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values; exact, commutative and associative."""
        num_infinite = self.num_infinite + other.num_infinite
        if not other.num_values or not self.num_values:
            return replace(self if self.num_values else other, num_infinite=num_infinite)
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            counts=widened(self, exponent) + widened(other, exponent),
            exponent=exponent,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
            num_zeros=self.num_zeros + other.num_zeros,
            num_infinite=num_infinite,
        )


def nothing(num_infinite: int = 0) -> Histogram:
    """The histogram of no finite values."""
    return Histogram(np.zeros(NUM_BINS, np.int64), LEAST_EXPONENT, 0.0, 0.0, 0, num_infinite)


def histogram_from_values(values: npt.NDArray[np.generic], where: str) -> Histogram:
    """The histogram of a floating-point array of any shape, rounded to float32 if it is wider.

    An empty array gives the histogram of nothing, which merging leaves out. Infinities are counted and left out: they
    are as large as values get in any format.

    Raises:
        DataError: a value is NaN; ``where`` says which tensor this is, on which samples.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        flat = np.asarray(values, dtype=np.float32).reshape(-1)
    if not flat.size:
        return nothing()
    low, high = float(flat.min()) + 0.0, float(flat.max()) + 0.0  # + 0.0: one zero, without a sign.
    if math.isnan(low):
        raise DataError(
            f"{where}: {int(np.count_nonzero(np.isnan(flat)))} of {flat.size} values are NaN, numbers are expected; "
            "correct or leave out the sample that causes them, or the model"
        )
    if math.isinf(low) or math.isinf(high):
        finite = flat[np.isfinite(flat)]
        return replace(histogram_from_values(finite, where), num_infinite=flat.size - finite.size)
    exponent = exponent_of(max(abs(low), abs(high)))
    return Histogram(histogram_of(flat, exponent), exponent, low, high, flat.size - int(np.count_nonzero(flat)))


def exponent_of(amax: float) -> int:
    """The least e >= -110 with amax < 2^e."""
    return max(math.frexp(amax)[1], LEAST_EXPONENT) if amax else LEAST_EXPONENT


def histogram_of(values: npt.NDArray[np.float32], exponent: int) -> Counts:
    """Counts of |x| in 16,384 bins over [0, 2^exponent): (n,) finite float32 in, (16384,) out."""
    counts = np.zeros(NUM_BINS, np.int64)
    factor = np.float32(math.ldexp(1.0, LOG2_NUM_BINS - exponent))
    size = min(CHUNK, values.size)
    scaled, bins, index = np.empty(size, np.float32), np.empty(size, np.int32), np.empty(size, np.intp)
    for begin in range(0, values.size, CHUNK):
        chunk = values[begin : begin + CHUNK]
        num = chunk.size
        bins[:num] = np.multiply(chunk, factor, out=scaled[:num])  # Towards zero, so that |bin| is floor of |x|.
        index[:num] = np.abs(bins[:num], out=bins[:num])
        counts += np.bincount(index[:num], minlength=NUM_BINS)
    return counts


def widened(histogram: Histogram, exponent: int) -> Counts:
    """The histogram's counts over [0, 2^exponent), for an exponent at least its own."""
    steps = exponent - histogram.exponent
    if not steps:
        return histogram.counts
    counts = np.zeros(NUM_BINS, np.int64)
    group = 1 << min(steps, LOG2_NUM_BINS)
    counts[: NUM_BINS // group] = histogram.counts.reshape(-1, group).sum(axis=1)
    return counts


Counts: TypeAlias = npt.NDArray[np.int64]
