"""Candidate and baseline alternate until every limit is decided, or the time that was given is over.

Definitions, besides those of ``pipeline/latency/benchmark.py``:

- A *session*: both engines are loaded again, in random order and with the free memory shuffled, warmed up, alternated,
  and unloaded. Two loads of one file differ by more than chance between queries explains, by where their memory came to
  lie (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!", ASPLOS 2009; Curtsinger and
  Berger, "Stabilizer", ASPLOS 2013). A new engine must not be blamed for one unlucky session, so the spread between
  sessions is what an interval is made of. The first session is not counted.
- A *round* is four blocks, ABBA or BAAB by the toss of a coin (one letter each for candidate and baseline), so that a
  machine which grows slower or faster in the meantime treats both alike. Without a baseline it is two blocks. All
  blocks of a run have the same number of queries: as many as the slower side runs in ``block_ms`` (server: as arrive in
  it, by a Poisson process at least 30, so that a line can form). All sessions have the same number of rounds: as many
  as take ``load_seconds``, or as long as loading takes.
- The *ratio* of a statistic is the candidate's over the baseline's within a session, and of these the geometric mean
  over sessions; those of p90 and p99 are clipped (``pipeline/latency/intervals.py``). Above 1 the candidate is slower.
- A *look* is a decision on all sessions so far: the first after 8 sessions, each further one after 1.5 times as many,
  the last when the time is over. How many looks the time will hold is planned after the first session. Who looks often
  errs often; so the error that ``confidence`` leaves is shared out equally among the planned looks (Bonferroni), which
  holds however the looks depend on each other. Jennison and Turnbull, Group Sequential Methods (1999), has narrower
  bounds, for statistics with independent increments; those here are estimated again at each look.
- A limit is *decided* at the first look at which the whole interval lies on one side of it. This stands; the interval
  that is shown is that of the last look at which it says the same.

The confidence is that of each limit. Who has n limits and wants it of all of them together gives a confidence of
``1 - (1 - confidence) / n``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import numpy as np

from calibration.arrays import Floats
from engines.timed_queries import BlockLength
from pipeline.latency.benchmark import (
    NS_PER_MS,
    Candidate,
    Queries,
    joined,
    queries_from_raw,
    run_block,
    run_unrecorded,
)  # fmt: skip
from pipeline.latency.intervals import LEAST_GROUPS, ErrorRate, IntervalSpec, Statistic, interval_of, sessions_needed
from pipeline.latency.protocol import Pairing
from pipeline.latency.scenarios import QueryTimes
from pipeline.stats.intervals import Interval, Limit, Outcome, outcome, planned_looks

LEAST_POISSON = 30
LEAST_QUERIES = {"p50": 20, "mean": 20, "p90": 50, "p99": 110}
"""A session has at least so many recorded queries of each side, where there is such a limit and the time allows it."""
FEWEST_QUERIES = {"p50": 10, "mean": 10, "p90": 25, "p99": 100}
"""... and so many for a ratio, whatever the time: of fewer, p99 is the slowest."""
WANTED_SESSIONS = 12
"""Where the time is short, a session takes such a part of it."""
PADDING = (16, 1 << 20)
"""So many pieces of memory, of up to so many bytes each, are taken before a session, and every other one given back."""

LoadEngine: TypeAlias = Callable[[], AbstractContextManager[Candidate]]
"""Loads an engine, and unloads it on leaving; the candidate's own arrays should be made again too."""


@dataclass(frozen=True)
class LatencyLimit:
    """A limit on a latency statistic that the candidate must keep."""

    name: str
    batch_size: int
    statistic: Statistic
    limit: Limit
    relative: bool
    """The limit is on the ratio candidate / baseline; else on the candidate's milliseconds."""


@dataclass(frozen=True)
class LimitResult:
    """Whether one limit is kept, and by what interval."""

    latency_limit: LatencyLimit
    outcome: Outcome
    interval: Interval
    """A ratio, or milliseconds."""
    more_rounds: float
    """About so many further rounds would decide, four times in five; 0 if it is decided, infinity if the estimate lies
    on the limit."""
    more_seconds: float
    """How long these would take."""


@dataclass(frozen=True, eq=False)
class PairedResult:
    """The results, in the order of the limits, and all that was measured."""

    limit_results: tuple[LimitResult, ...]
    candidate: Queries
    """``block`` is the number of the round."""
    baseline: Queries | None
    num_sessions: int
    num_rounds: int
    """In all sessions together, as many in each."""
    seconds: float
    """All of it, with warm-up and loading."""
    began_ns: int
    """When the first round began, on the clock of the run."""
    confidence: float
    tail: float
    """The probability with which one bound at one look may be passed."""
    notes: tuple[str, ...]
    """Why latencies say more of the line than of an engine."""
    apart_ms: float = math.inf
    """How far apart queries came, if they came by themselves."""

    def interval(self, statistic: Statistic, *, relative: bool) -> Interval:
        """The interval of any statistic of this run, for the limit that it has, or as wide as if it had one.

        Raises:
            ValueError: a ratio, and there was no baseline.
        """
        tables = [side.latency_ms.reshape(self.num_sessions, -1) for side in (self.candidate, self.baseline) if side]
        limits = (result.latency_limit for result in self.limit_results)
        bounds = (limit.limit for limit in limits if (limit.statistic, limit.relative) == (statistic, relative))
        spec = IntervalSpec(statistic, relative, next(bounds, IntervalSpec.limit), self.apart_ms)
        return interval_of(tables, spec, (self.confidence, self.tail))


