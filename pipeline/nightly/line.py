"""One line of the nightly job: is it up to date, why not, what makes it, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipeline.artifact import plain
from pipeline.errors import EXIT_STATUS, ConfigError, Unavailable
from pipeline.gate.baseline import RECORD as BASELINE_RECORD
from pipeline.gate.baseline import is_variant_name
from pipeline.gate.gather_inputs import check_gate, check_gate_elsewhere
from pipeline.gate.generations import current_folder
from pipeline.json_record import record_from_json
from pipeline.machine.identity import Machine, installed_versions, this_machine
from pipeline.nightly.fleet import FleetFile, Line
from pipeline.nightly.record import SCHEMA_VERSION, LineRecord, NightRecord
from pipeline.nightly.walk import Walk, walk
from pipeline.nightly.why import History, why_missing
from pipeline.plan import Plan
from pipeline.release.bundle_writer import narrowed
from pipeline.source_digest import source_digest
from pipeline.store import digest_of_data
from pipeline.workers.census import DeviceState
from pipeline.workers.device import RunCommand

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
    devices: Mapping[str, DeviceState] = field(default_factory=dict)
    """Those that are reached by a scheduler, as the census saw them."""

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

    def versions(self, line: Line) -> dict[str, str]:
        """Of what a line's results may depend on, where it is built."""
        return self.devices[line.device].versions if _is_asked(self, line) else installed_versions()


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
    is_away: bool = False
    """Whether its device is not there, or not as it must be; what became of the line last stands."""

    @property
    def is_to_do(self) -> bool:
        """Whether something changed, or cannot be made."""
        return self.error is not None or bool(self.why)

    @property
    def is_sent(self) -> bool:
        """Whether a worker makes it."""
        return self.is_to_do and self.line.is_scheduled and self.error is None


def glance(job: Job, line: Line) -> Look:
    """A line that is not asked for: what became of it last."""
    return Look(line, last_record(job, line))


def look(job: Job, line: Line) -> Look:
    """Look at a line; nothing is made."""
    looked = glance(job, line)
    try:
        looked = replace(looked, plan=line.plan())
        assert looked.plan is not None
        why = _why(job, looked, looked.plan, walked_line(job, line, looked.plan))
        if line.is_scheduled and (refusal := job.devices[line.device].refusal):
            return replace(looked, error=Unavailable(refusal), is_away=True)
        if why and job.gates:
            _check_gate(job, line, gated_line(job, line, looked.plan))
    except tuple(EXIT_STATUS) as error:
        return replace(looked, error=error)
    return replace(looked, why=tuple(why))


def _check_gate(job: Job, line: Line, gated: Plan) -> None:
    """What is bound to fail is said before anything is made; see ``check_gate`` for errors."""
    if line.is_here:
        check_gate(gated, job.store)
    else:
        check_gate_elsewhere(narrowed(gated))


def unchanged(job: Job, looked: Look, is_chosen: bool) -> LineRecord | None:
    """The record of a line that nothing is done for; None of one that was never made, and is not asked for."""
    if looked.last is None or (is_chosen and looked.last.night == job.night):  # Made before this night was stopped.
        return looked.last
    return replace(looked.last, state="served" if is_chosen else "left out", why=())


def command_of(job: Job, line: Line, plan: Plan | None) -> list[str]:
    """The arguments of `trtforge` that make and judge a line."""
    until = job.fleet_file.fleet.until
    if line.is_scheduled:
        return ["nightly", str(job.fleet_file.path), "--only", line.name, "--always", "--store", str(job.store)]
    arguments = [until, str(line.plan_path), "--store", str(job.store)]
    if job.gates:
        arguments += ["-o", str(job.folder(line) / GATE)]
    arguments += [] if plan is None else gate_words(job, line, plan)
    if line.on:
        arguments += ["--on", line.on, *(["--on-python", line.on_python] if line.on_python else [])]
        arguments += ["--promote", line.name] if job.gates and job.fleet_file.nightly.promote else []
    return [*arguments, *(part for text in line.settings for part in ("--set", text))]


def gate_words(job: Job, line: Line, plan: Plan) -> list[str]:
    """The arguments of a gate by which it has the line's baseline, and budgets."""
    if not job.gates:
        return []
    gated = gated_line(job, line, plan).gate
    words = ["--baseline", gated.baseline] if gated.baseline != plan.gate.baseline else []
    budgets = gated.budgets if gated.budgets != plan.gate.budgets else ()
    return [*words, *(part for budget in budgets for part in ("--budget", budget))]


def gated_line(job: Job, line: Line, plan: Plan) -> Plan:
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


def last_record(job: Job, line: Line) -> LineRecord | None:
    """What became of a line last; None where that is not known."""
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
    now = depends_on(job, line, plan, walked)
    changed = [name for name in now if last.depends_on.get(name) != now[name]]
    if changed == ["machine"] and (upgraded := list(_upgraded(job, line, last))):
        return upgraded
    if changed:
        return [CHANGED[name] for name in changed]
    if last.outcome == "not decided" and last.night < job.night:
        return ["it was not decided the last time"]
    judged = last.candidate.digest if last.promoted and last.candidate else last.baseline
    if job.gates and not line.on and job.fleet_file.nightly.promote and last_good(job.store, line.name) != judged:
        return ["the last good engine is another one since"]
    return []


def walked_line(job: Job, line: Line, plan: Plan) -> Walk:
    """What this machine's store has of a line; for another machine it makes the models alone."""
    return walk(plan, job.store, job.walks_to) if line.is_here else walk(narrowed(plan), job.store, "pack")


def depends_on(job: Job, line: Line, plan: Plan, walked: Walk) -> dict[str, str]:
    """SHA-256 (hex) of all that a judgement depends on, by what it is."""
    results = sorted({entry.digest for entry in walked.served})
    if not job.gates:
        machine = {"machine": job.devices[line.device].digest} if _is_asked(job, line) else {}
        return {"results": digest_of_data(results), **machine}
    gated = gated_line(job, line, plan)
    return {
        "results": digest_of_data(results),
        "gate": digest_of_data([plain(gated.gate), plain(gated.benchmark), gated.data.metric, gated.data.output]),
        "program": source_digest(*JUDGES),
        "machine": _machine_digest(job, line),
    }


def _machine_digest(job: Job, line: Line) -> str:
    """Of where it is built; by ssh the name of that machine is all that is known here."""
    if _is_asked(job, line):
        return job.devices[line.device].digest
    return digest_of_data([line.on]) if line.on else job.machine.digest()


def _is_asked(job: Job, line: Line) -> bool:
    return line.is_scheduled and line.device in job.devices and bool(job.devices[line.device].infos)


def _upgraded(job: Job, line: Line, last: LineRecord) -> Iterator[str]:
    """What is of another version on the device than when the line was made."""
    now = job.versions(line) if line.is_scheduled else {}
    for name in sorted(now.keys() | (last.versions.keys() if now else ())):
        before, after = last.versions.get(name, "absent"), now.get(name, "absent")
        if before != after:
            yield f"{line.device}: {name} {before} -> {after}"
