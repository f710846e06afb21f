"""Latency measured fairly: the candidates take turns, block by block, and each number is defined before it is taken.

Definitions, in force wherever this project prints a latency:

- A *query* is one call of an engine on one batch, from handing over arrays in host memory to holding the outputs in
  host memory. Queries run one at a time; when the next is issued is the scenario's choice
  (``pipeline/latency/scenarios.py``), by default when the one before is done. Its *latency* is wall-clock time.
- *pXX* is the nearest-rank percentile: of n latencies in rising order the one at rank ``ceil(XX / 100 * n)``. Every
  percentile is thus a latency that occurred.
- *throughput* is samples per second of this one stream: batch size divided by mean latency, unless the scenario says
  otherwise.
- *speedup* is the baseline's p50 divided by the candidate's p50, at equal batch size.
- *device time* is what the backend says that the device took for the same query.

Read for this: MLPerf Inference LoadGen (say what a number means first, keep every sample), trtexec (warm-up in time
and in queries, a minimum duration), pyperf (call a measurement unstable and say so).
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calibration.arrays import Floats, Ints
from engines.timed_queries import BlockLength, QueriesElsewhere, QueryArrivals, Raw, run_for, run_queries
from pipeline.errors import ConfigError
from pipeline.latency.protocol import CONFIDENCE, Protocol
from pipeline.latency.scenarios import QueryTimes
from pipeline.stats.bootstrap import expanded_percentiles
from pipeline.stats.percentiles import percentiles

NS_PER_MS = 1e6
NUM_RESAMPLES = 2000
NUM_QUANTILES = 101
"""So many evenly spaced quantiles stand for a block in the bootstrap, whatever its number of queries."""


@dataclass(frozen=True)
class Candidate:
    """Something to time: an engine bound to one batch."""

    name: str
    batch_size: int
    call: Callable[[], object]
    """One query."""
    device_ms: Callable[[], float | None]
    """Device time of the last query, milliseconds; None where the backend cannot tell."""
    rest: Callable[[], object] = lambda: None
    """Told that others have their turn: it waits for what it still has under way."""
    elsewhere: QueriesElsewhere | None = None
    """Of an engine in another process: its queries are timed there, and nothing goes to and fro meanwhile."""


@dataclass(frozen=True)
class Latency:
    """A summary of latencies, milliseconds; percentiles are nearest-rank."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, eq=False)
class Queries:
    """Every recorded query of one candidate, in the order in which they ran; four arrays of shape (num_queries,)."""

    latency_ms: Floats
    block: Ints
    """The round that the query ran in, from 0."""
    started_ms: Floats
    """When it was due, since the first block of the whole measurement began."""
    device_ms: Floats
    """Device time; NaN where the backend did not tell."""

    def write(self, path: Path) -> None:
        """Keep them as a ``.npz`` with these four arrays."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            np.savez_compressed(
                stream,
                latency_ms=self.latency_ms,
                block=self.block,
                started_ms=self.started_ms,
                device_ms=self.device_ms,
            )


@dataclass(frozen=True)
class Timing:
    """What the protocol found for one candidate."""

    name: str
    batch_size: int
    latency_ms: Latency
    throughput_per_s: float
    """Samples per second."""
    device_ms: Latency | None
    """None where the backend does not tell."""
    num_queries: int
    stable: bool
    note: str
    """Empty, or why the numbers deserve less trust, with the numbers that say so."""
    queries: Queries


@dataclass(frozen=True)
class Speedup:
    """Baseline's p50 / candidate's p50, and the bounds of its 95 % interval."""

    ratio: float
    low: float
    high: float


def measure(
    candidates: Sequence[Candidate],
    protocol: Protocol,
    *,
    on_begin: Callable[[int], object] = lambda _began_ns: None,
    on_block: Callable[[int, int], object] = lambda _done, _total: None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[Timing]:
    """Time the candidates against each other; the result is in their order.

    Args:
        candidates: differ in name or batch size.
        protocol: how to measure.
        on_begin: told the clock's reading when the first block begins, which every ``started_ms`` counts from.
        on_block: told the number of blocks done and of all blocks, after each block.
        clock: nanoseconds; a test brings its own.

    Raises:
        ValueError: two candidates have the same name and batch size.
    """
    keys = [(candidate.name, candidate.batch_size) for candidate in candidates]
    if len(set(keys)) < len(keys):
        raise ValueError(f"benchmark: two candidates have the same name and batch size: {keys}")
    for candidate in candidates:
        run_unrecorded(candidate, protocol.warmup_queries, protocol.warmup_seconds, clock)
        candidate.rest()
    order = np.random.default_rng(protocol.seed)
    need_queries = -(-protocol.min_queries // protocol.num_blocks)
    need_ns = protocol.min_seconds * 1e9 / protocol.num_blocks

    done = BlockLength(need_queries, need_ns)
    blocks: list[list[Queries]] = [[] for _ in candidates]
    total = protocol.num_blocks * len(candidates)
    began_ns = clock()
    on_begin(began_ns)
    for round_ in range(protocol.num_blocks):
        for index in order.permutation(len(candidates)):
            run_unrecorded(candidates[index], protocol.settle_queries, 0.0, clock)
            raw = run_block(candidates[index], done, clock, protocol.load.query_arrivals((protocol.seed, round_)))
            candidates[index].rest()
            blocks[index].append(queries_from_raw(raw, round_, began_ns))
            on_block(sum(map(len, blocks)), total)
    return [
        timing_of(candidate.name, candidate.batch_size, joined(parts), protocol)
        for candidate, parts in zip(candidates, blocks)
    ]


def latency_from_ms(values: Floats) -> Latency:
    """Summarise latencies, (n,) milliseconds with n >= 1; see the module's definitions."""
    p50, p90, p95, p99 = percentiles(values, (0.50, 0.90, 0.95, 0.99)).tolist()
    return Latency(mean=float(values.mean()), p50=p50, p90=p90, p95=p95, p99=p99)


