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
from pipeline.gate.checks import (
    EngineBudget,
    GateEngines,
    about,
    check_from_interval,
    check_from_outcome,
    withhold_decision,
)
from pipeline.gate.inputs import BaselineEngine, GateInputs
from pipeline.gate.record import Check, Estimate, LatencyMeasurement, Percentile
from pipeline.json_record import finite
from pipeline.latency.benchmark import NS_PER_MS, Candidate, Queries, block_medians, latency_blocks, latency_from_ms
from pipeline.latency.candidates import candidate_of
from pipeline.latency.intervals import LEAST_GROUPS, STATISTICS, THROUGHPUT, IntervalSpec, Statistic, interval_of
from pipeline.latency.offline import batches_in_memory, offline, streaming_runner
from pipeline.latency.paired import LatencyLimit, LimitResult, compare_paired
from pipeline.latency.paired import PairedResult as PairedResult
from pipeline.latency.protocol import Pairing
from pipeline.latency.scenarios import Load
from pipeline.latency.together import TogetherTimings, members_from
from pipeline.machine import child_process
from pipeline.page.numbers import ms_text
from pipeline.stats.intervals import Interval, Limit

STATISTIC_BESIDE: dict[str, Statistic] = {"beside_p50_ms": "p50", "beside_p99_ms": "p99"}
"""Quantities that are milliseconds beside others."""
SHOWN: tuple[Statistic, ...] = ("p50", "p90", "p99", "mean")


@dataclass(frozen=True)
class Comparison:
    """One engine at one batch size, beside the baseline if there is one, and the budgets that this decides."""

    variant: str
    batch_size: int
    budgets: tuple[Budget, ...]


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """What a comparison came to."""

    comparison: Comparison
    paired: PairedResult


def comparisons_from(engine_budgets: Sequence[EngineBudget]) -> tuple[Comparison, ...]:
    """The comparisons that budgets of latency and throughput ask for."""
    budgets_by_engine: dict[tuple[str, int], list[Budget]] = {}
    for variant, budget in engine_budgets:
        if budget.quantity.kind == "latency":
            budgets_by_engine.setdefault((variant, budget.batch_size), []).append(budget)
    return tuple(Comparison(variant, size, tuple(budgets)) for (variant, size), budgets in budgets_by_engine.items())


def members_beside(engine_budgets: Sequence[EngineBudget], inputs: GateInputs) -> dict[str, str]:
    """What has to run at once for budgets of latency beside others: by its name there, the engine that it is.

    Raises:
        ConfigError: [benchmark] together names no engines, one that is not there, or not the one that is judged.
    """
    asked = about(engine_budgets, "beside")
    if not asked:
        return {}
    members = members_from(inputs.benchmark.together, list(inputs.engines))
    for name, budget in asked:
        if name not in members:
            raise ConfigError(
                f"'{budget.text}': [benchmark] together does not name {name}, so that it runs beside nothing; name it "
                "there with those that run at the same time"
            )
    return members


def check_beside(engine_budget: EngineBudget, timings: TogetherTimings, confidence: float) -> Check:
    """The check of ``beside_p50_ms``, ``beside_p99_ms`` or ``slowdown``, each round a session."""
    name, budget = engine_budget
    place = [timing.name for timing in timings.beside].index(name)
    sides = [_by_round(side[place].queries) for side in (timings.beside, timings.alone)]
    relative = budget.quantity.name not in STATISTIC_BESIDE
    statistic = STATISTIC_BESIDE.get(budget.quantity.name, "p50")
    spec = IntervalSpec(statistic, relative, Limit(budget.bound, budget.at_most))
    interval = interval_of(sides, spec, (confidence, (1 - confidence) / 2))
    more = f"raise num_blocks or min_seconds in [benchmark.protocol]: this is of {len(sides[0])} rounds"
    return check_from_interval(engine_budget, interval, more)


def _by_round(queries: Queries) -> Floats:
    """Latencies (num_rounds, num_queries), of each round as many as of the shortest."""
    rounds = latency_blocks(queries)
    num = min(map(len, rounds))
    return np.stack([each[:num] for each in rounds])


