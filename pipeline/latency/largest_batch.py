"""The largest batch that keeps a bound of latency, with the interval in which it lies.

Larger batches take longer, so it is found by halving. First roughly, by a few queries of each batch; then, from there
up and down in growing steps, by sessions as in a gate (``paired.py``): a batch keeps the bound, breaks it, or is not
decided in the time. The largest that keeps it for certain, below all that break it for certain, is the interval's lower
end; its upper end lies before the smallest that breaks it, above all that keep it. The error that the confidence leaves
is shared out among all the batches that may be tried (Bonferroni). Where a batch is faster than a smaller one, as where
a kernel is better for multiples of eight, the answer is of the batches that were tried.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import ConfigError
from pipeline.latency.benchmark import NS_PER_MS, Candidate, latency_from_ms
from pipeline.latency.intervals import STATISTICS
from pipeline.latency.paired import LatencyLimit, compare_paired
from pipeline.latency.protocol import Pairing
from pipeline.stats.intervals import Limit, Outcome

_BOUND = re.compile(rf"(?P<quantity>{'|'.join(STATISTICS)})\s*<=\s*(?P<ms>\d+\.?\d*|\.\d+)")
MOST_BATCH = 4096
"""Larger ones are not tried."""
ROUGH_QUERIES = (3, 20)
"""Of each batch: so many at least, and not more than so many ..."""
ROUGH_NS = 0.2e9
"""... after so long."""
STEP = 32
"""The steps begin at a 32nd of the batch that was found roughly."""

LoadBatch = Callable[[int], AbstractContextManager[Candidate]]
"""Loads the engine, bound to a batch of that size."""


@dataclass(frozen=True)
class LatencyBound:
    """Such as ``p99_ms <= 20``."""

    quantity: str
    """``p50_ms``, ``p90_ms``, ``p99_ms`` or ``mean_ms``."""
    ms: float

    def __str__(self) -> str:
        return f"{self.quantity} <= {self.ms:.12g}"


def bound_from_text(text: str) -> LatencyBound:
    """Read a bound strictly.

    Raises:
        ConfigError: it is none.
    """
    match = _BOUND.fullmatch(text.strip())
    if match is None or float(match["ms"]) <= 0:
        raise ConfigError(
            f"largest_batch is '{text}', which is no bound of latency; write {', '.join(STATISTICS)} and milliseconds "
            "above 0, such as 'p99_ms <= 20'"
        )
    return LatencyBound(match["quantity"], float(match["ms"]))


@dataclass(frozen=True)
class TriedBatch:
    """One batch size, judged by sessions."""

    batch_size: int
    outcome: Outcome
    """Whether it keeps the bound."""
    estimate_ms: float | None
    low_ms: float | None
    high_ms: float | None
    """Of the bound's statistic; None where so few queries give none."""
    throughput_per_s: float
    """Samples per second of one stream: batch size / mean latency."""
    num_queries: int
    num_loads: int


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch of one engine that keeps a bound."""

    name: str
    """The engine's."""
    bound: str
    batch_size: int
    """The estimate; 0: not even the smallest keeps the bound."""
    low: int
    """The largest that keeps it for certain; 0: none does."""
    high: int
    """The largest that may keep it."""
    engine_max: int
    """The largest that the engine takes, or that was asked about."""
    confidence: float
    throughput_per_s: float | None
    """At ``batch_size``; None where that is 0."""
    tried: tuple[TriedBatch, ...]
    """In order of the batch size."""
    sentence: str


def find_largest_batch(
    name: str, sizes: Sequence[int], load: LoadBatch, bound: LatencyBound, pairing: Pairing
) -> LargestBatch:
    """Try batches until it is known between which two the bound lies.

    Args:
        name: the engine's.
        sizes: the batches that it takes, rising, at least one.
        load: of one of them.
        bound: of the latency of a query, which is one batch.
        pairing: how long each batch may take; its confidence is that of the whole answer.
    """
    rough = _rough(sizes, load, bound)
    num_steps = 2 * (STEP.bit_length() + 2)
    each = replace(pairing, confidence=1 - (1 - pairing.confidence) / num_steps)
    tried: dict[int, TriedBatch] = {}

    def judged(index: int) -> Outcome:
        size = sizes[index]
        if size not in tried:
            tried[size] = _tried(size, load, bound, each)
        return tried[size].outcome

    _step(judged, rough, -1, "pass", sizes)
    _step(judged, rough, 1, "fail", sizes)
    return _answer(name, sizes, bound, pairing.confidence, [tried[size] for size in sorted(tried)])


