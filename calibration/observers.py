"""One exact, mergeable histogram of |x| per tensor, and the ranges that are read from it.

A histogram spans [0, 2^e) in 16,384 equal bins, with e the least exponent that holds every value. A value's bin is
``floor(|x| * 16384 / 2^e)``; the product with a power of two is exact in floating point, and doubling the range adds
neighbouring bins exactly. So the counts depend on the values alone: not on their order, nor on how they were split
into batches or over processes.

Readings (all give ``amax``; the range is -amax to amax):

- ``minmax``: the largest |x|.
- ``percentile``: so many percent of all |x| lie within.
- ``entropy``: Migacz, "8-bit Inference with TensorRT", GTC 2017, as TensorRT does it; see ``amax_entropy``.
- ``mse``: least mean squared error of rounding and clipping together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from calibration.errors import DataError

Counts: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Method = Literal["entropy", "minmax", "percentile", "mse"]

NUM_BINS = 16384
LOG2_NUM_BINS = 14
LEAST_EXPONENT = -110
"""Below 2^-110 the factor 16384 / 2^e would leave float32; values as small share one range."""

NUM_ENTROPY_BINS = 2048
NUM_LEVELS = 128
"""Migacz's histogram, and the non-negative codes of int8."""

LARGEST_CODE = 127
CHUNK = 1 << 15
"""Values histogrammed at a time: their copies stay in the processor's second-level cache."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """What is known of a tensor's values: exact counts over [0, 2^exponent), exact extremes."""

    counts: Counts
    """(16384,) values per bin of |x|."""
    exponent: int
    min: float
    max: float
    num_zeros: int

    @property
    def num_values(self) -> int:
        """All values, zeros included."""
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
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            counts=_widened(self, exponent) + _widened(other, exponent),
            exponent=exponent,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
            num_zeros=self.num_zeros + other.num_zeros,
        )


def histogram_from_values(values: npt.NDArray[np.generic], where: str) -> Histogram:
    """The histogram of a floating-point array of any shape.

    Raises:
        DataError: there are no values, or one is NaN or infinite; ``where`` names the tensor.
    """
    flat = np.asarray(values, dtype=np.float32).reshape(-1)
    if not flat.size:
        raise DataError(f"tensor '{where}': is empty on this batch, so it has no range; leave the sample out")
    low, high = float(flat.min()), float(flat.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"tensor '{where}': has NaN or infinite values on this batch; look for the sample that causes them"
        )
    exponent = exponent_of(max(abs(low), abs(high)))
    return Histogram(histogram_of(flat, exponent), exponent, low, high, flat.size - int(np.count_nonzero(flat)))


def exponent_of(amax: float) -> int:
    """The least e >= -110 with amax < 2^e."""
    return max(math.frexp(amax)[1], LEAST_EXPONENT) if amax else LEAST_EXPONENT


def histogram_of(values: npt.NDArray[np.float32], exponent: int) -> Counts:
    """Counts of |x| in 16,384 bins over [0, 2^exponent): (n,) finite float32 in, (16384,) out."""
    counts = np.zeros(NUM_BINS, np.int64)
    factor = np.float32(math.ldexp(1.0, LOG2_NUM_BINS - exponent))
    magnitude = np.empty(min(CHUNK, values.size), np.float32)
    index = np.empty(magnitude.size, np.intp)
    for begin in range(0, values.size, CHUNK):
        chunk = values[begin : begin + CHUNK]
        scaled = np.multiply(np.abs(chunk, out=magnitude[: chunk.size]), factor, out=magnitude[: chunk.size])
        index[: chunk.size] = scaled
        counts += np.bincount(index[: chunk.size], minlength=NUM_BINS)
    return counts


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
    wanted = histogram.num_values * (percentile / 100)
    last = int(np.searchsorted(np.cumsum(histogram.counts), wanted - 1e-9 * wanted))
    return min(min(last + 1, NUM_BINS) * histogram.bin_width, histogram.amax)


def amax_entropy(histogram: Histogram) -> float:
    """The threshold that loses least information, Kullback and Leibler's, among 1921 candidates.

    Migacz, "8-bit Inference with TensorRT", GTC 2017, with the details that TensorRT's published caches and NVIDIA's
    pytorch-quantization show: 2048 bins over [0, max |x|]; the first bin set to the second; for every m from 128 to
    2048 the reference P is the first m bins with the tail added to the last of them, the candidate Q the first m bins
    without the tail, merged into 128 levels and spread evenly over each level's non-empty bins; the last of the best
    m wins; the threshold is ``(m + 0.5) / 2048 * max |x|``.
    """
    if not histogram.amax:
        return 0.0
    divergence = divergences(entropy_bins(histogram))
    last_best = len(divergence) - 1 - int(np.argmin(divergence[::-1]))
    return (NUM_LEVELS + last_best + 0.5) / NUM_ENTROPY_BINS * histogram.amax


