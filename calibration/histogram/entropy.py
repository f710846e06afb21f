"""The range that loses least information: Migacz's entropy calibration, read from a histogram of ``observers``.

All 1921 candidates are compared, but few divergences are computed in full: those of candidates that two bounds from
below, each closer and dearer than the one before, leave in question.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from calibration.arrays import Floats
from calibration.histogram.histogram import Counts
from calibration.histogram.spikes import without_spikes

if TYPE_CHECKING:
    from calibration.histogram.histogram import Histogram

Indices: TypeAlias = npt.NDArray[np.intp]

NUM_ENTROPY_BINS = 2048
NUM_LEVELS = 128
"""Migacz's histogram, and the non-negative codes of int8."""
CANDIDATES = np.arange(NUM_LEVELS, NUM_ENTROPY_BINS + 1)
"""m of Migacz's method: bins that are kept."""
BOUND_MARGIN = 1e-9
"""A candidate whose bound is by so much above a divergence cannot be the best: far more than rounding."""
TIE = 1e-11
"""Divergences as near as this to the least are equal to it: above the rounding of their sums, below all that counts."""
FIRST_LEVELS, LAST_LEVELS = range(16), range(NUM_LEVELS - 4, NUM_LEVELS)
"""What the closer bound looks into: where most values are, and where the tail is. On EfficientNetB0's 190 tensors it
leaves 9 percent of the candidates in question, the other bound 19 percent of all."""
ELEMENTS_AT_A_TIME = 1 << 13
"""Candidates times levels: they stay in the processor's second-level cache."""


def amax_entropy(histogram: Histogram) -> float:
    """The threshold that loses least information, Kullback and Leibler's, among 1921 candidates.

    Migacz, "8-bit Inference with TensorRT", GTC 2017, with the details that TensorRT's published caches and NVIDIA's
    pytorch-quantization show: 2048 bins over [0, max |x|]; the first bin set to the second; for every m from 128 to
    2048 the reference P is the first m bins with the tail added to the last of them, the candidate Q the first m bins
    without the tail, merged into 128 levels and spread evenly over each level's non-empty bins; the last of the best
    m wins; the threshold is ``(m + 0.5) / 2048 * max |x|``.
    Two rules are added. As many levels as non-empty bins hold Q equal to P whatever is clipped, as of a tensor that
    stays away from zero; so a candidate must keep at least 128 non-empty bins, or all of them where there are fewer.
    And spikes are taken out, as the first bin is (``calibration.histogram.spikes``); in return none is clipped.
    """
    if not histogram.amax:
        return 0.0
    bins, last_spike = without_spikes(entropy_bins(histogram))
    of = sums_of(bins)
    filled = of.filled[NUM_LEVELS:]
    left = CANDIDATES[(filled >= min(NUM_LEVELS, int(filled[-1]))) & (last_spike < CANDIDATES)]
    least = float(divergences(of, left[-1:])[0])
    for bounds in (divergence_bounds, closer_bounds):
        bound = bounds(of, left)
        least = min(least, float(divergences(of, left[[int(np.argmin(bound))]])[0]))
        left = left[bound <= least + BOUND_MARGIN]
    divergence = divergences(of, left)
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
    num_used = min(int(amax / width) + 1, len(histogram.counts))
    counts = histogram.counts[:num_used]
    edges = np.arange(num_used + 1) * width * NUM_ENTROPY_BINS / amax
    coarse = np.minimum(edges.astype(np.intp), NUM_ENTROPY_BINS - 1)
    (cut,) = np.nonzero((coarse[1:] > coarse[:-1]) & (edges[1:] > coarse[1:]))
    neighbours = np.concatenate([[0], counts, [0]])
    shared = np.minimum(np.minimum(neighbours[cut], neighbours[cut + 2]), counts[cut])
    above = (edges[cut + 1] - coarse[cut + 1]) / (edges[cut + 1] - edges[cut])
    moved = np.rint(shared * above).astype(np.int64)
    bins = np.zeros(NUM_ENTROPY_BINS, np.int64)
    np.add.at(bins, coarse[:-1], counts)
    np.add.at(bins, coarse[cut], -moved)
    np.add.at(bins, coarse[cut + 1], moved)
    return bins


@dataclass(frozen=True, eq=False)
class BinSums:
    """Sums over Migacz's bins, of which the first is set to the second: at index i of the bins before i."""

    bins: Counts
    """(2048,) the bins themselves."""
    counts: Floats
    """(2049,) values; as floating-point numbers, exact below 2^53, which are gathered and divided quickest."""
    filled: Floats
    """(2049,) non-empty bins."""
    x_log_x: Floats
    """(2049,) of x log x, with x the share of all values that is in a bin."""

    @property
    def total(self) -> float:
        """All values."""
        return float(self.counts[-1])


def sums_of(bins: Counts) -> BinSums:
    """(2048,) bins; the first is not looked at."""
    bins = np.concatenate([bins[1:2], bins[1:]])
    counts, filled = (np.concatenate([[0.0], np.cumsum(each)]) for each in (bins, bins > 0))
    terms = _x_log_x(bins / max(counts[-1], 1.0))
    return BinSums(bins, counts, filled, np.concatenate([[0.0], np.cumsum(terms)]))


