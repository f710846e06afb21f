"""The latency budgets of a gate: candidate and baseline take turns in a process of their own, until all is decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from calibration.arrays import Floats
from calibration.data.batches import Samples
from engines.contract import Array
from pipeline.artifact import Engine
from pipeline.engine_runner import runner_of
from pipeline.errors import ConfigError
from pipeline.gate.budget import Budget
from pipeline.gate.case import Known
from pipeline.gate.checks import Asked, Sides, told, unsettled
from pipeline.gate.record import Check, Estimate, LatencyMeasurement, Percentile
from pipeline.json_record import finite
from pipeline.latency.benchmark import NS_PER_MS, Candidate, Queries, latency_from_ms
from pipeline.latency.intervals import LEAST_GROUPS, STATISTICS, THROUGHPUT, Statistic
from pipeline.latency.offline import batches_in_memory, offline, streaming_runner
from pipeline.latency.paired import Answer, Question, ask
from pipeline.latency.paired import Asked as Run
from pipeline.latency.protocol import Pairing
from pipeline.latency.scenarios import Load
from pipeline.machine import child_process
from pipeline.page.numbers import ms_text
from pipeline.stages.benchmark import candidate_of
from pipeline.stats.intervals import Interval, Limit

SHOWN: tuple[Statistic, ...] = ("p50", "p90", "p99", "mean")


@dataclass(frozen=True)
class Bout:
    """One engine at one batch size, beside the baseline if there is one, and the budgets that this decides."""

    variant: str
    batch_size: int
    budgets: tuple[Budget, ...]


@dataclass(frozen=True, eq=False)
class Fought:
    """What a bout came to."""

    bout: Bout
    run: Run


def bouts_from(asked: Sequence[Asked]) -> tuple[Bout, ...]:
    """The bouts that budgets of latency and throughput ask for."""
    found: dict[tuple[str, int], list[Budget]] = {}
    for variant, budget in asked:
        if budget.quantity.kind == "latency":
            found.setdefault((variant, budget.batch_size), []).append(budget)
    return tuple(Bout(variant, size, tuple(own)) for (variant, size), own in found.items())


def question_from(budget: Budget) -> Question:
    """What a budget of latency or throughput asks of the latencies."""
    if budget.quantity.name == THROUGHPUT:
        # Samples per second of one stream are batch size / mean latency: at least so many is at most so long.
        bound = 1 / budget.bound if budget.relative else 1e3 * budget.batch_size / budget.bound
        return Question(budget.text, budget.batch_size, "mean", Limit(bound, at_most=True), budget.relative)
    limit = Limit(budget.bound, budget.at_most)
    return Question(budget.text, budget.batch_size, STATISTICS[budget.quantity.name], limit, budget.relative)


def interval_for(budget: Budget, latency: Interval) -> Interval:
    """The interval of the budget's own quantity, from that of the latency (milliseconds, or a ratio)."""
    if budget.quantity.name != THROUGHPUT:
        return latency
    scale = 1.0 if budget.relative else 1e3 * budget.batch_size
    low, high = scale / latency.high, scale / latency.low if latency.low > 0 else math.inf
    return Interval(scale / latency.estimate, low, high, latency.confidence)


def checks_from(fought: Fought, max_drift: float) -> Iterator[tuple[Asked, Check]]:
    """The check of each of a bout's budgets; not decided where an engine was unsteady against itself."""
    for budget, answer in zip(fought.bout.budgets, fought.run.answers):
        one = fought.bout.variant, budget
        check = told(one, (answer.outcome, interval_for(budget, answer.interval)), more_of(answer, fought.run))
        drift = drift_of(fought.run, relative=budget.relative)
        yield one, unsettled(check, budget, why_unsteady(fought.bout.variant, budget, drift, max_drift))


def drift_of(run: Run, *, relative: bool) -> float:
    """By which share the later half of the rounds was slower than the earlier, by p50; below 0: faster.

    Args:
        run: what was measured.
        relative: of the candidate over the baseline, round by round, instead of the candidate alone; what slowed down
            both is then no drift.
    """
    medians = _round_medians(run.candidate)
    if relative and run.baseline is not None:
        medians = medians / _round_medians(run.baseline)
    half = len(medians) // 2
    return float(np.median(medians[-half:]) / np.median(medians[:half]) - 1) if half else 0.0


def why_unsteady(name: str, budget: Budget, drift: float, max_drift: float) -> list[str]:
    """A phrase if the drift is too large."""
    if abs(drift) <= max_drift:
        return []
    over = " beside the baseline" if budget.relative else ""
    way = "slower" if drift > 0 else "faster"
    return [
        f"{name} against itself{over} was {abs(drift):.0%} {way} in the later half of its rounds than in the earlier, "
        f"above max_drift {max_drift:.0%}"
    ]


def _round_medians(queries: Queries) -> Floats:
    edges = np.flatnonzero(np.diff(queries.block)) + 1
    return np.array([np.median(part) for part in np.split(queries.latency_ms, edges)])


def more_of(answer: Answer, run: Run) -> str:
    """What would decide, in words."""
    if not answer.more_seconds:
        return ""
    if math.isinf(answer.more_seconds):
        return "it lies on the bound, or too near to be told from it: more time may not decide"
    rounds = math.ceil(answer.more_rounds)
    whole = math.ceil(run.seconds + answer.more_seconds)
    if run.num_loads < LEAST_GROUPS:
        each_s = answer.more_seconds / answer.more_rounds * run.num_rounds / run.num_loads
        return (
            f"it takes {LEAST_GROUPS} loads at least, of which {run.num_loads} fitted into the time, as each took "
            f"{each_s:.1f} s; give max_seconds = {whole} or more"
        )
    return f"about {rounds:,} more rounds would decide; give max_seconds = {whole}"