def entropy_bins(histogram: Histogram) -> Floats:
    """Migacz's 2048 bins over [0, max |x|], from the 8,193 to 16,384 fine bins that lie there.

    The cumulated counts are interpolated at the coarse edges, a value spread evenly over its fine bin. So a coarse
    edge is wrong by no more than the count of the one fine bin that it cuts, an eighth to a quarter of a coarse bin.
    """
    num_used = min(int(histogram.amax / histogram.bin_width) + 1, NUM_BINS)
    edges = np.arange(num_used + 1) * histogram.bin_width
    edges[-1] = histogram.amax if histogram.amax > edges[-2] else edges[-1]
    cumulated = np.concatenate([[0], np.cumsum(histogram.counts[:num_used])]).astype(np.float64)
    coarse = np.linspace(0.0, histogram.amax, NUM_ENTROPY_BINS + 1)
    return np.asarray(np.diff(np.interp(coarse, edges, cumulated)), dtype=np.float64)


def divergences(bins: Floats) -> Floats:
    """KL(P || Q) for m = 128, 129, ..., len(bins), all at once; ``bins`` (n,) with n >= 128.

    With c_L the sum and n_L the number of non-empty bins of level L, S the sum without and T with the tail, P's mass
    on a level is c_L / T (the last level's has the tail as well), and Q's density there c_L / (n_L S). So both sums
    of ``p log p - p log q`` come from prefix sums. Where P has the tail on an empty bin, Q is 0 there: infinite.
    """
    bins = bins.copy()
    bins[0] = bins[1]
    num = np.arange(NUM_LEVELS, len(bins) + 1)
    sums = np.concatenate([[0.0], np.cumsum(bins)])
    filled = np.concatenate([[0], np.cumsum(bins > 0)])
    edges = -(-np.arange(NUM_LEVELS + 1) * num[:, None] // NUM_LEVELS)
    level_sum = np.diff(sums[edges], axis=1)
    level_filled = np.diff(filled[edges], axis=1)
    kept, total = sums[num], sums[-1]
    if not total:
        return np.zeros(len(num))
    tail = total - kept
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(level_sum / level_filled / kept[:, None])
        p_level = level_sum / total
        p_level[:, -1] += tail / total
        cross = np.where(p_level > 0, p_level * log_q, 0.0).sum(axis=1)
        p_log_p = np.where(bins > 0, bins / total * np.log(bins / total), 0.0)
        last = (bins[num - 1] + tail) / total
        own = np.concatenate([[0.0], np.cumsum(p_log_p)])[num - 1] + np.where(last > 0, last * np.log(last), 0.0)
    lost = (bins[num - 1] == 0) & (tail > total * 1e-15)
    return np.asarray(np.where(lost, np.inf, own - cross), dtype=np.float64)


def amax_mse(histogram: Histogram) -> float:
    """The amax with the least expected squared error of symmetric int8, to 1/4096 of max |x|.

    128 candidates over (0, max |x|], then 64 around the best; the errors are taken at the centres of 2,048 bins.
    """
    amax = histogram.amax
    if not amax:
        return 0.0
    counts = histogram.counts.copy()
    counts[0] -= histogram.num_zeros
    counts = counts.reshape(2048, -1).sum(axis=1)
    used = np.flatnonzero(counts)
    centres = np.minimum((used + 0.5) * (histogram.bin_width * 8), amax)
    candidates = amax * np.arange(1, 129) / 128
    best = candidates[np.argmin(_noise(centres, counts[used], candidates))]
    candidates = np.clip(best + amax * np.arange(-32, 33) / 4096, amax / 4096, amax)
    return float(candidates[np.argmin(_noise(centres, counts[used], candidates))])


def sqnr_db(histogram: Histogram, amax: float) -> float | None:
    """Signal to quantization noise ratio of symmetric int8 at ``amax``, dB, from the bins' centres.

    None where there is no signal (all zero) or no range.
    """
    if not histogram.amax or not amax:
        return None
    counts = histogram.counts.copy()
    counts[0] -= histogram.num_zeros
    used = np.flatnonzero(counts)
    centres = np.minimum((used + 0.5) * histogram.bin_width, histogram.amax)
    signal = float((centres**2 * counts[used]).sum())
    noise = float(_noise(centres, counts[used], np.array([amax]))[0])
    return 10 * math.log10(signal / noise) if noise else None


def clipped_share(histogram: Histogram, amax: float) -> float:
    """Share of all values with |x| > amax, to the share of one bin."""
    if amax >= histogram.amax:
        return 0.0
    beyond = histogram.counts[int(amax / histogram.bin_width) + 1 :].sum()
    return float(beyond) / histogram.num_values


READINGS: dict[Method, Callable[[Histogram], float]] = {
    "entropy": amax_entropy,
    "minmax": amax_minmax,
    "mse": amax_mse,
}
"""The readings that need no option; ``percentile`` needs its own."""


def _noise(centres: Floats, counts: Counts, candidates: Floats) -> Floats:
    """Sum of squared errors for each candidate amax: (n,), (n,), (c,) -> (c,)."""
    scale = candidates[:, None] / LARGEST_CODE
    error = centres - np.minimum(np.rint(centres / scale), LARGEST_CODE) * scale
    return np.asarray((error**2 * counts).sum(axis=1), dtype=np.float64)


def _widened(histogram: Histogram, exponent: int) -> Counts:
    """The counts over [0, 2^exponent), for an exponent at least the histogram's own."""
    steps = exponent - histogram.exponent
    if not steps:
        return histogram.counts
    counts = np.zeros(NUM_BINS, np.int64)
    group = 1 << min(steps, LOG2_NUM_BINS)
    counts[: NUM_BINS // group] = histogram.counts.reshape(-1, group).sum(axis=1)
    return counts
