"""The nightly job: every line of a fleet looked at, made where something changed, and recorded; one stops no other."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import EXIT_STATUS, ConfigError, Unavailable
from pipeline.flow import run
from pipeline.gate.generations import FOLDER as BASELINES
from pipeline.json_record import record_from_json
from pipeline.machine import child_process
from pipeline.machine.identity import installed_versions, this_machine
from pipeline.nightly.fleet import FleetFile, Line, lines_of
from pipeline.nightly.line import Job, Look, RunCommand, Wanted, look, tend, unchanged
from pipeline.nightly.record import SCHEMA_VERSION, LineRecord, NightRecord
from pipeline.output import remove_left_work
from pipeline.plan import read_plan
from pipeline.retention.pins import FOLDER as PINS
from pipeline.retention.pins import pin
from pipeline.spelling import nearest
from pipeline.store import Store

RECORD = "nightly.json"
WORST_FIRST = (1, 4, 2, 3, 5, 6, 0)
"""Exit statuses: our bug, a tool that failed, a plan that is wrong, a machine that lacks something, out of bounds, not
decided, done."""


def night_of(
    fleet_file: FleetFile,
    store: Path,
    wanted: Wanted,
    run_command: RunCommand,
    on_line: Callable[[LineRecord], object] = lambda _record: None,
) -> NightRecord:
    """Tend all lines.

    Args:
        fleet_file: the fleet.
        store: the store's folder.
        wanted: which lines.
        run_command: `trtforge` as a function of its arguments; it is called in processes of their own.
        on_line: is told each line as it is done.

    Raises:
        ConfigError: the fleet file is wrong.
        Unavailable: another nightly job works on this store.
    """
    began = _now()
    with _alone(store):
        job = job_of(fleet_file, store, wanted, run_command)
        for folder in (BASELINES, PINS):
            remove_left_work(store / folder)
        chosen = chosen_lines(fleet_file, wanted)
        looks = [look(job, line) for line in lines_of(fleet_file)]
        stale = [looked for looked in looks if looked.line in chosen and _is_to_do(looked)]
        with ThreadPoolExecutor(fleet_file.fleet.jobs) as executor:
            models = {looked.line: future for looked, future in _made_models(job, stale, executor)}
            records = []
            for looked in looks:
                if looked in stale:
                    if looked.line in models:
                        models[looked.line].result()
                    records.append(tend(job, looked))
                elif looked.last is not None:
                    records.append(unchanged(looked, "served" if looked.line in chosen else "left out"))
                    if looked.line in chosen and looked.last.night == job.night:  # Made before this night was stopped.
                        records[-1] = looked.last
                else:
                    continue
                if records[-1].recipes:
                    pin(store, f"nightly {records[-1].name}", records[-1].recipes, fleet_file.nightly.pins)
                on_line(records[-1])
    return NightRecord(
        schema_version=SCHEMA_VERSION,
        night=job.night,
        fleet=str(fleet_file.path),
        began=began,
        ended=_now(),
        exit_status=worst(record.status for record in records if record.state != "left out"),
        machine=this_machine(),
        versions=installed_versions(),
        lines=tuple(records),
        notes=tuple(_notes(fleet_file, began)),
    )


def to_do(fleet_file: FleetFile, store: Path, wanted: Wanted) -> list[Look]:
    """The lines that would be made, or cannot be; nothing is.

    Raises:
        ConfigError: the fleet file is wrong.
    """
    job = job_of(fleet_file, store, wanted, _run_nothing)
    return [looked for line in chosen_lines(fleet_file, wanted) if _is_to_do(looked := look(job, line))]


def _run_nothing(_arguments: Sequence[str]) -> int:
    raise AssertionError("a dry run runs no command")


def job_of(fleet_file: FleetFile, store: Path, wanted: Wanted, run_command: RunCommand) -> Job:
    """The job of tonight; of a night that was stopped, the same one again."""
    last = last_night(fleet_file)
    Store(store)  # Which refuses what is no folder, or cannot be written.
    return Job(fleet_file, store, 1 if last is None else last.night + 1, wanted, run_command)


def last_night(fleet_file: FleetFile) -> NightRecord | None:
    """The last night that was finished."""
    file = fleet_file.report_folder / RECORD
    if not file.exists():
        return None
    return record_from_json(file, NightRecord, SCHEMA_VERSION, f"move {file.parent} away, and run again")


def chosen_lines(fleet_file: FleetFile, wanted: Wanted) -> list[Line]:
    """The lines that the command line asks for.

    Raises:
        ConfigError: a pattern matches none.
    """
    lines = lines_of(fleet_file)
    for pattern in wanted.only:
        if not any(_matches(line, pattern) for line in lines):
            names = sorted({name for line in lines for name in (line.model, line.device)})
            raise ConfigError(f"--only '{pattern}': matches no model or device of the fleet{nearest(pattern, names)}")
    return [line for line in lines if not wanted.only or any(_matches(line, pattern) for pattern in wanted.only)]


def worst(statuses: Iterator[int]) -> int:
    """The exit status that says most."""
    known = set(statuses)
    return next((status for status in WORST_FIRST if status in known), max(known, default=0))


def _matches(line: Line, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (line.model, line.device, line.name))


def _is_to_do(looked: Look) -> bool:
    return looked.error is not None or bool(looked.why)


def _made_models(job: Job, stale: Sequence[Look], executor: Executor) -> Iterator[tuple[Look, Future[None]]]:
    """The half of the work that needs no quiet machine, for several lines at once."""
    if job.fleet_file.fleet.jobs == 1:
        return
    for looked in stale:
        if looked.error is None:
            log = job.folder(looked.line) / "models.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            line = looked.line
            yield looked, executor.submit(_make_models, log, line, job.store)


def _make_models(log: Path, line: Line, store: Path) -> None:
    """Whatever stops it stops the judging too, which says so."""
    log.unlink(missing_ok=True)
    try:
        child_process.call(log, line.name, _models_only, line, store)
    except tuple(EXIT_STATUS):
        return


def _models_only(line: Line, store: Path) -> None:
    run(read_plan(line.plan_path, line.settings), Store(store), "tolerate")


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Refuse to work where another nightly job does."""
    store.mkdir(parents=True, exist_ok=True)
    file = store / "nightly.lock"
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unavailable(f"{store}: another nightly job works on this store; wait for its end") from error
        yield


def _notes(fleet_file: FleetFile, began: str) -> Iterator[str]:
    last = last_night(fleet_file)
    if last is not None and datetime.fromisoformat(last.ended) > datetime.fromisoformat(began):
        yield f"The clock went backwards: the last night ended at {last.ended}, this one began at {began}."


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
