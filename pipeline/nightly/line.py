"""One line of the nightly job: is it up to date, why not, what makes it, and what became of it."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.errors import EXIT_STATUS, ConfigError, DataError, exit_status
from pipeline.gate.baseline import RECORD as BASELINE_RECORD
from pipeline.gate.baseline import gate_from_folder, is_variant_name, machine_change, set_baseline
from pipeline.gate.decide import STATUS
from pipeline.gate.gather_inputs import check_gate
from pipeline.gate.generations import current_folder, withdrawn
from pipeline.gate.record import GateRecord
from pipeline.gate.summary import headline, reasons
from pipeline.json_record import now_text, record_from_json, write_json
from pipeline.machine import child_process
from pipeline.machine.identity import Machine, installed_versions, this_machine
from pipeline.nightly.fleet import FleetFile, Line
from pipeline.nightly.record import SCHEMA_VERSION, Figures, LineRecord, NightRecord
from pipeline.nightly.walk import Walk, walk
from pipeline.nightly.why import History, why_missing
from pipeline.output import put, work_folder
from pipeline.plan import Plan
from pipeline.release.bundle_writer import narrowed
from pipeline.retention.promotion import FIRST, PROMOTED
from pipeline.source_digest import source_digest
from pipeline.store import canonical, plain

RunCommand = Callable[[Sequence[str]], int]
"""Runs `trtforge` with these arguments in this process, and returns its exit status."""

LINES, LINE, GATE, LOG = "lines", "line.json", "gate", "log.txt"
JUDGES = ("pipeline.gate.decide", "pipeline.stages.benchmark", "pipeline.stages.gate")
"""Modules whose code a judgement depends on."""
CHANGED = {
    "results": "the plan asks for other results, all of which are in the store",
    "gate": "[gate], [benchmark] or the metric changed",
    "program": "trtforge's own gate changed",
    "machine": "the machine changed",
}
"""What a judgement depends on -> the sentence where only that is another."""


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    only: tuple[str, ...] = ()
    """Patterns of models, devices or lines (MODEL.DEVICE); empty: all."""
    always: bool = False
    """Judge also what did not change."""
    accept_machine: bool = False
    """Take what passes after an upgrade of this machine as the first last good engine of the new system."""


@dataclass(frozen=True)
class Job:
    """One nightly run."""

    fleet_file: FleetFile
    store: Path
    last: NightRecord | None
    """The last night that was finished."""
    wanted: Wanted
    run_command: RunCommand

    def folder(self, line: Line) -> Path:
        """What is kept of a line."""
        return self.fleet_file.report_folder / LINES / line.name

    @cached_property
    def history(self) -> History:
        """What the store had when this was asked first."""
        return History(self.store)

    @property
    def night(self) -> int:
        """The number of tonight; a night that was stopped goes on under its own."""
        return 1 if self.last is None else self.last.night + 1

    @property
    def walks_to(self) -> str:
        """The verb up to which a plan is walked: it has all that a gate needs, and measures nothing."""
        return "validate" if self.gates else self.fleet_file.fleet.until

    @property
    def gates(self) -> bool:
        """Whether lines are gated."""
        return self.fleet_file.fleet.until == "gate"

    @cached_property
    def machine(self) -> Machine:
        """This machine."""
        return this_machine()


@dataclass(frozen=True)
class Look:
    """A line that was looked at, before anything is made."""

    line: Line
    last: LineRecord | None
    """Of the night in which it was made last."""
    why: tuple[str, ...] = ()
    """What changed; empty where nothing has to be done."""
    error: Exception | None = None
    """Why it cannot be made."""
    plan: Plan | None = None

    @property
    def is_to_do(self) -> bool:
        """Whether something changed, or cannot be made."""
        return self.error is not None or bool(self.why)


def glance(job: Job, line: Line) -> Look:
    """A line that is not asked for: what became of it last."""
    return Look(line, _last(job, line))


def look(job: Job, line: Line) -> Look:
    """Look at a line; nothing is made."""
    looked = glance(job, line)
    try:
        looked = replace(looked, plan=line.plan())
        assert looked.plan is not None
        why = _why(job, looked, looked.plan, _walked(job, line, looked.plan))
        if why and job.gates and not line.on:
            check_gate(_gated(job, line, looked.plan), job.store)
    except tuple(EXIT_STATUS) as error:
        return replace(looked, error=error)
    return replace(looked, why=tuple(why))


def tend(job: Job, looked: Look) -> LineRecord:
    """Make what a line lacks, judge it, promote it; what became of it is written and returned."""
    began, clock = now_text(), time.monotonic()
    record = _tended(job, looked)
    record = replace(record, began=began, seconds=time.monotonic() - clock)
    folder = job.folder(looked.line)
    folder.mkdir(parents=True, exist_ok=True)
    with work_folder(folder / LINE) as work:
        write_json(record, work / LINE)
        put(work / LINE, folder / LINE, work)
    return record


def unchanged(job: Job, looked: Look, is_chosen: bool) -> LineRecord | None:
    """The record of a line that nothing is done for; None of one that was never made, and is not asked for."""
    if looked.last is None or (is_chosen and looked.last.night == job.night):  # Made before this night was stopped.
        return looked.last
    return replace(looked.last, state="served" if is_chosen else "left out", why=())


def command_of(job: Job, line: Line, plan: Plan | None) -> list[str]:
    """The arguments of `trtforge` that make and judge a line."""
    until = job.fleet_file.fleet.until
    arguments = [until, str(line.plan_path), "--store", str(job.store)]
    if job.gates:
        arguments += ["-o", str(job.folder(line) / GATE)]
    if job.gates and plan is not None:
        gated = _gated(job, line, plan).gate
        arguments += ["--baseline", gated.baseline] if gated.baseline != plan.gate.baseline else []
        budgets = gated.budgets if gated.budgets != plan.gate.budgets else ()
        arguments += [part for budget in budgets for part in ("--budget", budget)]
    if line.on:
        arguments += ["--on", line.on, *(["--on-python", line.on_python] if line.on_python else [])]
        arguments += ["--promote", line.name] if job.gates and job.fleet_file.nightly.promote else []
    return [*arguments, *(part for text in line.settings for part in ("--set", text))]


def _gated(job: Job, line: Line, plan: Plan) -> Plan:
    """The plan with the line's last good engine as baseline, unless it compares with a variant of its own."""
    baseline = plan.gate.baseline if is_variant_name(plan.gate.baseline) else line.name
    budgets = plan.gate.budgets or job.fleet_file.nightly.budgets
    return replace(plan, gate=replace(plan.gate, baseline=baseline, budgets=budgets))