def _step(judged: Callable[[int], Outcome], start: int, way: int, until: Outcome, sizes: Sequence[int]) -> None:
    """Judge batches from an index on, up or down in growing steps, until one comes out so, or there is none left."""
    index, step = start, max(1, (start + 1) // STEP)
    last = 0 if way < 0 else len(sizes) - 1
    while judged(index) != until and index != last:
        index = min(max(index + way * step, 0), len(sizes) - 1)
        step *= 2


def _rough(sizes: Sequence[int], load: LoadBatch, bound: LatencyBound) -> int:
    """The index of the largest batch of which a few queries keep the bound; 0 if none do."""
    low, high, step = 0, len(sizes), 1
    while step < high:  # Doubling first: a batch far beyond the bound may take minutes, or all of the memory.
        if not _keeps(sizes[step], load, bound):
            high = step
            break
        low, step = step, 2 * step
    if high == len(sizes) and _keeps(sizes[-1], load, bound):
        return len(sizes) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _keeps(sizes[middle], load, bound) else (low, middle)
    return low


def _keeps(size: int, load: LoadBatch, bound: LatencyBound) -> bool:
    least, most = ROUGH_QUERIES
    with load(size) as candidate:
        candidate.call()
        latencies: list[float] = []
        begin = time.perf_counter_ns()
        while len(latencies) < least or (len(latencies) < most and time.perf_counter_ns() - begin < ROUGH_NS):
            before = time.perf_counter_ns()
            candidate.call()
            latencies.append((time.perf_counter_ns() - before) / NS_PER_MS)
    # The median stands for every statistic: of so few, a tail is the slowest.
    return bool(np.median(latencies) <= bound.ms)


def _tried(size: int, load: LoadBatch, bound: LatencyBound, pairing: Pairing) -> TriedBatch:
    limit = LatencyLimit(str(bound), size, STATISTICS[bound.quantity], Limit(bound.ms, at_most=True), relative=False)
    paired = compare_paired(lambda: load(size), None, [limit], pairing)
    result, latency_ms = paired.limit_results[0], paired.candidate.latency_ms
    interval = result.interval
    estimate, low, high = (
        value if math.isfinite(value) else None for value in (interval.estimate, interval.low, interval.high)
    )
    per_s = size / latency_from_ms(latency_ms).mean * 1e3
    return TriedBatch(size, result.outcome, estimate, low, high, per_s, len(latency_ms), paired.num_sessions)


def _answer(
    name: str, sizes: Sequence[int], bound: LatencyBound, confidence: float, tried: Sequence[TriedBatch]
) -> LargestBatch:
    keep, broken = ([each.batch_size for each in tried if each.outcome == kind] for kind in ("pass", "fail"))
    low = max((size for size in keep if size < min(broken, default=math.inf)), default=0)
    beyond = [size for size in broken if size > max(keep, default=0)]
    high = max((size for size in sizes if size < min(beyond)), default=0) if beyond else sizes[-1]
    likely = [each for each in tried if low <= each.batch_size <= high and (each.estimate_ms or math.inf) <= bound.ms]
    best = max(likely, key=lambda each: each.batch_size, default=None)
    batch_size, per_s = (0, None) if best is None else (best.batch_size, best.throughput_per_s)
    sentence = f"{name}: {_words(batch_size, low, high, sizes[-1])} {bound} ({confidence:.0%} interval {low} to {high})"
    if best is not None:
        sentence += f", at {best.throughput_per_s:,.0f} samples per second"
    if keep and low < max(keep):
        sentence += "; a smaller batch than one that keeps it does not: see the table"
    return LargestBatch(name, str(bound), batch_size, low, high, sizes[-1], confidence, per_s, tuple(tried), sentence)


def _words(batch_size: int, low: int, high: int, most: int) -> str:
    if not high:
        return "no batch keeps"
    if low == most:
        return f"even the largest batch, {most}, keeps"
    return f"batches of up to {batch_size} keep" if batch_size else "it is not certain that any batch keeps"
