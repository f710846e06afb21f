"""Intervals of a latency statistic, and of the ratio of two, from several sessions of the same engines.

What is given is an array (num_sessions, num_queries) for each side: the latencies of each session (see ``paired.py``),
as many in each. Queries of one session resemble each other, by where its memory came to lie and by what the machine did
meanwhile; so the spread is taken from session to session, never from query to query. Kalibera and Jones, "Rigorous
benchmarking in reasonable time", ISMM 2013.

- *The ratio* of a statistic: in each session the candidate's over the baseline's; the geometric mean over sessions, and
  Student's t of the logarithms. What slows a whole session slows both sides, and cancels.
- *The ratio of p90 and p99*: winsorized: a session counts for no more than ``clip_bound`` beyond the middle one (what
  is further out is moved to there: Huber, "Robust estimation of a location parameter", Annals of Mathematical
  Statistics 35 (1964) 73-101, with a bound that follows from the limit instead of the noise). What else the machine
  does for an instant comes to lie in the tail of one side and not of the other, and the ratio of that session is
  anything from 1/6 to 6: of a mean of such numbers Student's t says too much from few sessions and next to nothing from
  many (``benchmarks/gate_tails.py``). A candidate that is far too slow in more than one session of ``WEIGHT`` still
  fails.
- *One mean*: Student's t over the means of the sessions.
- *One percentile*: of all queries together. The ranks between which it lies are ``p ± t s``, s the standard error, from
  session to session, of the share of queries at or below it; the bounds are the values at these ranks. Woodruff,
  "Confidence intervals for medians and other position measures", JASA 47 (1952) 635-646. No density is estimated. For
  the lower bound s is that of the bound itself, where it is larger (the test of the bound inverted: Francisco and
  Fuller, "Quantile estimation with a complex survey design", Annals of Statistics 19 (1991) 454-469): a tail that comes
  in bursts, of which there were many by chance, spreads less above its percentile than below it. The upper bound is
  ``SESSION_REACH`` times the value that the test of the bound allows, where that is less: near the percentile sessions
  differ by where their memory lies, of which few sessions show little; but far above it they do not.
- *Slow queries come in bursts*, and of none that was seen ranks take it that there is none. So the upper bound is one
  that as few queries exceed as were seen with the probability ``tail`` at most, if those that do come in bursts of
  ``BURST_MS`` on average, or as long as those that were seen (``pipeline/stats/bursts.py``). As each takes at least the
  bound, fewer of them fit into a burst the further away the bound is: that p99 is below 20 ms is seen by 1,200
  queries, that it is below 5 ms by three times as many.

A machine may also wander for longer than one session. So each interval is the widest of those from single sessions,
from the means of two neighbours, of four, and so on, as long as 8 groups are left (batch means: Schmeiser, "Batch size
effects in the analysis of simulation output", Operations Research 30 (1982) 556-568). Fewer than 8 sessions say
nothing.

A bootstrap over sessions gives the same intervals where it can (a test holds these to it). It is not used since
decisions at several looks ask for tails of some 1e-4, of which a bootstrap over 10 sessions knows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from calibration.arrays import Floats
from pipeline.stats.bursts import log_chance_of_few, longest_mean_burst
from pipeline.stats.intervals import Interval, Limit, outcome, student_quantile
from pipeline.stats.percentiles import percentiles

Statistic = Literal["p50", "p90", "p99", "mean"]
SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
"""The share of queries at or below each percentile."""
BOUNDED = ("p90", "p99")
"""Statistics of whose ratio no single session counts for more than ``clip_bound``."""
WEIGHT = 8
"""A session counts for no more than so many times what the limit allows ..."""
LEAST_CLIP = math.log(1.25)
"""... or for this, as a logarithm, where that is more."""
SESSION_REACH = 1.25
"""By more than so many times no session is slower than those that were seen, because of where its memory lies."""
BURST_MS = 20.0
"""Bursts in which queries exceed a limit last so long on average, or less; longer ones may not have been seen."""
BURST_REACH = 16 * BURST_MS
"""Where a query takes so long, a burst is one query."""
LEAST_GROUPS = 8
"""Student's t from fewer is too wide to be of use, and leans the more on the logarithms being normal."""

MARGIN = 1.4
"""An interval must shrink to 1 / 1.4 of the way to the limit, as it seems so far, to be decided four times in five."""
NUM_HALVINGS = 24
LEAST_SPREAD = 3
"""From fewer sessions nothing is said of how they spread."""

Bounds: TypeAlias = tuple[float, float, float]
"""Estimate, lower and upper bound."""
ErrorRate: TypeAlias = tuple[float, float]
"""The confidence over all looks, and the probability with which one bound at one look may be passed."""


