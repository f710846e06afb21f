"""The nightly job: every line of a fleet looked at, made where something changed, and recorded; one stops no other."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import EXIT_STATUS, ConfigError, Unavailable
from pipeline.flow import run
from pipeline.gate.generations import FOLDER as BASELINES
from pipeline.json_record import now_text, record_from_json
from pipeline.machine import child_process
from pipeline.machine.identity import installed_versions
from pipeline.nightly.deliveries import deliver_all
from pipeline.nightly.executors import Sent, SerialExecutor, Workers, hub_of, start_here
from pipeline.nightly.fleet import FleetFile, Line, lines_of
from pipeline.nightly.line import Job, Look, Wanted, glance, look, unchanged
from pipeline.nightly.outcome import Begun, tend
from pipeline.nightly.record import RECORD, SCHEMA_VERSION, LineRecord, NightRecord
from pipeline.output import remove_left_work
from pipeline.plan import read_plan
from pipeline.remote.outcome import worst_status
from pipeline.retention.pins import FOLDER as PINS
from pipeline.retention.pins import pin
from pipeline.spelling import nearest
from pipeline.store import Store
from pipeline.workers.depot import Depot
from pipeline.workers.device import RunCommand


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
        Unavailable: another nightly job works on this store, or the fleet's scheduler cannot be reached.
    """
    began = now_text()
    with _alone(store):
        job = job_of(fleet_file, store, wanted, run_command)
        for folder in (BASELINES, PINS):
            remove_left_work(store / folder)
        lines = lines_of(fleet_file)
        chosen = chosen_lines(lines, wanted)
        by_name = {}
        with hub_of(fleet_file, chosen) as (hub, devices):
            job = replace(job, devices=devices)
            workers = None if hub is None else Workers(hub, Depot(fleet_file.fleet.depot), job)
            looks = [look(job, line) if line in chosen else glance(job, line) for line in lines]
            for record in _records(job, looks, set(chosen), workers):
                by_name[record.name] = record
                if record.recipes:
                    pin(store, f"nightly {record.name}", record.recipes, fleet_file.nightly.pins)
                on_line(record)
            delivered = deliver_all(job, lines, set(chosen), by_name)
    records = [by_name[line.name] for line in lines if line.name in by_name]
    return NightRecord(
        schema_version=SCHEMA_VERSION,
        night=job.night,
        fleet=str(fleet_file.path),
        began=began,
        ended=now_text(),
        exit_status=worst_status(record.status for record in records if record.state != "left out"),
        machine=job.machine,
        versions=installed_versions(),
        lines=tuple(records),
        notes=(*_notes(job.last, began), *delivered),
    )


def _records(job: Job, looks: Sequence[Look], chosen: set[Line], workers: Workers | None) -> Iterator[LineRecord]:
    """The record of each line that has one: workers are asked first, and waited for last."""
    there = [looked for looked in looks if looked.is_sent]
    here = [looked for looked in looks if not looked.is_sent]
    serial, begun = SerialExecutor(), Begun()
    with ThreadPoolExecutor(job.fleet_file.fleet.jobs) as executor:
        sending = {} if workers is None else {executor.submit(workers.send, looked.line): looked for looked in there}
        models = {looked.line: future for looked, future in _made_models(job, here, executor)}
        for looked in here:
            if looked.line in models:
                models[looked.line].result()
            record = unchanged(job, looked, looked.line in chosen)
            if looked.is_to_do:
                at = Begun()
                record = tend(job, looked, lambda looked=looked: start_here(job, looked.line, serial).result(), at)  # type: ignore[misc]
            if record is not None:
                yield record
        if workers is not None:
            yield from _from_workers(job, sending, workers, begun)


def _from_workers(
    job: Job, sending: Mapping[Future[tuple[Future[str], Sent]], Look], workers: Workers, begun: Begun
) -> Iterator[LineRecord]:
    """The records of the lines that workers make; one that could not be sent is a failed one."""
    looks = {looked.line: looked for looked in sending.values()}
    asked = {}
    for future, looked in sending.items():
        if isinstance(future.exception(), tuple(EXIT_STATUS)):
            yield tend(job, looked, lambda future=future: len(future.result()), begun)  # type: ignore[misc]
        else:
            answer, sent = future.result()
            asked[answer] = sent
    for line, ended in workers.ended(asked):
        yield tend(job, looks[line], ended, begun)


def to_do(fleet_file: FleetFile, store: Path, wanted: Wanted) -> list[Look]:
    """The lines that would be made, or cannot be; nothing is.

    Raises:
        ConfigError: the fleet file is wrong.
    """
    job = job_of(fleet_file, store, wanted, _run_nothing)
    chosen = chosen_lines(lines_of(fleet_file), wanted)
    with hub_of(fleet_file, chosen) as (_, devices):
        job = replace(job, devices=devices)
        return [looked for line in chosen if (looked := look(job, line)).is_to_do]


def _run_nothing(_arguments: Sequence[str]) -> int:
    raise AssertionError("a dry run runs no command")


def job_of(fleet_file: FleetFile, store: Path, wanted: Wanted, run_command: RunCommand) -> Job:
    """The job of tonight; of a night that was stopped, the same one again."""
    Store(store)  # Which refuses what is no folder, or cannot be written.
    return Job(fleet_file, store, last_night(fleet_file), wanted, run_command)


def last_night(fleet_file: FleetFile) -> NightRecord | None:
    """The last night that was finished."""
    file = fleet_file.report_folder / RECORD
    if not file.exists():
        return None
    return record_from_json(file, NightRecord, SCHEMA_VERSION, f"move {file.parent} away, and run again")


def chosen_lines(lines: Sequence[Line], wanted: Wanted) -> list[Line]:
    """Those of the fleet's lines that the command line asks for.

    Raises:
        ConfigError: a pattern matches none.
    """
    for pattern in wanted.only:
        if not any(_matches(line, pattern) for line in lines):
            names = sorted({name for line in lines for name in (line.model, line.device)})
            raise ConfigError(f"--only '{pattern}': matches no model or device of the fleet{nearest(pattern, names)}")
    return [line for line in lines if not wanted.only or any(_matches(line, pattern) for pattern in wanted.only)]


def _matches(line: Line, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (line.model, line.device, line.name))


def _made_models(job: Job, stale: Sequence[Look], executor: Executor) -> Iterator[tuple[Look, Future[None]]]:
    """The half of the work that needs no quiet machine, for several lines at once."""
    if job.fleet_file.fleet.jobs == 1:
        return
    for looked in stale:
        if looked.is_to_do and looked.error is None:
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


def _notes(last: NightRecord | None, began: str) -> Iterator[str]:
    if last is not None and datetime.fromisoformat(last.ended) > datetime.fromisoformat(began):
        yield f"The clock went backwards: the last night ended at {last.ended}, this one began at {began}."
