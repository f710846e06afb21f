"""Baselines: an engine that passed its gate, kept whole with its raw latencies and the machine they come from.

Layout, in the store's folder::

    baselines/NAME/baseline.json   what it is, and on which machine it was measured (``BaselineRecord``)
    baselines/NAME/engine/...      the engine itself, and the files of its weights
    baselines/NAME/samples/*.npz   the raw latencies of the gate that it passed
    baselines/NAME/SHA256SUMS      of every file, as `sha256sum` reads it

It is published by one rename. The engine is a hard link where it lies in the store, else a copy.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipeline.artifact import Engine
from pipeline.bundle import SUMS, faults_by_sums, read_sums, sums_of
from pipeline.errors import ConfigError, DataError
from pipeline.gate.checks import digest_of_engine, files_of_engine
from pipeline.gate.record import SCHEMA_VERSION as GATE_SCHEMA
from pipeline.gate.record import Check, EngineInfo, GateRecord, LatencyMeasurement
from pipeline.json_record import record_from_json, write_json
from pipeline.machine.identity import Machine, this_machine
from pipeline.output import alone, put, share, work_folder

SCHEMA_VERSION = 1
FOLDER, RECORD, GATE_RECORD = "baselines", "baseline.json", "gate.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
AGAIN = "set it again from a gate that passed, with `trtforge baseline set`"


@dataclass(frozen=True)
class BaselineRecord:
    """baseline.json."""

    schema_version: int
    set_on: str
    """ISO 8601, with the offset from UTC."""
    gated_on: str
    engine: EngineInfo
    """Its path is relative to the baseline's folder."""
    machine: Machine
    evaluation_digest: str
    metric: str
    checks: tuple[Check, ...]
    """Of the gate that it passed."""
    measured: tuple[LatencyMeasurement, ...]


@dataclass(frozen=True)
class Baseline:
    """A kept baseline that was checked."""

    folder: Path
    record: BaselineRecord

    @property
    def engine(self) -> Engine:
        """The engine, ready to be measured."""
        info = self.record.engine
        path = self.folder / info.path
        return Engine(path, info.backend, min_batch=info.min_batch, max_batch=info.max_batch)


def is_variant_name(name: str) -> bool:
    """Whether ``[gate] baseline`` names a variant of the plan, ``precision@backend``, not a kept baseline."""
    return "@" in name