def last_good(store: Path, name: str) -> str:
    """SHA-256 (hex) of the last good engine's file, as its record has it; empty where none is whole."""
    try:
        folder = current_folder(name, store)
        record = {} if folder is None else json.loads((folder / BASELINE_RECORD).read_text(encoding="utf-8"))
        return str(record["engine"]["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _last(job: Job, line: Line) -> LineRecord | None:
    file = job.folder(line) / LINE
    try:
        return record_from_json(file, LineRecord, SCHEMA_VERSION, "it is made again")
    except ConfigError:
        return None  # None, or one that an earlier version wrote: the line is judged again.


def _why(job: Job, looked: Look, plan: Plan, walked: Walk) -> list[str]:
    """What makes a line stale; empty if nothing does."""
    line, last = looked.line, looked.last
    if walked.missing is not None:
        return why_missing(walked.missing, job.history, last.recipes if last else ())
    if job.wanted.always or (job.fleet_file.nightly.remeasure == "always" and (last is None or last.night < job.night)):
        return ["it is always measured again"]
    if last is None:
        return ["it was never judged in this fleet"]
    if last.state == "failed":
        return ["it failed the last time"]
    now = _depends_on(job, line, plan, walked)
    if changed := [CHANGED[name] for name in now if last.depends_on.get(name) != now[name]]:
        return changed
    if last.outcome == "not decided" and last.night < job.night:
        return ["it was not decided the last time"]
    judged = last.candidate.digest if last.promoted and last.candidate else last.baseline
    if job.gates and not line.on and job.fleet_file.nightly.promote and last_good(job.store, line.name) != judged:
        return ["the last good engine is another one since"]
    return []


def _walked(job: Job, line: Line, plan: Plan) -> Walk:
    """What this machine's store has of a line; for another machine it makes the models alone."""
    return walk(narrowed(plan), job.store, "pack") if line.on else walk(plan, job.store, job.walks_to)


def _depends_on(job: Job, line: Line, plan: Plan, walked: Walk) -> dict[str, str]:
    """SHA-256 (hex) of all that a judgement depends on, by what it is."""
    results = sorted({entry.digest for entry in walked.served})
    if not job.gates:
        return {"results": _sha(results)}
    gated = _gated(job, line, plan)
    return {
        "results": _sha(results),
        "gate": _sha([plain(gated.gate), plain(gated.benchmark), gated.data.metric, gated.data.output]),
        "program": source_digest(*JUDGES),
        "machine": _sha([line.on]) if line.on else job.machine.digest(),
    }


def _sha(data: object) -> str:
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def _tended(job: Job, looked: Look) -> LineRecord:
    line, folder = looked.line, job.folder(looked.line)
    arguments = command_of(job, line, looked.plan)
    blank = _blank(job, looked, arguments)
    if looked.error is not None:
        return replace(blank, status=exit_status(looked.error), sentence=str(looked.error))
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    log.unlink(missing_ok=True)
    held_against = last_good(job.store, line.name)
    try:
        status = child_process.call(log, line.name, job.run_command, arguments)
    except tuple(EXIT_STATUS) as error:
        return replace(blank, status=exit_status(error), sentence=str(error), log=_relative(log, job))
    blank = replace(blank, status=status, log=_relative(log, job))
    if not job.gates:
        return _without_gate(job, looked, blank, log)
    gate = _gate_of(folder) if status in STATUS.values() else None
    is_first = bool(line.on) and gate is not None and not status and gate.outcome == "not decided"
    if gate is None or (gate.exit_status != status and not is_first):
        return replace(blank, sentence=_last_words(log))
    record = replace(
        blank,
        state="made",
        outcome="pass" if is_first else gate.outcome,
        sentence=FIRST if is_first else "; ".join([headline(gate), *reasons(gate)]),
        gate=_relative(folder / GATE, job),
        candidate=_figures(gate),
        baseline=_baseline_there(gate) if line.on else held_against,
    )
    return _kept_record(job, looked, record)


def _without_gate(job: Job, looked: Look, blank: LineRecord, log: Path) -> LineRecord:
    if blank.status:
        return replace(blank, sentence=_last_words(log))
    record = replace(blank, state="made", sentence=f"{job.fleet_file.fleet.until}: done")
    return _kept_record(job, looked, record)


def _kept_record(job: Job, looked: Look, record: LineRecord) -> LineRecord:
    """The record with what it depends on; the candidate of a gate that passed becomes the last good one."""
    assert looked.plan is not None
    walked = _walked(job, looked.line, looked.plan)
    if walked.missing is not None:
        return replace(record, sentence=f"{record.sentence}; the plan or its data changed meanwhile")
    record = replace(
        record,
        depends_on=_depends_on(job, looked.line, looked.plan, walked),
        recipes=tuple(sorted({entry.digest for entry in walked.served})),
    )
    if not job.gates or not job.fleet_file.nightly.promote:
        return record
    if looked.line.on:  # It was promoted there, which the command has told.
        log = (job.folder(looked.line) / LOG).read_text(encoding="utf-8", errors="replace")
        return replace(record, promoted=f"{looked.line.name}: {PROMOTED}" in log or record.sentence == FIRST)
    return _promoted(job, looked.line, record)


def _promoted(job: Job, line: Line, record: LineRecord) -> LineRecord:
    """Set the last good engine; one that lacks nothing but a baseline is taken as the first."""
    if record.outcome == "fail" or (record.candidate is not None and record.candidate.digest == record.baseline):
        return record
    try:
        if record.candidate is not None and (date := withdrawn(line.name, job.store).get(record.candidate.digest)):
            return replace(record, sentence=f"{record.sentence}; not promoted: this engine was withdrawn on {date}")
        set_baseline(
            line.name, job.folder(line) / GATE, job.store, first=not record.baseline or _is_accepted(job, line)
        )
    except (ConfigError, DataError) as error:
        if record.outcome == "pass":
            return replace(record, status=exit_status(error), sentence=f"{record.sentence}; not promoted: {error}")
        return record
    if record.outcome == "not decided":
        sentence = "it passed all that needs no baseline, and is the first last good engine"
        return replace(record, status=0, outcome="pass", promoted=True, sentence=sentence)
    return replace(record, promoted=True)


def _is_accepted(job: Job, line: Line) -> bool:
    """Whether the last good engine is of before an upgrade of this machine, and what passes now may take its place."""
    change = machine_change(line.name, job.store)
    return job.wanted.accept_machine and change is not None and change.kind == "upgrade"


def _blank(job: Job, looked: Look, arguments: Sequence[str]) -> LineRecord:
    """The record of a line that came to nothing."""
    line = looked.line
    return LineRecord(
        schema_version=SCHEMA_VERSION,
        model=line.model,
        device=line.device,
        plan=str(line.plan_path),
        night=job.night,
        state="failed",
        status=1,
        outcome=None,
        sentence="",
        why=looked.why,
        command=shlex.join(["trtforge", *arguments]),
        log="",
        gate="",
        began="",
        seconds=0.0,
        candidate=None,
        baseline="",
        promoted=False,
        recipes=(),
        depends_on={},
        versions=installed_versions(),
    )


def _baseline_there(gate: GateRecord) -> str:
    """The digest of what it was held against on another machine; empty where there was none."""
    return gate.engines[-1].digest if gate.baseline else ""


def _gate_of(folder: Path) -> GateRecord | None:
    try:
        return gate_from_folder(folder / GATE)
    except ConfigError:
        return None


def _figures(gate: GateRecord) -> Figures | None:
    info = next((engine for engine in gate.engines if engine.name == gate.candidate), None)
    if info is None:
        return None
    timed = [measured for measured in gate.measured if measured.variant == gate.candidate]
    p50_ms = next(
        (row.candidate_ms.estimate for m in timed[:1] for row in m.percentiles if row.statistic == "p50"), None
    )
    metric = next((row.metric for row in gate.accuracy if row.variant == gate.candidate), None)
    return Figures(gate.candidate, info.digest, info.size_bytes, p50_ms, metric)


def _last_words(log: Path) -> str:
    """The command's own sentence, its last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    sentences = [line.removeprefix("trtforge: ") for line in lines if line.startswith("trtforge: ")]
    return (sentences or lines or ["it ended without a word"])[-1]


def _relative(path: Path, job: Job) -> str:
    return path.relative_to(job.fleet_file.report_folder).as_posix()
