"""Intervals of a latency statistic, and of the ratio of two, from several loads of the same engines.

What is given is an array (num_loads, num_queries) for each side: the latencies of each load (see ``paired.py``), as
many in each. Queries of one load resemble each other, by where its memory came to lie and by what the machine did
meanwhile; so the spread is taken from load to load, never from query to query. Kalibera and Jones, "Rigorous
benchmarking in reasonable time", ISMM 2013.

- *The ratio* of a statistic: in each load the candidate's over the baseline's; the geometric mean over loads, and
  Student's t of the logarithms. What slows a whole load slows both sides, and cancels.
- *One mean*: Student's t over the means of the loads.
- *One percentile*: of all queries together. The ranks between which it lies are ``p ± t s``, s the standard error, from
  load to load, of the share of queries at or below it; the bounds are the values at these ranks. Woodruff, "Confidence
  intervals for medians and other position measures", JASA 47 (1952) 635-646. No density is estimated, and where the
  sample does not reach so far, the bound is infinite.

A machine may also wander for longer than one load. So each interval is the widest of those from single loads, from the
means of two neighbours, of four, and so on, as long as 8 groups are left (batch means: Schmeiser, "Batch size effects
in the analysis of simulation output", Operations Research 30 (1982) 556-568). Fewer than 8 loads say nothing.

A bootstrap over loads gives the same intervals where it can (a test holds these to it). It is not used since decisions
at several looks ask for tails of some 1e-4, of which a bootstrap over 10 loads knows nothing.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np

from pipeline.deciding import student_quantile
from pipeline.timing import Floats

Statistic = Literal["p50", "p90", "p99", "mean"]
SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
"""The share of queries at or below each percentile."""
LEAST_GROUPS = 8
"""Student's t from fewer is too wide to be of use, and leans the more on the logarithms being normal."""

Bounds: TypeAlias = tuple[float, float, float]
"""Estimate, lower and upper bound."""


def one_sided(latency_ms: Floats, statistic: Statistic, tail: float) -> Bounds:
    """The statistic of one side, (num_loads, num_queries); each bound is passed with probability ``tail``."""
    if statistic == "mean":
        means = latency_ms.mean(axis=1)
        center, half = float(means.mean()), _half_width(means, tail)
        return center, center - half, center + half
    share, num = SHARES[statistic], latency_ms.size
    ordered = np.sort(latency_ms, axis=None)
    center = float(ordered[_rank(share, num) - 1])
    if len(latency_ms) < LEAST_GROUPS:
        return center, 0.0, math.inf
    independent = student_quantile(tail, len(latency_ms) - 1) * math.sqrt(share * (1 - share) / num)
    half = max(_half_width((latency_ms <= center).mean(axis=1), tail), independent)
    low, high = math.floor((share - half) * num), math.ceil((share + half) * num) + 1
    return center, float(ordered[low - 1]) if low >= 1 else 0.0, float(ordered[high - 1]) if high <= num else math.inf


def ratio(candidate_ms: Floats, baseline_ms: Floats, statistic: Statistic, tail: float) -> Bounds:
    """The candidate's statistic over the baseline's, both (num_loads, num_queries)."""
    ours, theirs = _by_load(candidate_ms, statistic), _by_load(baseline_ms, statistic)
    if min(ours.min(), theirs.min()) <= 0:  # Below what the clock can tell.
        return math.nan, 0.0, math.inf
    logs = np.log(ours / theirs)
    center, half = float(logs.mean()), _half_width(logs, tail)
    return math.exp(center), math.exp(center - half), math.exp(center + half)


def _by_load(latency_ms: Floats, statistic: Statistic) -> Floats:
    """The statistic of each load, (num_loads,); percentiles are nearest-rank."""
    if statistic == "mean":
        return np.asarray(latency_ms.mean(axis=1))
    rank = _rank(SHARES[statistic], latency_ms.shape[1])
    return np.asarray(np.partition(latency_ms, rank - 1, axis=1)[:, rank - 1])


def _rank(share: float, num: int) -> int:
    """Nearest rank; what rounding adds to a whole number is taken off."""
    return max(math.ceil(share * num - 1e-6), 1)


def _half_width(values: Floats, tail: float) -> float:
    """Of the interval of the mean of one value for each load; infinite for too few."""
    if len(values) < LEAST_GROUPS:
        return math.inf
    widest, size = 0.0, 1
    while len(values) // size >= LEAST_GROUPS:
        num = len(values) // size
        groups = values[len(values) - num * size :].reshape(num, size).mean(axis=1)
        widest = max(widest, student_quantile(tail, num - 1) * float(groups.std(ddof=1)) / math.sqrt(num))
        size *= 2
    return widest