def check_name(name: str) -> None:
    """Raise ConfigError unless the name can be that of a kept baseline."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"baseline '{name}': is not a valid name; use letters, digits, '.', '_' and '-', such as last-good"
        )


def baseline_named(name: str, store: Path) -> Baseline | None:
    """The kept baseline of that name, checked; None if there is none.

    Raises:
        ConfigError: the name cannot be one, or it was measured on another machine.
        DataError: it is damaged.
    """
    check_name(name)
    folder = store / FOLDER / name
    if not folder.exists():
        return None
    baseline = read_baseline(folder)
    here = this_machine()
    if differences := here.differences(baseline.record.machine):
        raise ConfigError(
            f"baseline '{name}': was measured on another machine ({'; '.join(differences)}: here against there), and "
            "runs of different machines are not compared; gate there, or set one that was measured here"
        )
    return baseline


def read_baseline(folder: Path) -> Baseline:
    """A baseline in its folder, every file checked against ``SHA256SUMS``.

    Raises:
        DataError: a file is missing or is not what was set.
    """
    name = folder.name
    try:
        digests = read_sums(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"baseline '{name}': {folder / SUMS} cannot be read ({error}); {AGAIN}") from error
    for path, problem in faults_by_sums(folder, digests):
        words = {
            "missing": f"{path} is missing",
            "changed": f"{path} is not what was set (SHA-256 differs)",
            "unlisted": f"{folder / SUMS} does not list {path}, so it is incomplete",
        }
        raise DataError(f"baseline '{name}': {words[problem]}; {AGAIN}")
    try:
        baseline = Baseline(folder, record_from_json(folder / RECORD, BaselineRecord, SCHEMA_VERSION, AGAIN))
    except ConfigError as error:
        raise DataError(f"baseline '{name}': {error}") from error
    if baseline.record.engine.path not in digests:
        raise DataError(f"baseline '{name}': its engine {baseline.engine.path} is missing; {AGAIN}")
    return baseline


def baselines_in(store: Path) -> Iterator[tuple[str, Baseline | DataError]]:
    """Every baseline that is kept, in the order of names; a damaged one as what is wrong with it."""
    for folder in sorted((store / FOLDER).glob("*/")):
        if not NAME.fullmatch(folder.name):
            continue  # One that is being set.
        try:
            yield folder.name, read_baseline(folder)
        except DataError as error:
            yield folder.name, error


def set_baseline(name: str, gate_folder: Path, store: Path, *, first: bool) -> Baseline:
    """Keep the candidate of a gate that passed.

    Args:
        name: of the baseline; one of that name is replaced.
        gate_folder: what `trtforge gate` wrote.
        store: the store's folder.
        first: also take a gate that lacks nothing but this baseline.

    Raises:
        ConfigError: the gate did not pass, or was run on another machine.
        DataError: the engine or the raw latencies are no longer what was gated.
    """
    check_name(name)
    gate = gate_from_folder(gate_folder)
    _check_passed(gate, gate_folder, first=first)
    if differences := this_machine().differences(gate.machine):
        raise ConfigError(f"{gate_folder}: was gated on another machine ({'; '.join(differences)}); gate it here")
    info = next(engine for engine in gate.engines if engine.name == gate.candidate)
    engine = Engine(Path(info.path), info.backend, min_batch=info.min_batch, max_batch=info.max_batch)
    if not engine.path.is_file() or digest_of_engine(engine.path) != info.digest:
        what = "is not what was gated" if engine.path.is_file() else "is no longer there"
        raise DataError(f"{engine.path}: {what}; gate it again, and set the baseline from that")
    final = store / FOLDER / name
    with work_folder(final) as work, alone(store / FOLDER, store):
        new = work / "new"
        for file in files_of_engine(engine.path):
            _take(file, new / "engine" / file.relative_to(engine.path.parent), store)
        measurements = tuple(measurement for measurement in gate.measured if measurement.variant == gate.candidate)
        for measurement in measurements:
            _take(gate_folder / measurement.queries_file, new / measurement.queries_file, store)
        write_json(_baseline_record(gate, info, measurements), new / RECORD)
        (new / SUMS).write_text(sums_of(new), encoding="utf-8")
        _check_copy(new, engine, info)
        share(new, store)
        put(new, final, work)
    return read_baseline(final)


def gate_from_folder(folder: Path) -> GateRecord:
    """What `trtforge gate` wrote into a folder; ConfigError if it holds no whole gate.json."""
    file = folder / GATE_RECORD
    if not file.is_file():
        raise ConfigError(f"{folder}: has no {GATE_RECORD}; give the folder that `trtforge gate` wrote")
    return record_from_json(file, GateRecord, GATE_SCHEMA, "gate it again")


def _check_passed(gate: GateRecord, folder: Path, *, first: bool) -> None:
    not_passed = [check for check in gate.checks if check.outcome != "pass"]
    excused = [check for check in not_passed if check.outcome == "not decided" and _lacks_baseline(check, gate)]
    if len(not_passed) > len(excused):
        check = next(check for check in not_passed if check not in excused)
        raise ConfigError(
            f"{folder}: the gate of {gate.candidate} did not pass ({check.budget}: {check.outcome}); a baseline "
            "must have passed: set one from a gate that did"
        )
    if excused and not first:
        raise ConfigError(
            f"{folder}: the gate of {gate.candidate} was not decided because there was no baseline "
            f"({excused[0].budget}); "
            "add --first to take it as the first one"
        )


def _lacks_baseline(check: Check, gate: GateRecord) -> bool:
    return not gate.baseline and (check.relative or check.budget.partition(" <")[0].endswith("baseline"))


def _baseline_record(gate: GateRecord, info: EngineInfo, measured: tuple[LatencyMeasurement, ...]) -> BaselineRecord:
    return BaselineRecord(
        schema_version=SCHEMA_VERSION,
        set_on=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gated_on=gate.created,
        engine=EngineInfo(**{**vars(info), "path": f"engine/{Path(info.path).name}"}),
        machine=gate.machine,
        evaluation_digest=gate.evaluation.digest,
        metric="" if gate.metric is None else gate.metric.name,
        checks=gate.checks,
        measured=measured,
    )


def _take(source: Path, target: Path, store: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_file():
        raise DataError(f"{source}: is missing; gate again, and set the baseline from that")
    if source.resolve().is_relative_to(store.resolve()):
        with contextlib.suppress(OSError):  # Another disk, or a file system without links.
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _check_copy(new: Path, engine: Engine, info: EngineInfo) -> None:
    if digest_of_engine(new / "engine" / engine.path.name) != info.digest:
        raise DataError(f"{engine.path}: changed while it was copied; set the baseline again")