def speedup(baseline: Timing, timing: Timing, *, seed: int) -> Speedup:
    """How much faster ``timing`` is than ``baseline``: the ratio of p50, with a bootstrap interval.

    The interval is a percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13),
    as wide as so few rounds ask for (``pipeline/stats/bootstrap.py``), that draws whole rounds with replacement, the
    same rounds for both: queries of a block resemble each other, and what disturbed a round disturbed both.

    Raises:
        ValueError: the two were not measured together, or at different batch sizes.
    """
    num_blocks = int(baseline.queries.block[-1]) + 1
    if baseline.batch_size != timing.batch_size or num_blocks != int(timing.queries.block[-1]) + 1:
        raise ValueError(f"speedup: {baseline.name} and {timing.name} differ in batch size or in number of blocks")
    picks = picks_of_blocks(num_blocks, seed)
    ratios = _resampled_medians(baseline.queries, picks) / _resampled_medians(timing.queries, picks)
    ratio = baseline.latency_ms.p50 / timing.latency_ms.p50
    return Speedup(ratio, *expanded_percentiles(ratios, ratio, num_blocks, (1 - CONFIDENCE) / 2))


def p50_interval_ms(timing: Timing, *, seed: int) -> tuple[float, float]:
    """The 95 % interval of the p50, milliseconds, by the same bootstrap as ``speedup``."""
    num_blocks = int(timing.queries.block[-1]) + 1
    picks = picks_of_blocks(num_blocks, seed)
    medians = _resampled_medians(timing.queries, picks)
    low, high = expanded_percentiles(medians, timing.latency_ms.p50, num_blocks, (1 - CONFIDENCE) / 2)
    return low, high


def p50_ratio_apart(timing: Timing, before: Timing, *, seed: int) -> tuple[float, float, float]:
    """p50 / p50 of two measurements, one after the other, and the bounds of its 95 % interval.

    The same bootstrap as ``speedup``, but each draws its own blocks: none ran beside one of the other. By
    how much the machine differed from the one measurement to the other is not in it.
    """
    both = (timing.queries, before.queries)
    sides = [(int(queries.block[-1]) + 1, partial(_resampled_medians, queries)) for queries in both]
    return ratio_apart(timing.latency_ms.p50 / before.latency_ms.p50, sides, seed=seed)


def ratio_apart(
    ratio: float, sides: Sequence[tuple[int, Callable[[Ints], Floats]]], *, seed: int
) -> tuple[float, float, float]:
    """A ratio of two measurements, one after the other, and the bounds of its 95 % interval, by bootstrap.

    ``sides``: of either its number of blocks, and what gives its value of resamples of them, see ``picks_of_blocks``.
    """
    over, under = (
        resampled(picks_of_blocks(num_blocks, (seed, side))) for side, (num_blocks, resampled) in enumerate(sides)
    )
    num_blocks = min(num_blocks for num_blocks, _ in sides)
    return ratio, *expanded_percentiles(over / under, ratio, num_blocks, (1 - CONFIDENCE) / 2)


def picks_of_blocks(num_blocks: int, seed: int | tuple[int, int]) -> Ints:
    """Which blocks each resample of a bootstrap has, (NUM_RESAMPLES, num_blocks)."""
    return np.random.default_rng(seed).integers(num_blocks, size=(NUM_RESAMPLES, num_blocks))


