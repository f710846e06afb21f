"""One exact, mergeable histogram of |x| per tensor, and the ranges that are read from it.

A histogram spans [0, 2^e) in 16,384 equal bins, with e the least exponent that holds every value. A value's bin is
``floor(|x| * 16384 / 2^e)``; the product with a power of two is exact in floating point, and doubling the range adds
neighbouring bins exactly. So the counts depend on the values alone: not on their order, nor on how they were split
into batches or over processes.

Readings (all give ``amax``; the range is -amax to amax):

- ``minmax``: the largest |x|.
- ``percentile``: so many percent of all |x| lie within.
- ``entropy``: Migacz, "8-bit Inference with TensorRT", GTC 2017, as TensorRT does it; see
  ``calibration.histogram.entropy``.
- ``mse``: least mean squared error of rounding and clipping together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Literal

import numpy as np

from calibration.arrays import Floats
from calibration.errors import DataError
from calibration.histogram.entropy import amax_entropy
from calibration.histogram.histogram import NUM_BINS, Counts, Histogram

Method = Literal["entropy", "minmax", "percentile", "mse"]
LARGEST_CODE = 127
NUM_OCTAVES = 12
CANDIDATES_PER_OCTAVE = 42
"""The search of ``mse``: down to max |x| / 4096, in steps of 1.7 percent; then 64 steps around the best."""


def amax_minmax(histogram: Histogram) -> float:
    """The largest |x|."""
    return histogram.amax


def amax_percentile(histogram: Histogram, percentile: float) -> float:
    """The upper edge of the bin within which ``percentile`` percent of all |x| (zeros included) lie.

    Raises:
        DataError: ``percentile`` is not in (0, 100].
    """
    if not 0 < percentile <= 100:
        raise DataError(f"percentile: is {percentile}, a number above 0 and up to 100 is expected; correct it")
    wanted = math.ceil(histogram.num_values * Fraction(str(float(percentile))) / 100)
    last = int(np.searchsorted(np.cumsum(histogram.counts), wanted))
    return min((last + 1) * histogram.bin_width, histogram.amax)


def amax_mse(histogram: Histogram) -> float:
    """The amax with the least expected squared error of symmetric int8, to a twentieth of a percent."""
    if not histogram.amax:
        return 0.0
    octaves = np.arange(NUM_OCTAVES * CANDIDATES_PER_OCTAVE, -1, -1) / CANDIDATES_PER_OCTAVE
    candidates = histogram.amax * 2.0**-octaves
    whole = float(squared_errors(histogram, candidates[-1:])[0])
    first = int(np.argmax(clipping_errors(histogram, candidates) <= whole))
    best = first + int(np.argmin(squared_errors(histogram, candidates[first:])))
    low, high = candidates[max(best - 1, 0)], candidates[min(best + 1, len(candidates) - 1)]
    candidates = np.linspace(low, high, 65)
    return float(candidates[np.argmin(squared_errors(histogram, candidates))])


def clipping_errors(histogram: Histogram, candidates: Floats) -> Floats:
    """At most the sum of (|x| - amax)^2 over what each candidate clips: (c,) -> (c,), not rising with the candidate.

    Counts whole bins beyond the candidate, at their lower edges. No squared error of int8 at a candidate is less.
    """
    sums = _signal_sums(histogram)
    amax = candidates / histogram.bin_width
    above = np.minimum(np.ceil(amax), NUM_BINS).astype(np.intp)
    edges, which = np.unique(above, return_inverse=True)
    weighted = sums.counts * _index()
    pieces = (np.add.reduceat(each, edges) for each in (weighted, weighted * _index()))
    first, second = (np.cumsum(each[::-1])[::-1][which] for each in pieces)
    errors = second - 2 * amax * first + amax**2 * sums.beyond[above]
    return np.asarray(errors * histogram.bin_width**2, dtype=np.float64)


def squared_errors(histogram: Histogram, candidates: Floats) -> Floats:
    """Sum over all values of (x - q(x))^2, with q symmetric int8 at each candidate amax > 0: (c,) -> (c,).

    Values are taken to lie evenly within their bin. q is a staircase with steps of s = amax / 127 at b_k = (k - 1/2) s
    for k = 1 ... 127, so (x - q(x))^2 = x^2 - 2 s sum_k max(x - b_k, 0), exact also beyond amax; and the sum of
    max(x - b, 0) over all values is a parabola within each bin, known from the counts' sums. All in bin widths.
    """
    sums = _signal_sums(histogram)
    step = candidates / histogram.bin_width / LARGEST_CODE
    threshold = np.minimum(step[:, None] * (np.arange(LARGEST_CODE) + 0.5), NUM_BINS)
    index = threshold.astype(np.intp)
    part = threshold - index
    over = sums.excess[index] - part * (sums.beyond[index] - 0.5 * part * sums.counts[index])
    errors = sums.squares - 2 * step * over.sum(axis=1)
    return np.asarray(errors * histogram.bin_width**2, dtype=np.float64)


def sqnr_db(histogram: Histogram, amax: float) -> float | None:
    """Signal to quantization noise ratio of symmetric int8 at ``amax``, dB; see ``squared_errors``.

    None where there is no signal (all zero) or no range. Noise below that of the bins is not seen, so no ratio is
    beyond 95 dB.
    """
    return sqnrs_db(histogram, [amax])[0]


def sqnrs_db(histogram: Histogram, amaxes: Sequence[float]) -> list[float | None]:
    """``sqnr_db`` at several amax."""
    nonzero = [amax for amax in amaxes if amax]
    if not histogram.amax or not nonzero:
        return [None] * len(amaxes)
    signal = _signal_sums(histogram).squares * histogram.bin_width**2
    noise = dict(zip(nonzero, squared_errors(histogram, np.array(nonzero))))
    return [10 * math.log10(signal / noise[amax]) if amax else None for amax in amaxes]


def clipped_share(histogram: Histogram, amax: float) -> float:
    """Share of all values with |x| > amax >= 0; the values of a bin that amax cuts are taken to lie evenly in it."""
    if amax >= histogram.amax:
        return 0.0
    sums = _signal_sums(histogram)
    position = amax / histogram.bin_width
    cut = int(position)
    beyond = int(sums.beyond[cut + 1]) + (cut + 1 - position) * int(sums.counts[cut])
    return float(beyond) / histogram.num_values


READINGS: dict[Method, Callable[[Histogram], float]] = {
    "entropy": amax_entropy,
    "minmax": amax_minmax,
    "mse": amax_mse,
}
"""The readings that need no option; ``percentile`` needs its own."""


@dataclass(frozen=True)
class _SignalSums:
    """Sums over the values that are not 0, which have no error; (16385,) each, in bin widths."""

    counts: Counts
    beyond: Counts
    """Values in this bin and above."""
    excess: Floats
    """Sum of x - b over the values above the lower edge b."""
    squares: float
    """Sum of x^2, of values that lie evenly within their bins."""


@lru_cache(maxsize=1)
def _signal_sums(histogram: Histogram) -> _SignalSums:
    """Kept for the last histogram: its readings follow one another."""
    counts = np.append(histogram.counts, 0)
    counts[0] -= histogram.num_zeros
    beyond = _sums_beyond(counts)
    return _SignalSums(counts, beyond, _sums_beyond(2 * beyond - counts) / 2, float((counts * _mean_squares()).sum()))


@cache
def _index() -> Floats:
    """(16385,): the lower edge of each bin, in bin widths."""
    return np.arange(NUM_BINS + 1, dtype=np.float64)


@cache
def _mean_squares() -> Floats:
    """(16385,): the mean of x^2 within each bin."""
    return np.asarray(_index() * (_index() + 1) + 1 / 3, dtype=np.float64)


def _sums_beyond(values: Counts) -> Counts:
    """At each index the sum from there to the end. Of whole numbers: exact, and four times as fast."""
    sums = np.cumsum(values)
    return np.asarray(sums[-1] - sums + values)