@dataclass(frozen=True)
class IntervalSpec:
    """What an interval is of."""

    statistic: Statistic
    relative: bool
    """Its ratio, candidate / baseline; else the candidate's milliseconds."""
    limit: Limit = Limit(1.0, at_most=True)
    """What it is held to; as it stands here, nothing in particular."""
    apart_ms: float = math.inf
    """How far apart queries come, if they come by themselves instead of when the one before is done."""


def interval_of(tables_ms: Sequence[Floats], spec: IntervalSpec, error_rate: ErrorRate) -> Interval:
    """The interval of a statistic, from the latencies of the candidate, and of the baseline if there is one.

    Raises:
        ValueError: a ratio, and there is no baseline.
    """
    confidence, tail = error_rate
    if not spec.relative:
        return Interval(*statistic_bounds(tables_ms[0], spec.statistic, tail, spec.apart_ms), confidence)
    if len(tables_ms) < 2:
        raise ValueError("a ratio needs a baseline")
    return Interval(*ratio_bounds(tables_ms[0], tables_ms[1], spec.statistic, tail, spec.limit.bound), confidence)


def sessions_needed(tables_ms: Sequence[Floats], spec: IntervalSpec, error_rate: ErrorRate) -> float:
    """How many sessions in all would decide four times in five, as an interval narrows with the root of their number.

    Arguments as of ``interval_of``. Infinite where the estimate lies on the limit, or there is none.
    """
    num_sessions = len(tables_ms[0])
    if num_sessions < LEAST_SPREAD:
        return LEAST_GROUPS
    if num_sessions < LEAST_GROUPS:  # As if the sessions that are known had come again.
        num_copies = -(-LEAST_GROUPS // num_sessions)
        return max(
            sessions_needed([np.tile(table_ms, (num_copies, 1)) for table_ms in tables_ms], spec, error_rate),
            LEAST_GROUPS,
        )
    interval, statistic, limit = interval_of(tables_ms, spec, error_rate), spec.statistic, spec.limit
    if outcome(interval, limit) != "not decided":
        return num_sessions
    if math.isnan(interval.estimate):
        return math.inf
    if statistic in SHARES and not spec.relative and interval.estimate <= limit.bound:
        times = _times_longer(tables_ms[0], spec, interval.estimate, error_rate[1])
        return math.inf if math.isinf(times) else math.ceil(num_sessions * times)
    half = interval.high - interval.estimate if interval.estimate <= limit.bound else interval.estimate - interval.low
    distance = abs(interval.estimate - limit.bound)
    return math.ceil(num_sessions * (MARGIN * half / distance) ** 2) if distance else math.inf


def _times_longer(latency_ms: Floats, spec: IntervalSpec, center: float, tail: float) -> float:
    """How many times as many sessions would show that a percentile keeps its limit, above it."""
    share, bound_ms = SHARES[spec.statistic], spec.limit.bound

    def times(half: float, exceeded_ms: float) -> float:
        left = 1 - share - float((latency_ms > exceeded_ms).mean())
        return (MARGIN * half / left) ** 2 if left > 0 else math.inf

    by_ranks = times(_half_rank(latency_ms, center, share, tail), bound_ms)
    held_ms = bound_ms / SESSION_REACH
    far = times(_half_width((latency_ms > held_ms).mean(axis=1), tail), held_ms)
    log_chance = _log_chance(latency_ms, bound_ms, 1 - share, spec.apart_ms)
    return max(math.log(tail) / log_chance if log_chance else math.inf, min(by_ranks, far))


def statistic_bounds(latency_ms: Floats, statistic: Statistic, tail: float, apart_ms: float = math.inf) -> Bounds:
    """The statistic of one side, (num_sessions, num_queries); each bound is passed with probability ``tail``.

    ``apart_ms``: how far apart queries come, if they come by themselves.
    """
    if statistic == "mean":
        means = latency_ms.mean(axis=1)
        center, half = float(means.mean()), _half_width(means, tail)
        return center, center - half, center + half
    center, low, by_ranks = rank_bounds(latency_ms, statistic, tail)
    if len(latency_ms) < LEAST_GROUPS:
        return center, low, by_ranks
    allowed, most_ms = 1 - SHARES[statistic], max(float(latency_ms.max()), BURST_REACH)
    near = min(by_ranks, SESSION_REACH * _least_by_sessions(latency_ms, SHARES[statistic], tail))
    return (
        center,
        low,
        _least(
            lambda bound_ms: _log_chance(latency_ms, bound_ms, allowed, apart_ms) <= math.log(tail),
            near,
            max(near, most_ms),
        ),
    )


def rank_bounds(latency_ms: Floats, statistic: Statistic, tail: float) -> Bounds:
    """A percentile of one side and the values at the ranks between which it lies, by the spread between sessions."""
    share, num = SHARES[statistic], latency_ms.size
    ordered = np.sort(latency_ms, axis=None)
    center = float(percentiles(ordered, (share,))[0])
    if len(latency_ms) < LEAST_GROUPS:
        return center, 0.0, math.inf
    half = _half_rank(latency_ms, center, share, tail)
    high = math.ceil((share + half) * num) + 1
    while (low := math.floor((share - half) * num)) >= 1:
        if (below := _half_rank(latency_ms, float(ordered[low - 1]), share, tail)) <= half:
            break
        half = below
    return center, float(ordered[low - 1]) if low >= 1 else 0.0, float(ordered[high - 1]) if high <= num else math.inf


def _least_by_sessions(latency_ms: Floats, share: float, tail: float) -> float:
    """The least latency that the sessions' shares of queries above it allow to be this percentile, by their spread."""
    ordered = np.sort(latency_ms, axis=None)
    low, high = math.ceil(share * ordered.size) - 1, ordered.size - 1
    while low < high:
        middle = (low + high) // 2
        shares = (latency_ms > ordered[middle]).mean(axis=1)
        if float(shares.mean()) + _half_width(shares, tail) <= 1 - share:
            high = middle
        else:
            low = middle + 1
    return float(ordered[high])


def _log_chance(latency_ms: Floats, bound_ms: float, share: float, apart_ms: float) -> float:
    """The logarithm of how likely so few queries above ``bound_ms`` are, if these are that share and come in bursts."""
    above = latency_ms > bound_ms
    ending = min(-math.expm1(-min(bound_ms, apart_ms) / BURST_MS), 1 / longest_mean_burst(above))
    return log_chance_of_few(int(above.sum()), above.size, share, ending)


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least latency from ``low`` to ``high`` for which ``holds`` does, as for all greater ones; else infinite."""
    if holds(low):
        return low
    if not holds(high):
        return math.inf
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _half_rank(latency_ms: Floats, center: float, share: float, tail: float) -> float:
    """Of the interval of the share of queries at or below ``center``: no narrower than if they were independent."""
    independent = student_quantile(tail, len(latency_ms) - 1) * math.sqrt(share * (1 - share) / latency_ms.size)
    return max(_half_width((latency_ms <= center).mean(axis=1), tail), independent)


def ratio_bounds(
    candidate_ms: Floats, baseline_ms: Floats, statistic: Statistic, tail: float, held_to: float = 1.0
) -> Bounds:
    """The candidate's statistic over the baseline's, both (num_sessions, num_queries); the limit that it is held to."""
    candidate, baseline = session_statistics(candidate_ms, statistic), session_statistics(baseline_ms, statistic)
    if min(candidate.min(), baseline.min()) <= 0:  # Below what the clock can tell.
        return math.nan, 0.0, math.inf
    center, half = winsorized_mean(np.log(candidate / baseline), clip_bound(statistic, held_to), tail)
    return math.exp(center), math.exp(center - half), math.exp(center + half)


def clip_bound(statistic: Statistic, held_to: float) -> float:
    """How far beyond the middle one the logarithm of a session's ratio counts, if the ratio is held to that limit."""
    return max(LEAST_CLIP, WEIGHT * abs(math.log(held_to))) if statistic in BOUNDED else math.inf


def winsorized_mean(values: Floats, clip: float, tail: float) -> tuple[float, float]:
    """The mean of one value for each session, (num_sessions,), none further than ``clip`` from their median.

    Also the half of its interval's width, either end of which is passed with probability ``tail``.
    """
    median = float(np.median(values))
    clipped = np.clip(values, median - clip, median + clip)
    return float(clipped.mean()), _half_width(clipped, tail)


def session_statistics(latency_ms: Floats, statistic: Statistic) -> Floats:
    """The statistic of each session, (num_sessions,); percentiles are nearest-rank."""
    if statistic == "mean":
        return np.asarray(latency_ms.mean(axis=1))
    return np.asarray(percentiles(latency_ms, (SHARES[statistic],))[0])


def _half_width(values: Floats, tail: float) -> float:
    """Of the interval of the mean of one value for each session; infinite for too few."""
    if len(values) < LEAST_GROUPS:
        return math.inf
    widest, size = 0.0, 1
    while len(values) // size >= LEAST_GROUPS:
        num = len(values) // size
        groups = values[len(values) - num * size :].reshape(num, size).mean(axis=1)
        widest = max(widest, student_quantile(tail, num - 1) * float(groups.std(ddof=1)) / math.sqrt(num))
        size *= 2
    return widest


STATISTICS: dict[str, Statistic] = {"p50_ms": "p50", "p90_ms": "p90", "p99_ms": "p99", "mean_ms": "mean"}
THROUGHPUT = "throughput_per_s"
