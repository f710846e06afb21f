"""Measures, decides, and makes the record of a gate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from pipeline.artifact import Engine
from pipeline.errors import EXIT_STATUS, CheckFailed, DataError, NotDecided
from pipeline.gate.accuracy import Judging, accuracy_of, check_answers
from pipeline.gate.budget import Budget
from pipeline.gate.case import Case
from pipeline.gate.checks import (
    Asked,
    Sides,
    check_size,
    check_tolerances,
    digest_of_engine,
    size_bytes,
    unsettled,
    without_baseline,
)
from pipeline.gate.cold_start import Start, check_start, starts
from pipeline.gate.energy import check_energy, measure_energy
from pipeline.gate.latency import Fought, bouts_from, checks_from, fight, measured_from, remarks_on
from pipeline.gate.record import SCHEMA_VERSION, Check, EngineInfo, Gated
from pipeline.gate.steadiness import (
    Conditions,
    CpuTimes,
    Moment,
    busy_with_others,
    cpu_times,
    load_from_others,
    moment,
    objections,
)
from pipeline.machine.identity import this_machine
from pipeline.machine.monitor import Monitor
from pipeline.machine.progress import waiting
from pipeline.machine.sensors import why_no_power
from pipeline.record import data_info
from pipeline.stages.benchmark import MONITOR
from pipeline.stages.gate import Gate
from pipeline.stats.intervals import Outcome

ROOT = Path("/")
"""Where the machine is looked at; a test points it at a made-up tree."""
STATUS: dict[Outcome, int] = {"fail": EXIT_STATUS[CheckFailed], "not decided": EXIT_STATUS[NotDecided], "pass": 0}
"""Outcome -> exit status; the worst first."""
UNMOVED = ("p50_ms", "mean_ms", "throughput_per_s")
"""Quantities whose ratio to the baseline other programs leave as it is, as both sides meet them; tails are theirs."""
NOT_WATCHED = "the machine was not watched (monitor_ms = 0)"
SAMPLES = "samples"
"""The folder of the raw latencies, beside gate.json."""


def decide(gate: Gate, out: Path, case: Case, budgets: Sequence[Budget]) -> Gated:
    """Measure and decide. The raw latencies are written to ``out/samples``.

    Raises:
        ConfigError: a budget names an engine that is not there, or asks for what has no meaning here.
        DataError: an engine's file changed meanwhile.
        EngineError, StageError: an engine does not run, or crashed.
    """
    asked = case.asked(budgets)
    (out / SAMPLES).mkdir()
    judging = Judging(gate.pairing.confidence, gate.sampled)
    checks = {one: without_baseline(one, case.no_baseline) for one in asked if not case.comparable(one[1])}
    left = [one for one in asked if one not in checks]
    sides = Sides(case.sides(left), case.baseline.side if case.baseline else "")
    infos = [engine_info(name, engine) for name, engine in sides.engines.items()]
    # Answers first: a budget without a meaning here is found before anything is timed.
    checks |= {one: check_answers(case.answers, judging, one) for one in left if one[1].quantity.kind == "accuracy"}
    checks |= {one: check_size(one, sides) for one in left if one[1].quantity.kind == "size"}
    begin, before, cpu = time.monotonic(), moment(ROOT), cpu_times(ROOT)
    with waiting(f"gate {case.candidate}"), Monitor(ROOT, case.benchmark.monitor_ms) as monitor:
        fought = _fight(gate, out, case, sides, left)
        energy = measure_energy(out, sides, case.samples, left, case.benchmark)
        started = _starts(gate, out, case, sides, left)
    conditions = _conditions(gate, monitor if case.benchmark.monitor_ms else None, before, cpu)
    for bout in fought:
        checks |= dict(checks_from(bout, gate.max_drift))
    for one in left:
        if one[1].quantity.kind in ("start", "memory"):
            checks[one] = check_start(one, started, sides.baseline, gate.pairing.confidence)
        elif energy is not None and one[1].quantity.kind == "energy":
            why = why_no_power(ROOT) if case.benchmark.monitor_ms else NOT_WATCHED
            watched = monitor.readings(), why
            checks[one] = check_energy(one, energy, sides.baseline, watched, gate.pairing.confidence)
    settled = [unsettled(checks[one], one[1], _against(gate, conditions, one[1])) for one in asked]
    tolerances = [check_tolerances(name, case.verdicts[name]) for name in sides.engines if name in case.verdicts]
    check_unchanged(infos)
    found = _record(gate, case, infos, [*settled, *tolerances], conditions)
    began_ns = fought[0].run.began_ns if fought else time.perf_counter_ns()
    if case.benchmark.monitor_ms:
        monitor.readings().write(out / SAMPLES / MONITOR, began_ns)
    return replace(
        found,
        notes=(*found.notes, *remarks_on(case.baseline, fought, gate.max_drift), *_busy(gate, conditions, asked)),
        measured=tuple(measured_from(bout, out / SAMPLES, began_ns) for bout in fought),
        seconds=time.monotonic() - begin,
    )


def _fight(gate: Gate, out: Path, case: Case, sides: Sides, asked: Sequence[Asked]) -> list[Fought]:
    bouts = bouts_from(asked)
    how = (gate.pairing, case.benchmark.num_threads)
    return fight(out / "gate.log", sides, case.samples, bouts, how) if bouts else []


def _starts(gate: Gate, out: Path, case: Case, sides: Sides, asked: Sequence[Asked]) -> Mapping[str, Sequence[Start]]:
    wanted = [one for one in asked if one[1].quantity.kind in ("start", "memory")]
    names = {name for name, _ in wanted} | {sides.baseline for _, budget in wanted if budget.relative}
    engines = {name: engine for name, engine in sides.engines.items() if name in names}
    feed = next(iter(case.samples.batches(case.benchmark.batch_sizes[0])))
    return starts(out, engines, feed, gate.cold_starts, case.benchmark.num_threads)


def _conditions(gate: Gate, monitor: Monitor | None, before: Moment, cpu: CpuTimes) -> Conditions:
    after, others = moment(ROOT), load_from_others(cpu, cpu_times(ROOT))
    watched = None if monitor is None else monitor.watched()
    num_throttles = 0 if watched is None else watched.num_throttles or 0
    against = objections(before, after, num_throttles)
    busy = busy_with_others(others, gate.max_other_load, "max_other_load")
    return Conditions(before, after, others, watched, (*against, *busy))


def _against(gate: Gate, conditions: Conditions, budget: Budget) -> list[str]:
    """What speaks against deciding this budget by what was timed."""
    busy = busy_with_others(conditions.load_from_others, gate.max_other_load, "max_other_load")
    is_line = gate.pairing.scenario == "server"  # It grows the more, the slower the engine is.
    if is_line or not (budget.relative and budget.quantity.name in UNMOVED):
        return list(conditions.objections)
    limit = gate.max_other_load_relative
    rest = [said for said in conditions.objections if said not in busy]
    return rest + busy_with_others(conditions.load_from_others, limit, "max_other_load_relative")


def _busy(gate: Gate, conditions: Conditions, asked: Sequence[Asked]) -> tuple[str, ...]:
    """What a busy machine means for what is decided all the same."""
    decided = any(len(_against(gate, conditions, one[1])) < len(conditions.objections) for one in asked)
    if not decided or conditions.load_from_others is None:
        return ()
    return (
        f"Other programs took {conditions.load_from_others:.0%} of the CPU time: p50, mean and throughput beside "
        "the baseline hold for a machine that is as busy.",
    )


def _record(
    gate: Gate, case: Case, infos: Sequence[EngineInfo], checks: Sequence[Check], conditions: Conditions
) -> Gated:
    outcome = worst([check.outcome for check in checks])
    known = case.baseline
    return Gated(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        outcome=outcome,
        exit_status=STATUS[outcome],
        candidate=case.candidate,
        baseline="" if known is None else known.name,
        baseline_set="" if known is None else known.set_on,
        plan=case.plan,
        evaluation=data_info(case.samples),
        metric=case.metric,
        engines=tuple(infos),
        machine=this_machine(),
        conditions=conditions,
        protocol=gate.pairing.describe(),
        num_threads=case.benchmark.num_threads,
        seconds=0.0,
        checks=tuple(checks),
        measured=(),
        accuracy=tuple(accuracy_of(case.answers, name) for name in case.answers.engines),
        steps=case.steps,
        advice=case.advice,
        notes=(*case.notes, *case.remarks()),
    )


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """``fail`` if there is one, else ``not decided`` if there is one, else ``pass``."""
    return next((one for one in STATUS if one in outcomes), "pass")


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
        if not path.is_file() or digest_of_engine(path) != info.digest:
            raise DataError(
                f"{path}: was replaced while {info.name} was gated; gate again, when nobody else works there"
            )