def compare_paired(
    candidate: LoadEngine,
    baseline: LoadEngine | None,
    limits: Sequence[LatencyLimit],
    pairing: Pairing,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> PairedResult:
    """Run sessions until every limit is decided or ``max_seconds`` are over.

    One session is run at least, however long it takes.

    Args:
        candidate: loads what may be deployed.
        baseline: loads what it is held against, at the same batch size; None if no limit is relative.
        limits: at least one, of the candidate's batch size.
        pairing: how to compare.
        clock: nanoseconds; a test brings its own.

    Raises:
        ValueError: no limit, a relative one with no baseline, or another batch size.
    """
    if not limits or (baseline is None and any(limit.relative for limit in limits)):
        raise ValueError("at least one limit, and a baseline where one is relative")
    start_ns = clock()
    sides = [candidate] if baseline is None else [candidate, baseline]
    with _PairedRun(sides, limits, pairing, clock) as paired_run:
        looks, tail = [0], math.nan
        results = [_not_measured_yet(limit, pairing) for limit in limits]
        while True:
            paired_run.run()
            seconds = (clock() - start_ns) / 1e9
            num_fitting = math.floor((pairing.max_seconds - seconds) / paired_run.seconds_per_session())
            if paired_run.num_sessions == 1:
                num_soaked = 1 + math.ceil((pairing.min_seconds - seconds) / paired_run.seconds_per_session())
                looks = planned_looks(max(LEAST_GROUPS, num_soaked), 1 + num_fitting)
                tail = (1 - pairing.confidence) / 2 / len(looks)
            if paired_run.num_sessions in looks[:-1] or num_fitting < 1:
                results = [_updated(result, paired_run, (pairing.confidence, tail)) for result in results]
            if num_fitting < 1 or all(result.outcome != "not decided" for result in results):
                break
    return paired_run.result(results, seconds, tail)


class _PairedRun:
    """All sessions so far: a context manager that keeps an engine loaded no longer than it must."""

    def __init__(
        self, sides: Sequence[LoadEngine], limits: Sequence[LatencyLimit], pairing: Pairing, clock: Callable[[], int]
    ) -> None:
        self._sides, self._limits, self._pairing, self._clock = sides, limits, pairing, clock
        self._random = np.random.default_rng(pairing.seed)
        self._kept = ExitStack()
        self._candidates: list[Candidate] = []
        self._block_queries = self.num_rounds = self.num_sessions = 0
        self._rounds_per_session = 0
        self._queries: list[list[Queries]] = [[] for _ in sides]
        self.began_ns = 0
        self.apart_ms = pairing.load.apart_ms

    def __enter__(self) -> _PairedRun:
        """The session that is not counted: warm up, and find how many queries make a block."""
        with ExitStack() as stack:
            candidates = self._load(stack)
            self._block_queries = max(_block_queries(side, self._pairing, self._clock) for side in candidates)
            if (load := self._pairing.load).scenario == "server":
                arriving = math.ceil(self._pairing.block_ms * load.queries_per_s / 1e3)
                least = LEAST_POISSON if load.arrivals == "poisson" else self._pairing.min_block_queries
                self._block_queries = max(arriving, least)
            if not self._pairing.reload:
                self._candidates, self._kept = candidates, stack.pop_all()
        self.began_ns = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.__exit__(kind, error, trace)

    def run(self) -> None:
        """One more session."""
        start_ns = self._clock()
        with ExitStack() as stack:
            candidates = self._candidates or self._load(stack)
            for side in candidates:
                run_unrecorded(side, self._pairing.warmup_queries if self._pairing.reload else 0, 0.0, self._clock)
                side.rest()
            ready_ns = self._clock()
            if not self.num_sessions:
                need_ns = max(self._pairing.load_seconds * 1e9, ready_ns - start_ns)
                while self._clock() - ready_ns < need_ns or self._lacks_queries(self._clock() - start_ns):
                    self._round(candidates)
                self._rounds_per_session = self.num_rounds
            else:
                for _ in range(self._rounds_per_session):
                    self._round(candidates)
        self.num_sessions += 1

    def _lacks_queries(self, spent_ns: int) -> bool:
        """Whether the first session needs more queries.

        Rather than fewer than ``WANTED_SESSIONS``, each has fewer queries; milliseconds are judged by all together.
        """
        least = [FEWEST_QUERIES[limit.statistic] for limit in self._limits if limit.relative]
        if spent_ns < self._pairing.max_seconds * 1e9 / WANTED_SESSIONS:
            least += [LEAST_QUERIES[limit.statistic] for limit in self._limits]
        return 2 * self._block_queries * self.num_rounds < max(least, default=0)

    def seconds_per_session(self) -> float:
        """Loading included."""
        return max(self._clock() - self.began_ns, 1) / 1e9 / self.num_sessions

    def latencies_ms(self) -> list[Floats]:
        """Those of candidate and baseline, each (num_sessions, num_queries)."""
        return [
            np.concatenate([part.latency_ms for part in parts]).reshape(self.num_sessions, -1)
            for parts in self._queries
        ]

    def result(self, results: Sequence[LimitResult], seconds: float, tail: float) -> PairedResult:
        """The outcome of the whole run."""
        queries = [joined(parts) for parts in self._queries]
        query_times = [QueryTimes(side.latency_ms, side.started_ms, side.block) for side in queries]
        notes = [self._pairing.load.note(run) for run in query_times]
        return PairedResult(
            limit_results=tuple(results),
            candidate=queries[0],
            baseline=queries[1] if len(queries) > 1 else None,
            num_sessions=self.num_sessions,
            num_rounds=self.num_rounds,
            seconds=seconds,
            began_ns=self.began_ns,
            confidence=self._pairing.confidence,
            tail=tail,
            notes=tuple(f"{side}: {note}" for side, note in zip(("candidate", "baseline"), notes) if note),
            apart_ms=self.apart_ms,
        )

    def _load(self, stack: ExitStack) -> list[Candidate]:
        """Load all sides, in random order, into memory that was shuffled; the padding goes with the stack."""
        num, most = PADDING
        padding = [np.ones(int(size), dtype=np.uint8) for size in self._random.integers(1, most, num)]
        stack.callback(padding[::2].clear)
        del padding
        by_index: dict[int, Candidate] = {}
        for index in self._random.permutation(len(self._sides)):
            by_index[int(index)] = stack.enter_context(self._sides[index]())
        candidates = [by_index[index] for index in range(len(self._sides))]
        sizes = {side.batch_size for side in candidates} | {limit.batch_size for limit in self._limits}
        if len(sizes) > 1:
            raise ValueError(f"{candidates[0].name}: engines and limits of different batch sizes: {sorted(sizes)}")
        return candidates

    def _round(self, candidates: Sequence[Candidate]) -> None:
        first = int(self._random.integers(len(candidates)))
        order = [first, 1 - first, 1 - first, first] if len(candidates) > 1 else [0, 0]
        for place, index in enumerate(order):
            run_unrecorded(candidates[index], self._pairing.settle_queries, 0.0, self._clock)
            seed = (self._pairing.seed, self.num_rounds, order[:place].count(index))
            block = BlockLength(self._block_queries)
            raw = run_block(candidates[index], block, self._clock, self._pairing.load.query_arrivals(seed))
            candidates[index].rest()
            self._queries[index].append(queries_from_raw(raw, self.num_rounds, self.began_ns))
        self.num_rounds += 1


def _block_queries(side: Candidate, pairing: Pairing, clock: Callable[[], int]) -> int:
    """Warm up; how many queries of this side make a block."""
    run_unrecorded(side, pairing.warmup_queries, pairing.warmup_seconds / 2, clock)
    start_ns = clock()
    num = run_unrecorded(side, 1, pairing.warmup_seconds / 2, clock)
    each_ms = (clock() - start_ns) / NS_PER_MS / num
    side.rest()
    return max(math.ceil(pairing.block_ms / each_ms) if each_ms > 0 else 1, pairing.min_block_queries)


def _not_measured_yet(limit: LatencyLimit, pairing: Pairing) -> LimitResult:
    nothing = Interval(math.nan, -math.inf, math.inf, pairing.confidence)
    return LimitResult(limit, "not decided", nothing, math.inf, math.inf)


def _updated(before: LimitResult, paired_run: _PairedRun, error_rate: ErrorRate) -> LimitResult:
    """The result at this look; what was decided before stands."""
    limit, latencies_ms = before.latency_limit, paired_run.latencies_ms()
    rounds_per_session = paired_run.num_rounds / paired_run.num_sessions
    spec = IntervalSpec(limit.statistic, limit.relative, limit.limit, paired_run.apart_ms)
    interval = interval_of(latencies_ms, spec, error_rate)
    decision = outcome(interval, limit.limit)
    if decision != "not decided" and before.outcome in ("not decided", decision):
        return LimitResult(limit, decision, interval, 0.0, 0.0)
    if before.outcome != "not decided":
        return before
    more = max(sessions_needed(latencies_ms, spec, error_rate) - paired_run.num_sessions, 1.0)
    return LimitResult(
        limit, "not decided", interval, more * rounds_per_session, more * paired_run.seconds_per_session()
    )