def divergence_bounds(of: BinSums, candidates: Indices = CANDIDATES) -> Floats:
    """A lower bound of KL(P || Q) for each candidate m: (c,) -> (c,).

    By the log-sum inequality, merging bins of both makes no divergence larger (Cover and Thomas, "Elements of
    Information Theory", 2006, theorem 2.7.1). Here all are merged but the last, where P has the tail.
    """
    if not of.total:
        return np.zeros(len(candidates))
    num_kept, last, begin = of.counts[candidates], of.bins[candidates - 1], _level_edges()[candidates - NUM_LEVELS, -2]
    in_level = of.filled[candidates] - of.filled[begin]
    p, p_others = (last + (of.total - num_kept)) / of.total, (num_kept - last) / of.total
    q = np.where(last > 0, (num_kept - of.counts[begin]) / (np.maximum(in_level, 1) * np.maximum(num_kept, 1)), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        last_term = np.where(p > 0, p * np.log(p / q), 0.0)
        others = np.where(p_others > 0, p_others * np.log(p_others / (1 - q)), 0.0)
    return np.asarray(np.where((last == 0) & (p > 0), np.inf, last_term + others), dtype=np.float64)


def closer_bounds(of: BinSums, candidates: Indices = CANDIDATES) -> Floats:
    """As ``divergence_bounds``, but with nothing merged in the first 16 levels and the last 4: (c,) -> (c,).

    Of the levels between, P has the share of all values that Q has of the kept ones.
    """
    if not of.total:
        return np.zeros(len(candidates))
    begin, end = (_level_edges()[candidates - NUM_LEVELS, level] for level in (FIRST_LEVELS.stop, LAST_LEVELS.start))
    num_kept, last = of.counts[candidates], of.bins[candidates - 1]
    between = (of.counts[end] - of.counts[begin]) / of.total
    p_log_p = of.x_log_x[begin] + of.x_log_x[candidates - 1] - of.x_log_x[end] + _own_of_last(of, num_kept, last)
    cross = (_cross_sums(of, candidates, FIRST_LEVELS) + _cross_sums(of, candidates, LAST_LEVELS)) / of.total
    cross -= (1 - between) * np.log(np.maximum(num_kept, 1))
    bound = p_log_p - cross + between * np.log(np.maximum(num_kept, 1) / of.total)
    return np.asarray(np.where((last == 0) & (num_kept < of.total), np.inf, bound), dtype=np.float64)


def divergences(of: BinSums, candidates: Indices = CANDIDATES) -> Floats:
    """KL(P || Q) for each candidate m, all at once: (c,) -> (c,).

    With c_L the sum and n_L the number of non-empty bins of level L, S the sum without and T with the tail, P's mass
    on a level is c_L / T (the last level's has the tail as well), and Q's density there c_L / (n_L S). So both sums
    of ``p log p - p log q`` come from prefix sums. Where P has the tail on an empty bin, Q is 0 there: infinite.
    """
    if not of.total:
        return np.zeros(len(candidates))
    num_kept, last = of.counts[candidates], of.bins[candidates - 1]
    cross = _cross_sums(of, candidates, range(NUM_LEVELS)) / of.total - np.log(np.maximum(num_kept, 1))
    p_log_p = of.x_log_x[candidates - 1] + _own_of_last(of, num_kept, last)
    return np.asarray(np.where((last == 0) & (num_kept < of.total), np.inf, p_log_p - cross), dtype=np.float64)


def _own_of_last(of: BinSums, num_kept: Floats, last: Counts) -> Floats:
    """p log p of the last bin, which has the tail."""
    return _x_log_x((last + (of.total - num_kept)) / of.total)


def _cross_sums(of: BinSums, candidates: Indices, levels: range) -> Floats:
    """(c,): for every candidate, the sum over these levels of the values in P times log(c_L / n_L)."""
    cross_sums = np.empty(len(candidates))
    size = ELEMENTS_AT_A_TIME // len(levels)
    for begin in range(0, len(candidates), size):
        part = candidates[begin : begin + size]
        edges = _level_edges()[part - NUM_LEVELS, levels.start : levels.stop + 1]
        counts, filled = (sums.take(edges) for sums in (of.counts, of.filled))
        mass = counts[:, 1:] - counts[:, :-1]
        mean = mass / np.maximum(filled[:, 1:] - filled[:, :-1], 1)
        if levels.stop == NUM_LEVELS:
            mass[:, -1] += of.total - of.counts[part]
        cross_sums[begin : begin + size] = np.einsum("cl,cl->c", mass, np.log(np.maximum(mean, 1)))
    return cross_sums


@cache
def _level_edges() -> Indices:
    """(1921, 129): the first bin of each level, for every m; bin j belongs to level floor(j * 128 / m)."""
    return np.asarray(-(-np.arange(NUM_LEVELS + 1) * CANDIDATES[:, None] // NUM_LEVELS), dtype=np.intp)


def _x_log_x(x: Floats) -> Floats:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)), dtype=np.float64)