def limit_from_budget(budget: Budget) -> LatencyLimit:
    """What a budget of latency or throughput asks of the latencies."""
    if budget.quantity.name == THROUGHPUT:
        # Samples per second of one stream are batch size / mean latency: at least so many is at most so long.
        bound = 1 / budget.bound if budget.relative else 1e3 * budget.batch_size / budget.bound
        return LatencyLimit(budget.text, budget.batch_size, "mean", Limit(bound, at_most=True), budget.relative)
    limit = Limit(budget.bound, budget.at_most)
    return LatencyLimit(budget.text, budget.batch_size, STATISTICS[budget.quantity.name], limit, budget.relative)


def interval_for(budget: Budget, latency: Interval) -> Interval:
    """The interval of the budget's own quantity, from that of the latency (milliseconds, or a ratio)."""
    if budget.quantity.name != THROUGHPUT:
        return latency
    scale = 1.0 if budget.relative else 1e3 * budget.batch_size
    low, high = scale / latency.high, scale / latency.low if latency.low > 0 else math.inf
    return Interval(scale / latency.estimate, low, high, latency.confidence)


def checks_from(result: ComparisonResult, max_drift: float) -> Iterator[tuple[EngineBudget, Check]]:
    """The check of each of a comparison's budgets; not decided where an engine was unsteady against itself."""
    for budget, limit_result in zip(result.comparison.budgets, result.paired.limit_results):
        engine_budget = EngineBudget(result.comparison.variant, budget)
        interval, advice = interval_for(budget, limit_result.interval), advice_from(limit_result, result.paired)
        check = check_from_outcome(engine_budget, limit_result.outcome, interval, advice)
        drift = drift_of(result.paired, relative=budget.relative)
        yield engine_budget, withhold_decision(check, budget, why_unsteady(engine_budget, drift, max_drift))


def drift_of(paired: PairedResult, *, relative: bool) -> float:
    """By which share the later half of the rounds was slower than the earlier, by p50; below 0: faster.

    Args:
        run: what was measured.
        relative: of the candidate over the baseline, round by round, instead of the candidate alone; what slowed down
            both is then no drift.
    """
    medians = block_medians(paired.candidate)
    if relative and paired.baseline is not None:
        medians = medians / block_medians(paired.baseline)
    half = len(medians) // 2
    return float(np.median(medians[-half:]) / np.median(medians[:half]) - 1) if half else 0.0


def why_unsteady(engine_budget: EngineBudget, drift: float, max_drift: float) -> list[str]:
    """A phrase if the drift is too large."""
    if abs(drift) <= max_drift:
        return []
    over = " relative to the baseline" if engine_budget.budget.relative else ""
    way = "slower" if drift > 0 else "faster"
    return [
        f"{engine_budget.engine} against itself{over} was {abs(drift):.0%} {way} in the later half of its rounds "
        f"than in the earlier, above max_drift {max_drift:.0%}"
    ]


def advice_from(limit_result: LimitResult, paired: PairedResult) -> str:
    """What would decide, in words."""
    if not limit_result.more_seconds:
        return ""
    if math.isinf(limit_result.more_seconds):
        return "it is on the bound, or too close to it to be distinguished: more time may not decide"
    rounds = math.ceil(limit_result.more_rounds)
    seconds = math.ceil(paired.seconds + limit_result.more_seconds)
    if paired.num_sessions < LEAST_GROUPS:
        each_s = limit_result.more_seconds / limit_result.more_rounds * paired.num_rounds / paired.num_sessions
        return (
            f"it takes {LEAST_GROUPS} sessions at least, of which {paired.num_sessions} fitted into the time, as each "
            f"took {each_s:.1f} s; give max_seconds = {seconds} or more"
        )
    return f"about {rounds:,} more rounds would decide; give max_seconds = {seconds}"


def run_comparisons(
    log: Path, gate_engines: GateEngines, samples: Samples, comparisons: Sequence[Comparison], how: tuple[Pairing, int]
) -> list[ComparisonResult]:
    """Run the comparisons in a process of their own; ``how``: the pairing, and threads (0: the runtime's choice).

    Raises:
        ConfigError: an engine does not take a batch size, or there are too few samples for it.
        EngineError, StageError: an engine does not run, or crashed.
    """
    for comparison in comparisons:
        if comparison.batch_size > samples.num_samples:
            raise ConfigError(
                f"[gate] budgets ask for batch {comparison.batch_size}, but there are {samples.num_samples} samples to "
                f"time with; give sizes from 1 to {samples.num_samples}"
            )
    what = f"gate {', '.join(gate_engines.engines)}"
    return child_process.call(log, what, run_comparisons_here, gate_engines, samples, tuple(comparisons), how)


