"""What became of a line whose command has ended: its gate read, its engine promoted, its record written."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import EXIT_STATUS, ConfigError, DataError, exit_status
from pipeline.gate.baseline import gate_from_folder, machine_change, set_device_baseline
from pipeline.gate.decide import STATUS
from pipeline.gate.generations import withdrawn
from pipeline.gate.record import GateRecord
from pipeline.gate.summary import headline, reasons
from pipeline.json_record import now_text, write_json
from pipeline.nightly.fleet import Line
from pipeline.nightly.line import GATE, LINE, LOG, Job, Look, command_of, depends_on, last_good, walked_line
from pipeline.nightly.record import SCHEMA_VERSION, Figures, LineRecord
from pipeline.nightly.why import ONLY_WEIGHTS
from pipeline.output import put, work_folder
from pipeline.refitting.refit import STRIPPED
from pipeline.retention.promotion import FIRST, PROMOTED

REFITTED = re.compile(r"^(?:\[\S+\] )?trtforge: refit +[0-9a-f]+ +made in [0-9.]+ s +(\S+)", re.MULTILINE)
"""As a command tells what it made, here or on a device, whose lines have its address before them; the variant."""

Ended = Callable[[], int]
"""Waits until a line's command has ended and its files lie in its folder; the exit status, or one of our errors."""


@dataclass(frozen=True)
class Begun:
    """When a line was begun."""

    at: str = field(default_factory=now_text)
    clock: float = field(default_factory=time.monotonic)


def tend(job: Job, looked: Look, ended: Ended, begun: Begun) -> LineRecord:
    """Judge what a line's command made, and promote it; what became of it is written and returned."""
    record = _tended(job, looked, ended)
    record = replace(record, began=begun.at, seconds=time.monotonic() - begun.clock)
    if looked.is_away:
        return record
    write_line(job, looked.line, record)
    return record


def write_line(job: Job, line: Line, record: LineRecord) -> None:
    """Keep what became of a line."""
    folder = job.folder(line)
    folder.mkdir(parents=True, exist_ok=True)
    with work_folder(folder / LINE) as work:
        write_json(record, work / LINE)
        put(work / LINE, folder / LINE, work)


def _tended(job: Job, looked: Look, ended: Ended) -> LineRecord:
    line, folder = looked.line, job.folder(looked.line)
    arguments = command_of(job, line, looked.plan)
    blank = _blank(job, looked, arguments)
    if looked.error is not None:
        return replace(blank, status=exit_status(looked.error), sentence=str(looked.error))
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    held_against = last_good(job.store, line.name)
    try:
        status = ended()
    except tuple(EXIT_STATUS) as error:
        return replace(blank, status=exit_status(error), sentence=str(error), log=_log_of(log, job))
    blank = replace(blank, status=status, log=_relative(log, job), why=_why(log, looked))
    if not job.gates:
        return _without_gate(job, looked, blank, log)
    gate = _gate_of(folder) if status in STATUS.values() else None
    is_first = bool(line.on) and gate is not None and not status and gate.outcome == "not decided"
    if gate is None or (gate.exit_status != status and not is_first):
        return replace(blank, sentence=last_words(log))
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


def _why(log: Path, looked: Look) -> tuple[str, ...]:
    """What had changed; and which engines got new weights instead of being built, as the command told it."""
    changes = tuple(sentence for sentence in looked.why if sentence != ONLY_WEIGHTS)
    if looked.plan is None or looked.plan.build.weights == STRIPPED or not log.is_file():
        return changes
    names = REFITTED.findall(log.read_text(encoding="utf-8", errors="replace"))
    return (*changes, *(f"{name}: {ONLY_WEIGHTS}" for name in dict.fromkeys(names)))


def _without_gate(job: Job, looked: Look, blank: LineRecord, log: Path) -> LineRecord:
    if blank.status:
        return replace(blank, sentence=last_words(log))
    record = replace(blank, state="made", sentence=f"{job.fleet_file.fleet.until}: done")
    return _kept_record(job, looked, record)


def _kept_record(job: Job, looked: Look, record: LineRecord) -> LineRecord:
    """The record with what it depends on; the candidate of a gate that passed becomes the last good one."""
    assert looked.plan is not None
    walked = walked_line(job, looked.line, looked.plan)
    if walked.missing is not None:
        return replace(record, sentence=f"{record.sentence}; the plan or its data changed meanwhile")
    record = replace(
        record,
        depends_on=depends_on(job, looked.line, looked.plan, walked),
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
        is_first = not record.baseline or _is_accepted(job, line)
        set_device_baseline(line.name, job.folder(line) / GATE, job.store, first=is_first)
    except (ConfigError, DataError) as error:
        if record.outcome == "pass":
            return replace(record, status=exit_status(error), sentence=f"{record.sentence}; not promoted: {error}")
        return record
    if record.outcome == "not decided":
        sentence = "it passed all that needs no baseline, and is the first last good engine"
        return replace(record, status=0, outcome="pass", promoted=True, sentence=sentence)
    return replace(record, promoted=True)


def _is_accepted(job: Job, line: Line) -> bool:
    """Whether the last good engine is of before an upgrade of its machine, and what passes now may take its place."""
    change = machine_change(line.name, job.store, gate_from_folder(job.folder(line) / GATE).machine)
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
        versions=job.versions(line),
        delivered="" if looked.last is None else looked.last.delivered,
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


def last_words(log: Path) -> str:
    """The command's own sentence, its last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    sentences = [line.removeprefix("trtforge: ") for line in lines if line.startswith("trtforge: ")]
    return (sentences or lines or ["it ended without a word"])[-1]


def _log_of(log: Path, job: Job) -> str:
    return _relative(log, job) if log.is_file() else ""


def _relative(path: Path, job: Job) -> str:
    return path.relative_to(job.fleet_file.report_folder).as_posix()
