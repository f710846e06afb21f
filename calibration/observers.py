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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from calibration.errors import DataError
from calibration.spikes import without_spikes

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
CANDIDATES = np.arange(NUM_LEVELS, NUM_ENTROPY_BINS + 1)
"""m of Migacz's method: bins that are kept."""
BOUND_MARGIN = 1e-9
"""A candidate whose bound is by so much above a divergence cannot be the best: far more than rounding."""
TIE = 1e-11
"""Divergences as near as this to the least are equal to it: above the rounding of their sums, below all that counts."""

LARGEST_CODE = 127
NUM_OCTAVES = 12
CANDIDATES_PER_OCTAVE = 42
"""The search of ``mse``: down to max |x| / 4096, in steps of 1.7 percent; then 64 steps around the best."""

CHUNK = 1 << 16
"""Values histogrammed at a time: their copies stay in the processor's second-level cache."""
CANDIDATES_AT_A_TIME = 64
"""Of entropy's, for the same reason."""


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
        if not other.num_values or not self.num_values:
            return self if self.num_values else other
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            counts=_widened(self, exponent) + _widened(other, exponent),
            exponent=exponent,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
            num_zeros=self.num_zeros + other.num_zeros,
        )


def histogram_from_values(values: npt.NDArray[np.generic], where: str) -> Histogram:
    """The histogram of a floating-point array of any shape, rounded to float32 if it is wider.

    An empty array gives the histogram of nothing, which merging leaves out.

    Raises:
        DataError: a value is NaN or infinite; ``where`` says which tensor this is, on which samples.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        flat = np.asarray(values, dtype=np.float32).reshape(-1)
    if not flat.size:
        return Histogram(np.zeros(NUM_BINS, np.int64), LEAST_EXPONENT, 0.0, 0.0, 0)
    low, high = float(flat.min()) + 0.0, float(flat.max()) + 0.0  # + 0.0: one zero, without a sign.
    if not (math.isfinite(low) and math.isfinite(high)):
        num_bad = flat.size - int(np.count_nonzero(np.isfinite(flat)))
        raise DataError(
            f"{where}: {num_bad} of {flat.size} values are NaN or infinite in float32, finite values are expected; "
            "mend or leave out the sample that causes them, or the model"
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
    size = min(CHUNK, values.size)
    scaled, bins, index = np.empty(size, np.float32), np.empty(size, np.int32), np.empty(size, np.intp)
    for begin in range(0, values.size, CHUNK):
        chunk = values[begin : begin + CHUNK]
        num = chunk.size
        bins[:num] = np.multiply(chunk, factor, out=scaled[:num])  # Towards zero, so that |bin| is floor of |x|.
        index[:num] = np.abs(bins[:num], out=bins[:num])
        counts += np.bincount(index[:num], minlength=NUM_BINS)
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
    wanted = math.ceil(histogram.num_values * Fraction(str(float(percentile))) / 100)
    last = int(np.searchsorted(np.cumsum(histogram.counts), wanted))
    return min((last + 1) * histogram.bin_width, histogram.amax)


def amax_entropy(histogram: Histogram) -> float:
    """The threshold that loses least information, Kullback and Leibler's, among 1921 candidates.

    Migacz, "8-bit Inference with TensorRT", GTC 2017, with the details that TensorRT's published caches and NVIDIA's
    pytorch-quantization show: 2048 bins over [0, max |x|]; the first bin set to the second; for every m from 128 to
    2048 the reference P is the first m bins with the tail added to the last of them, the candidate Q the first m bins
    without the tail, merged into 128 levels and spread evenly over each level's non-empty bins; the last of the best
    m wins; the threshold is ``(m + 0.5) / 2048 * max |x|``.
    Two rules are added. As many levels as non-empty bins hold Q equal to P whatever is clipped, as of a tensor that
    stays away from zero; so a candidate must keep at least 128 non-empty bins, or all of them where there are fewer.
    And spikes are taken out, as the first bin is (``calibration.spikes``); in return none is clipped.
    """
    if not histogram.amax:
        return 0.0
    bins, last_spike = without_spikes(entropy_bins(histogram))
    filled = np.cumsum(bins > 0)
    enough = CANDIDATES[(filled[NUM_LEVELS - 1 :] >= min(NUM_LEVELS, int(filled[-1]))) & (last_spike < CANDIDATES)]
    bound = divergence_bounds(bins)[enough - NUM_LEVELS]
    first = divergences(bins, enough[[int(np.argmin(bound)), -1]])
    left = enough[bound <= float(first.min()) + BOUND_MARGIN]
    divergence = divergences(bins, left)
    last_best = int(left[np.flatnonzero(divergence <= divergence.min() + TIE)[-1]])
    return (last_best + 0.5) / NUM_ENTROPY_BINS * histogram.amax


def entropy_bins(histogram: Histogram) -> Counts:
    """Migacz's (2048,) bins over [0, max |x|], from the 8,193 to 16,384 fine bins that lie there.

    A fine bin goes whole to the coarse bin of its lower edge, which is right for discrete data such as images. Where
    a coarse edge cuts it, as many of its values as both its neighbours have as well are taken for a continuous
    distribution, and divided in proportion; so no coarse bin gets values only from a cut, and a spike stays one.
    A value moves by less than a fine bin, at most a quarter of a coarse one: the cumulated count at a coarse edge is
    wrong by no more than the count of the one fine bin that it cuts.
    """
    amax, width = histogram.amax, histogram.bin_width
    num_used = min(int(amax / width) + 1, NUM_BINS)
    counts = histogram.counts[:num_used]
    edges = np.arange(num_used + 1) * width * NUM_ENTROPY_BINS / amax
    coarse = np.minimum(edges.astype(np.intp), NUM_ENTROPY_BINS - 1)
    above = edges[1:] - coarse[1:]
    is_cut = (coarse[1:] > coarse[:-1]) & (above > 0)
    neighbours = np.concatenate([[0], counts, [0]])
    shared = np.minimum(np.minimum(neighbours[:-2], neighbours[2:]), counts)
    moved = np.where(is_cut, np.rint(shared * (above / np.diff(edges))), 0).astype(np.int64)
    bins = np.zeros(NUM_ENTROPY_BINS, np.int64)
    np.add.at(bins, coarse[:-1], counts - moved)
    np.add.at(bins, coarse[1:], moved)
    return bins


def divergence_bounds(bins: Counts) -> Floats:
    """A lower bound of KL(P || Q) for m = 128, 129, ..., 2048: (2048,) in, (1921,) out.

    By the log-sum inequality, merging bins of both makes no divergence larger (Cover and Thomas, "Elements of
    Information Theory", 2006, theorem 2.7.1). Here all are merged but the last, where P has the tail.
    """
    bins, sums, filled = _prefix_sums(bins)
    total, kept, last = int(sums[-1]), sums[CANDIDATES], bins[CANDIDATES - 1]
    if not total:
        return np.zeros(len(CANDIDATES))
    begin = _level_edges()[:, NUM_LEVELS - 1]
    in_level = filled[CANDIDATES] - filled[begin]
    p, p_others = (last + (total - kept)) / total, (kept - last) / total
    q = np.where(last > 0, (kept - sums[begin]) / (np.maximum(in_level, 1) * np.maximum(kept, 1)), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(p > 0, p * np.log(p / q), 0.0)
        others = np.where(p_others > 0, p_others * np.log(p_others / (1 - q)), 0.0)
    return np.asarray(np.where((last == 0) & (p > 0), np.inf, own + others), dtype=np.float64)


def divergences(bins: Counts, candidates: npt.NDArray[np.intp] = CANDIDATES) -> Floats:
    """KL(P || Q) for each candidate m of 128, 129, ..., 2048, all at once: (2048,) and (c,) in, (c,) out.

    With c_L the sum and n_L the number of non-empty bins of level L, S the sum without and T with the tail, P's mass
    on a level is c_L / T (the last level's has the tail as well), and Q's density there c_L / (n_L S). So both sums
    of ``p log p - p log q`` come from prefix sums. Where P has the tail on an empty bin, Q is 0 there: infinite.
    """
    bins, sums, filled = _prefix_sums(bins)
    total = int(sums[-1])
    if not total:
        return np.zeros(len(candidates))
    kept, last = sums[candidates], bins[candidates - 1]
    tail = total - kept
    cross = _cross_sums(sums, filled, candidates, tail) / total - np.log(np.maximum(kept, 1))
    own = np.concatenate([[0.0], np.cumsum(_x_log_x(bins / total))])[candidates - 1]
    own += _x_log_x((last + tail) / total)
    return np.asarray(np.where((last == 0) & (tail > 0), np.inf, own - cross), dtype=np.float64)


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
    first, second = (_sums_beyond(sums.counts * sums.index**power) for power in (1, 2))
    errors = second[above] - 2 * amax * first[above] + amax**2 * sums.beyond[above]
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
    given = [amax for amax in amaxes if amax]
    if not histogram.amax or not given:
        return [None] * len(amaxes)
    signal = _signal_sums(histogram).squares * histogram.bin_width**2
    noise = dict(zip(given, squared_errors(histogram, np.array(given))))
    return [10 * math.log10(signal / noise[amax]) if amax else None for amax in amaxes]


def clipped_share(histogram: Histogram, amax: float) -> float:
    """Share of all values with |x| > amax >= 0; the values of a bin that amax cuts are taken to lie evenly in it."""
    if amax >= histogram.amax:
        return 0.0
    counts = _signal_sums(histogram).counts
    position = amax / histogram.bin_width
    cut = int(position)
    beyond = int(counts[cut + 1 :].sum()) + (cut + 1 - position) * int(counts[cut])
    return float(beyond) / histogram.num_values


READINGS: dict[Method, Callable[[Histogram], float]] = {
    "entropy": amax_entropy,
    "minmax": amax_minmax,
    "mse": amax_mse,
}
"""The readings that need no option; ``percentile`` needs its own."""


def _prefix_sums(bins: Counts) -> tuple[Counts, Counts, Counts]:
    """A copy of the bins with the first set to the second; its (n + 1,) sums, and numbers of non-empty bins, before."""
    bins = np.concatenate([bins[1:2], bins[1:]])
    return bins, np.concatenate([[0], np.cumsum(bins)]), np.concatenate([[0], np.cumsum(bins > 0)])


@cache
def _level_edges() -> npt.NDArray[np.intp]:
    """(1921, 129): the first bin of each level, for every m; bin j belongs to level floor(j * 128 / m)."""
    return np.asarray(-(-np.arange(NUM_LEVELS + 1) * CANDIDATES[:, None] // NUM_LEVELS), dtype=np.intp)


def _cross_sums(sums: Counts, filled: Counts, candidates: npt.NDArray[np.intp], tail: Counts) -> Floats:
    """(c,): for every candidate, the sum over the levels of the values in P times log(c_L / n_L)."""
    found = np.empty(len(tail))
    for begin in range(0, len(tail), CANDIDATES_AT_A_TIME):
        part = slice(begin, begin + CANDIDATES_AT_A_TIME)
        edges = _level_edges()[candidates[part] - NUM_LEVELS]
        mass = np.diff(sums[edges], axis=1).astype(np.float64)
        mean = mass / np.maximum(np.diff(filled[edges], axis=1), 1)
        mass[:, -1] += tail[part]
        found[part] = (mass * np.log(np.maximum(mean, 1))).sum(axis=1)
    return found


def _x_log_x(x: Floats) -> Floats:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)), dtype=np.float64)


@dataclass(frozen=True)
class _SignalSums:
    """Sums over the values that are not 0, which have no error; (16385,) each, in bin widths."""

    index: Floats
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
    index = np.arange(len(counts), dtype=np.float64)
    beyond = _sums_beyond(counts)
    squares = float((counts * (index * (index + 1) + 1 / 3)).sum())
    return _SignalSums(index, counts, beyond, _sums_beyond(2 * beyond - counts) / 2, squares)


def _sums_beyond(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """At each index the sum from there to the end."""
    return np.asarray(np.cumsum(values[::-1])[::-1])


def _widened(histogram: Histogram, exponent: int) -> Counts:
    """The counts over [0, 2^exponent), for an exponent at least the histogram's own."""
    steps = exponent - histogram.exponent
    if not steps:
        return histogram.counts
    counts = np.zeros(NUM_BINS, np.int64)
    group = 1 << min(steps, LOG2_NUM_BINS)
    counts[: NUM_BINS // group] = histogram.counts.reshape(-1, group).sum(axis=1)
    return counts