def queries_from_npz(path: Path) -> Queries:
    """Read back what ``Queries.write`` wrote.

    Raises:
        ConfigError: the file is missing, or is not such a file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return Queries(**{name: arrays[name] for name in ("latency_ms", "block", "started_ms", "device_ms")})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: holds no raw latencies ({error}); keep the report's folder whole") from error


def run_unrecorded(candidate: Candidate, num_queries: int, seconds: float, clock: Callable[[], int]) -> int:
    """Run so many queries at least, and for so long at least; how many these were."""
    if candidate.elsewhere is not None:
        return candidate.elsewhere.run_for(num_queries, seconds)
    return run_for(candidate.call, num_queries, seconds, clock)


def run_block(candidate: Candidate, done: BlockLength, clock: Callable[[], int], arrivals: QueryArrivals) -> Raw:
    """Run one block, in the process that holds the engine.

    Args:
        candidate: what is timed.
        done: when the block is over.
        clock: nanoseconds; all processes of a machine share the one that another process takes.
        arrivals: when queries are due.
    """
    if candidate.elsewhere is not None:
        return candidate.elsewhere.run_queries(done, arrivals)
    return run_queries(candidate.call, candidate.device_ms, done, clock, arrivals.begin(clock))


def queries_from_raw(raw: Raw, round_: int, began_ns: int) -> Queries:
    """The queries of a block of that round, in a measurement whose first block began then."""
    starts, ends, device = raw
    start_ns, end_ns = np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64)
    return Queries(
        latency_ms=(end_ns - start_ns) / NS_PER_MS,
        block=np.full(len(starts), round_, dtype=np.int64),
        started_ms=(start_ns - began_ns) / NS_PER_MS,
        device_ms=np.asarray(device, dtype=np.float64),
    )


def joined(parts: Sequence[Queries]) -> Queries:
    """The queries of several blocks, in that order."""
    return Queries(
        latency_ms=np.concatenate([part.latency_ms for part in parts]),
        block=np.concatenate([part.block for part in parts]),
        started_ms=np.concatenate([part.started_ms for part in parts]),
        device_ms=np.concatenate([part.device_ms for part in parts]),
    )


def timing_of(name: str, batch_size: int, queries: Queries, protocol: Protocol) -> Timing:
    """What the protocol says of the recorded queries of one engine."""
    latency = latency_from_ms(queries.latency_ms)
    num_queries = len(queries.latency_ms)
    num_timed = int(np.count_nonzero(~np.isnan(queries.device_ms)))
    unstable = _why_unstable(queries, protocol)
    run, load = QueryTimes(queries.latency_ms, queries.started_ms, queries.block), protocol.load
    notes = [unstable, load.note(run)]
    if num_queries < 100:
        notes.append(f"p99 is the slowest of only {num_queries} queries")
    if 0 < num_timed < num_queries:
        notes.append(f"device time is known for {num_timed} of {num_queries} queries only, so none is given")
    return Timing(
        name=name,
        batch_size=batch_size,
        latency_ms=latency,
        throughput_per_s=load.throughput_per_s(batch_size, run),
        device_ms=latency_from_ms(queries.device_ms) if num_timed == num_queries else None,
        num_queries=num_queries,
        stable=not unstable,
        note="; ".join(note for note in notes if note),
        queries=queries,
    )


def block_medians(queries: Queries) -> Floats:
    """The median latency of each block, (num_blocks,) milliseconds."""
    return np.array([np.median(block) for block in latency_blocks(queries)])


def latency_blocks(queries: Queries) -> list[Floats]:
    """The latencies of each block, milliseconds."""
    edges = np.flatnonzero(np.diff(queries.block)) + 1
    return np.split(queries.latency_ms, edges)


def _why_unstable(queries: Queries, protocol: Protocol) -> str:
    """Empty if stable, else ``unstable: …`` with the numbers against their bounds."""
    medians = block_medians(queries)
    half = len(medians) // 2
    spread = float(medians.std(ddof=1) / medians.mean())
    drift = float(np.median(medians[-half:]) / np.median(medians[:half]) - 1)
    reasons = []
    if spread > protocol.max_spread:
        reasons.append(f"block medians spread by {spread:.1%} (bound {protocol.max_spread:.1%})")
    if abs(drift) > protocol.max_drift:
        way = "slower" if drift > 0 else "faster"
        reasons.append(f"the later half is {abs(drift):.1%} {way} than the earlier (bound {protocol.max_drift:.1%})")
    return f"unstable: {', '.join(reasons)}; reduce the load on this machine, or raise min_seconds" if reasons else ""


def _resampled_medians(queries: Queries, picks: Ints) -> Floats:
    """The median over the picked blocks: ``picks`` (num_resamples, num_blocks) -> (num_resamples,)."""
    grid = np.linspace(0, 1, NUM_QUANTILES)
    quantiles = np.stack([np.quantile(block, grid) for block in latency_blocks(queries)])
    return np.asarray(np.median(quantiles[picks].reshape(len(picks), -1), axis=1))