def run_comparisons_here(
    gate_engines: GateEngines, samples: Samples, comparisons: Sequence[Comparison], how: tuple[Pairing, int]
) -> list[ComparisonResult]:
    """``run_comparisons`` in this process."""
    pairing, num_threads = how
    results = []
    for comparison in comparisons:
        setup = ComparisonSetup(samples, comparison.batch_size, pairing.load, num_threads)
        candidate, baseline = (
            partial(_loaded, gate_engines.engines[name], name, setup) if name else None
            for name in (comparison.variant, gate_engines.baseline)
        )
        assert candidate is not None
        limits = [limit_from_budget(budget) for budget in comparison.budgets]
        results.append(ComparisonResult(comparison, compare_paired(candidate, baseline, limits, pairing)))
    return results


@dataclass(frozen=True, eq=False)
class ComparisonSetup:
    """What the engines of a comparison are given."""

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
def _loaded(engine: Engine, name: str, setup: ComparisonSetup) -> Iterator[Candidate]:
    """The engine bound to a copy of the batch: where its arrays come to lie is a part of how fast it is."""
    streaming = streaming_runner(engine, setup.load, setup.num_threads)
    with streaming or runner_of(engine, setup.num_threads) as runner:
        candidate = candidate_of(engine, runner, name, {key: array.copy() for key, array in setup.feeds[0].items()})
        if setup.load.scenario == "offline":
            candidate = offline(candidate, runner, streaming, setup.feeds)
        try:
            yield candidate
        finally:
            candidate.rest()  # Before its runner goes.


def remarks_on(
    baseline: BaselineEngine | None, results: Sequence[ComparisonResult], max_drift: float
) -> tuple[str, ...]:
    """What the measurement says of itself, and where a kept baseline is no longer as fast as when it was set."""
    remarks = []
    for result in results:
        size, queries = result.comparison.batch_size, result.paired.baseline
        remarks += [f"{result.comparison.variant} at batch {size}: {note}" for note in result.paired.notes]
        if baseline is None or queries is None or size not in baseline.p50_ms:
            continue
        then_ms, now_ms = baseline.p50_ms[size], latency_from_ms(queries.latency_ms).p50
        if abs(now_ms / then_ms - 1) > max_drift:
            remarks.append(
                f"Baseline '{baseline.name}' had a p50 of {ms_text(then_ms)} at batch {size} when it was gated, and "
                f"has {ms_text(now_ms)} today: this machine has changed since."
            )
    return tuple(dict.fromkeys(remarks))


def measurement_from(result: ComparisonResult, folder: Path, began_ns: int) -> LatencyMeasurement:
    """Write the raw latencies into the folder, and say what stands there, with the table of percentiles."""
    comparison, paired = result.comparison, result.paired
    files = {"candidate": f"{comparison.variant}-batch{comparison.batch_size}.npz"}
    paired.candidate.write(folder / files["candidate"])
    if paired.baseline is not None:
        files["baseline"] = f"{comparison.variant}-batch{comparison.batch_size}-baseline.npz"
        paired.baseline.write(folder / files["baseline"])
    return LatencyMeasurement(
        variant=comparison.variant,
        batch_size=comparison.batch_size,
        num_queries=len(paired.candidate.latency_ms),
        num_loads=paired.num_sessions,
        num_rounds=paired.num_rounds,
        seconds=paired.seconds,
        began_ms=(paired.began_ns - began_ns) / NS_PER_MS,
        queries_file=f"{folder.name}/{files['candidate']}",
        baseline_file=f"{folder.name}/{files['baseline']}" if "baseline" in files else "",
        percentiles=tuple(_row(paired, statistic) for statistic in SHOWN),
    )


def _row(paired: PairedResult, statistic: Statistic) -> Percentile:
    candidate_ms = paired.interval(statistic, relative=False)
    if paired.baseline is None:
        return Percentile(statistic, _bounds(candidate_ms), None, None)
    ratio = paired.interval(statistic, relative=True)
    baseline_ms = float(getattr(latency_from_ms(paired.baseline.latency_ms), statistic))
    return Percentile(statistic, _bounds(candidate_ms), baseline_ms, _bounds(ratio))


def _bounds(interval: Interval) -> Estimate:
    return Estimate(interval.estimate, finite(interval.low), finite(interval.high))