def fight(log: Path, sides: Sides, samples: Samples, bouts: Sequence[Bout], how: tuple[Pairing, int]) -> list[Fought]:
    """Run the bouts in a process of their own; ``how``: the pairing, and threads (0: the runtime's choice).

    Raises:
        ConfigError: an engine does not take a batch size, or there are too few samples for it.
        EngineError, StageError: an engine does not run, or crashed.
    """
    for bout in bouts:
        if bout.batch_size > samples.num_samples:
            raise ConfigError(
                f"[gate] budgets ask for batch {bout.batch_size}, but there are {samples.num_samples} samples to time "
                f"with; give sizes from 1 to {samples.num_samples}"
            )
    return child_process.call(log, f"gate {', '.join(sides.engines)}", fight_here, sides, samples, tuple(bouts), how)


def fight_here(sides: Sides, samples: Samples, bouts: Sequence[Bout], how: tuple[Pairing, int]) -> list[Fought]:
    """``fight`` in this process."""
    pairing, num_threads = how
    found = []
    for bout in bouts:
        with_what = Material(samples, bout.batch_size, pairing.load, num_threads)
        ours, theirs = (
            partial(_loaded, sides.engines[name], name, with_what) if name else None
            for name in (bout.variant, sides.baseline)
        )
        assert ours is not None
        found.append(Fought(bout, ask(ours, theirs, [question_from(budget) for budget in bout.budgets], pairing)))
    return found


@dataclass(frozen=True, eq=False)
class Material:
    """What the engines of a bout are given."""

    samples: Samples
    batch_size: int
    load: Load
    num_threads: int

    @cached_property
    def feeds(self) -> Sequence[Mapping[str, Array]]:
        """The first batch; offline: as many as fit into memory."""
        if self.load.scenario == "offline":
            return batches_in_memory(self.samples, self.batch_size)
        return [next(iter(self.samples.batches(self.batch_size)))]


@contextmanager
def _loaded(engine: Engine, name: str, what: Material) -> Iterator[Candidate]:
    """The engine bound to a copy of the batch: where its arrays come to lie is a part of how fast it is."""
    streaming = streaming_runner(engine, what.load, what.num_threads)
    with streaming or runner_of(engine, what.num_threads) as runner:
        candidate = candidate_of(engine, runner, name, {key: array.copy() for key, array in what.feeds[0].items()})
        if what.load.scenario == "offline":
            candidate = offline(candidate, runner, streaming, what.feeds)
        try:
            yield candidate
        finally:
            candidate.rest()  # Before its runner goes.


def remarks_on(known: Known | None, fought: Sequence[Fought], max_drift: float) -> tuple[str, ...]:
    """What the measurement says of itself, and where a kept baseline is no longer as fast as when it was set."""
    said = []
    for one in fought:
        size = one.bout.batch_size
        said += [f"{one.bout.variant} at batch {size}: {note}" for note in one.run.notes]
        if known is None or one.run.baseline is None or size not in known.p50_ms:
            continue
        then_ms, now_ms = known.p50_ms[size], latency_from_ms(one.run.baseline.latency_ms).p50
        if abs(now_ms / then_ms - 1) > max_drift:
            said.append(
                f"Baseline '{known.name}' had a p50 of {ms_text(then_ms)} at batch {size} when it was gated, and has "
                f"{ms_text(now_ms)} today: this machine is not as it was then."
            )
    return tuple(dict.fromkeys(said))


def measured_from(fought: Fought, folder: Path, began_ns: int) -> LatencyMeasurement:
    """Write the raw latencies into the folder, and say what stands there, with the table of percentiles."""
    bout, run = fought.bout, fought.run
    files = {"candidate": f"{bout.variant}-batch{bout.batch_size}.npz"}
    run.candidate.write(folder / files["candidate"])
    if run.baseline is not None:
        files["baseline"] = f"{bout.variant}-batch{bout.batch_size}-baseline.npz"
        run.baseline.write(folder / files["baseline"])
    return LatencyMeasurement(
        variant=bout.variant,
        batch_size=bout.batch_size,
        num_queries=len(run.candidate.latency_ms),
        num_loads=run.num_loads,
        num_rounds=run.num_rounds,
        seconds=run.seconds,
        began_ms=(run.began_ns - began_ns) / NS_PER_MS,
        queries_file=f"{folder.name}/{files['candidate']}",
        baseline_file=f"{folder.name}/{files['baseline']}" if "baseline" in files else "",
        percentiles=tuple(_row(run, statistic) for statistic in SHOWN),
    )


def _row(run: Run, statistic: Statistic) -> Percentile:
    ours = run.interval(statistic, relative=False)
    if run.baseline is None:
        return Percentile(statistic, _bounds(ours), None, None)
    ratio = run.interval(statistic, relative=True)
    theirs = float(getattr(latency_from_ms(run.baseline.latency_ms), statistic))
    return Percentile(statistic, _bounds(ours), theirs, _bounds(ratio))


def _bounds(interval: Interval) -> Estimate:
    return Estimate(interval.estimate, finite(interval.low), finite(interval.high))
