"""Measures, decides, and makes the record of a gate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.artifact import Engine, digest_of_engine
from pipeline.errors import EXIT_STATUS, CheckFailed, DataError, NotDecided
from pipeline.gate.accuracy import IntervalPolicy, accuracy_of, check_accuracy
from pipeline.gate.budget import Budget
from pipeline.gate.checks import (
    EngineBudget,
    GateEngines,
    about,
    check_fallback,
    check_size,
    check_tolerances,
    check_without_baseline,
    size_bytes,
    withhold_decision,
)
from pipeline.gate.energy import check_energy, measure_energy
from pipeline.gate.inputs import GateInputs
from pipeline.gate.latency import (
    ComparisonResult,
    check_beside,
    checks_from,
    comparisons_from,
    measurement_from,
    members_beside,
    remarks_on,
    run_comparisons,
)
from pipeline.gate.process_cost import (
    ColdStart,
    check_cold_start,
    check_growth,
    measure_cold_starts,
    measure_growth,
)
from pipeline.gate.record import SCHEMA_VERSION, Check, EngineInfo, GateRecord
from pipeline.gate.steadiness import (
    Conditions,
    MachineState,
    busy_with_others,
    machine_state,
    objections,
)
from pipeline.json_record import now_text
from pipeline.latency.together import TogetherTimings
from pipeline.machine import child_process
from pipeline.machine.cpu_load import CpuTimes, cpu_times, load_from_others
from pipeline.machine.identity import this_machine
from pipeline.machine.monitor import Monitor
from pipeline.machine.progress import waiting
from pipeline.machine.sensors import why_no_power
from pipeline.record import data_info
from pipeline.stages.benchmark import MONITOR, engines_together
from pipeline.stages.gate import Gate
from pipeline.stats.intervals import Outcome

ROOT = Path("/")
"""Where the machine is looked at; a test points it at a made-up tree."""
STATUS: dict[Outcome, int] = {"fail": EXIT_STATUS[CheckFailed], "not decided": EXIT_STATUS[NotDecided], "pass": 0}
"""Outcome -> exit status; the worst first."""
UNMOVED = ("p50_ms", "mean_ms", "throughput_per_s")
"""Quantities whose ratio to the baseline other programs leave as it is, as both sides meet them; tails are theirs."""
NOT_WATCHED = "the machine was not monitored (monitor_ms = 0)"
SAMPLES = "samples"
"""The folder of the raw latencies and of memory over time, beside gate.json."""


def decide(gate: Gate, out: Path, inputs: GateInputs, budgets: Sequence[Budget]) -> GateRecord:
    """Measure and decide. The raw latencies are written to ``out/samples``.

    Raises:
        ConfigError: a budget names an engine that is not there, or asks for what has no meaning here.
        DataError: an engine's file changed meanwhile.
        EngineError, StageError: an engine does not run, or crashed.
    """
    engine_budgets = inputs.engine_budgets(budgets)
    (out / SAMPLES).mkdir()
    policy = IntervalPolicy(gate.pairing.confidence, gate.sampled)
    measurable = [each for each in engine_budgets if inputs.comparable(each.budget)]
    checks = {
        each: check_without_baseline(each, inputs.no_baseline) for each in engine_budgets if each not in measurable
    }
    gate_engines = inputs.gate_engines(measurable)
    infos = [engine_info(name, engine) for name, engine in gate_engines.engines.items()]
    # Answers first: a budget without a meaning here is found before anything is timed.
    checks |= {each: check_accuracy(inputs.outputs, policy, each) for each in about(measurable, "accuracy")}
    checks |= {each: check_size(each, gate_engines) for each in about(measurable, "size")}
    checks |= {each: check_fallback(each, gate_engines) for each in about(measurable, "fallback")}
    members = members_beside(measurable, inputs)
    begin, before, cpu = time.monotonic(), machine_state(ROOT), cpu_times(ROOT)
    with waiting(f"gate {inputs.candidate}"), Monitor(ROOT, inputs.benchmark.monitor_ms) as monitor:
        results = _run_comparisons(gate, out, inputs, gate_engines, measurable)
        energy = measure_energy(out, gate_engines, inputs.samples, measurable, inputs.benchmark)
        cold_starts = _starts(gate, out, inputs, gate_engines, measurable)
        how = gate.pairing, inputs.benchmark
        beside = _beside(out, inputs, members)
        growths = measure_growth(out, gate_engines.engines, inputs.samples, measurable, how)
    conditions = _conditions(gate, monitor if inputs.benchmark.monitor_ms else None, before, cpu)
    for result in results:
        checks |= dict(checks_from(result, gate.max_drift))
    baseline, confidence = gate_engines.baseline, gate.pairing.confidence
    for engine_budget in about(measurable, "start", "memory"):
        checks[engine_budget] = check_cold_start(engine_budget, cold_starts, baseline, confidence)
    checks |= {each: check_growth(each, growths) for each in about(measurable, "growth")}
    if beside is not None:
        checks |= {each: check_beside(each, beside, confidence) for each in about(measurable, "beside")}
        for side, timings in (("alone", beside.alone), ("beside", beside.beside)):
            for timing in timings:
                timing.queries.write(out / SAMPLES / f"together-{timing.name}-{side}.npz")
    for growth in growths:
        growth.memory.write(out / SAMPLES / growth.file_name)
    if energy is not None:
        watched = monitor.readings(), why_no_power(ROOT) if inputs.benchmark.monitor_ms else NOT_WATCHED
        for engine_budget in about(measurable, "energy"):
            checks[engine_budget] = check_energy(engine_budget, energy, baseline, watched, confidence)
    decisions = [
        withhold_decision(checks[each], each.budget, _against(gate, conditions, each.budget)) for each in engine_budgets
    ]
    tolerances = [
        check_tolerances(name, inputs.verdicts[name]) for name in gate_engines.engines if name in inputs.verdicts
    ]
    check_unchanged(infos)
    record = _record(gate, inputs, infos, [*decisions, *tolerances], conditions)
    began_ns = results[0].paired.began_ns if results else time.perf_counter_ns()
    if inputs.benchmark.monitor_ms:
        monitor.readings().write(out / SAMPLES / MONITOR, began_ns)
    return replace(
        record,
        notes=(
            *record.notes,
            *remarks_on(inputs.baseline, results, gate.max_drift),
            *_busy(gate, conditions, engine_budgets),
        ),
        measured=tuple(measurement_from(result, out / SAMPLES, began_ns) for result in results),
        seconds=time.monotonic() - begin,
    )


def _run_comparisons(
    gate: Gate, out: Path, inputs: GateInputs, gate_engines: GateEngines, engine_budgets: Sequence[EngineBudget]
) -> list[ComparisonResult]:
    comparisons = comparisons_from(engine_budgets)
    how = (gate.pairing, inputs.benchmark.num_threads)
    return run_comparisons(out / "gate.log", gate_engines, inputs.samples, comparisons, how) if comparisons else []


def _beside(out: Path, inputs: GateInputs, members: Mapping[str, str]) -> TogetherTimings | None:
    """What running engines at once does to each; None where no budget asks."""
    if not members:
        return None
    engines, what = dict(inputs.engines), f"{', '.join(members)} at once"
    fed = dict.fromkeys(engines, inputs.samples)
    return child_process.call(out / "gate.log", what, engines_together, inputs.benchmark, members, engines, fed)


def _starts(
    gate: Gate, out: Path, inputs: GateInputs, gate_engines: GateEngines, engine_budgets: Sequence[EngineBudget]
) -> Mapping[str, Sequence[ColdStart]]:
    about_starts = about(engine_budgets, "start", "memory")
    names = {name for name, _ in about_starts} | {
        gate_engines.baseline for _, budget in about_starts if budget.relative
    }
    engines = {name: engine for name, engine in gate_engines.engines.items() if name in names}
    feed = next(iter(inputs.samples.batches(inputs.benchmark.batch_sizes[0])))
    return measure_cold_starts(out, engines, feed, gate.cold_starts, inputs.benchmark.num_threads)


def _conditions(gate: Gate, monitor: Monitor | None, before: MachineState, cpu: CpuTimes) -> Conditions:
    after, others = machine_state(ROOT), load_from_others(cpu, cpu_times(ROOT))
    watched = None if monitor is None else monitor.watched()
    num_throttles = 0 if watched is None else watched.num_throttles or 0
    objected = objections(before, after, num_throttles)
    busy = busy_with_others(others, gate.max_other_load, "max_other_load")
    return Conditions(before, after, others, watched, (*objected, *busy))


def _against(gate: Gate, conditions: Conditions, budget: Budget) -> list[str]:
    """What speaks against deciding this budget by what was timed."""
    busy = busy_with_others(conditions.load_from_others, gate.max_other_load, "max_other_load")
    is_line = gate.pairing.scenario == "server"  # It grows the more, the slower the engine is.
    if is_line or not (budget.relative and budget.quantity.name in UNMOVED):
        return list(conditions.objections)
    limit = gate.max_other_load_relative
    rest = [objection for objection in conditions.objections if objection not in busy]
    return rest + busy_with_others(conditions.load_from_others, limit, "max_other_load_relative")


def _busy(gate: Gate, conditions: Conditions, engine_budgets: Sequence[EngineBudget]) -> tuple[str, ...]:
    """What a busy machine means for what is decided all the same."""
    num_objections = len(conditions.objections)
    decided = any(len(_against(gate, conditions, each.budget)) < num_objections for each in engine_budgets)
    if not decided or conditions.load_from_others is None:
        return ()
    return (
        f"Other programs used {conditions.load_from_others:.0%} of the CPU time: p50, mean and throughput beside "
        "the baseline hold for a machine that is equally busy.",
    )


def _record(
    gate: Gate, inputs: GateInputs, infos: Sequence[EngineInfo], checks: Sequence[Check], conditions: Conditions
) -> GateRecord:
    outcome = worst([check.outcome for check in checks])
    baseline = inputs.baseline
    return GateRecord(
        schema_version=SCHEMA_VERSION,
        created=now_text(),
        outcome=outcome,
        exit_status=STATUS[outcome],
        candidate=inputs.candidate,
        baseline="" if baseline is None else baseline.name,
        baseline_set="" if baseline is None else baseline.set_on,
        plan=inputs.plan,
        evaluation=data_info(inputs.samples),
        metric=inputs.metric,
        engines=tuple(infos),
        machine=this_machine(),
        conditions=conditions,
        protocol=gate.pairing.describe(),
        num_threads=inputs.benchmark.num_threads,
        seconds=0.0,
        checks=tuple(checks),
        measured=(),
        accuracy=tuple(accuracy_of(inputs.outputs, name) for name in inputs.outputs.engines),
        steps=inputs.steps,
        advice=inputs.advice,
        notes=(*inputs.notes, *inputs.remarks()),
    )


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """``fail`` if there is one, else ``not decided`` if there is one, else ``pass``."""
    return next((outcome for outcome in STATUS if outcome in outcomes), "pass")


def engine_info(name: str, engine: Engine) -> EngineInfo:
    """What the record says of an engine."""
    return EngineInfo(
        name=name,
        path=str(engine.path.resolve()),
        digest=digest_of_engine(engine.path),
        backend=engine.backend,
        size_bytes=size_bytes(engine.path),
        min_batch=engine.min_batch,
        max_batch=engine.max_batch,
    )


def check_unchanged(infos: Sequence[EngineInfo]) -> None:
    """That every engine is still the one that it was: it is loaded again and again while it is measured.

    Raises:
        DataError: another process replaced one, as by setting a baseline or building into the same file.
    """
    for info in infos:
        path = Path(info.path)
        if not path.exists() or digest_of_engine(path) != info.digest:
            raise DataError(
                f"{path}: was replaced while {info.name} was gated; gate again, while nobody else writes there"
            )
