"""Baselines: an engine that passed its gate, kept whole with its raw latencies and the machine they come from.

Layout, in the store's folder::

    baselines/NAME/baseline.json   what it is, and on which machine it was measured (``BaselineRecord``)
    baselines/NAME/engine/...      the engine itself, its record, and the files of its weights
    baselines/NAME/samples/*.npz   the raw latencies of the gate that it passed
    baselines/NAME/SHA256SUMS      of every file, as `sha256sum` reads it

It is published by one rename, and those before it are kept (``pipeline.gate.generations``). The engine is a hard link
where it lies in the store, else a copy.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifact import Engine, digest_of_engine, files_of_engine
from pipeline.bundle import SUMS, faults_by_sums, read_sums, sums_of
from pipeline.errors import ConfigError, DataError, NotDecided
from pipeline.gate.generations import (
    FOLDER,
    add_generation,
    check_name,
    check_stored,
    current_folder,
    current_number,
    folder_of,
    make_current,
    names_in,
    numbers_of,
    settle,
    withdrawn,
    write_withdrawn,
)
from pipeline.gate.record import SCHEMA_VERSION as GATE_SCHEMA
from pipeline.gate.record import Check, EngineInfo, GateRecord, LatencyMeasurement
from pipeline.json_record import now_text, record_from_json, write_json
from pipeline.machine.identity import Machine, this_machine
from pipeline.machine.upgrade import MachineChange, change_since
from pipeline.output import alone, record_to_keep, share, sync, work_folder

SCHEMA_VERSION = 1
RECORD, GATE_RECORD = "baseline.json", "gate.json"
KEEP = 3
"""Generations before the current one."""
AGAIN = "set it again from a gate that passed, with `trtforge baseline set`"

log = logging.getLogger(__name__)


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
    preprocess: str = ""
    """What was done to the evaluation samples, a sentence; empty where an older version kept the baseline."""


@dataclass(frozen=True)
class Baseline:
    """A kept baseline that was checked."""

    folder: Path
    record: BaselineRecord

    @property
    def engine(self) -> Engine:
        """The engine, ready to be measured."""
        info = self.record.engine
        return Engine(self.folder / info.path, info.backend, min_batch=info.min_batch, max_batch=info.max_batch)


@dataclass(frozen=True)
class Generation:
    """One generation of a baseline, whose files were not checked."""

    number: int
    folder: Path
    record: BaselineRecord
    is_current: bool
    withdrawn_on: str
    """When it was rolled back from (ISO 8601); empty for all others."""


def is_variant_name(name: str) -> bool:
    """Whether ``[gate] baseline`` names a variant of the plan, ``precision@backend``, not a kept baseline."""
    return "@" in name


def baseline_named(name: str, store: Path) -> Baseline | None:
    """The kept baseline of that name, checked; None if there is none.

    Raises:
        ConfigError: the name cannot be one, or it was measured on another machine, or as this one is not set now.
        NotDecided: it was measured on this machine before that was upgraded.
        DataError: it is damaged.
    """
    check_name(name)
    if (baseline := stored_baseline(name, store)) is None:
        return None
    change = change_since(baseline.record.machine, this_machine())
    differences, accept = "; ".join(change.differences), f"`trtforge baseline set {name} FOLDER --first`"
    if change.kind == "upgrade":
        raise NotDecided(
            f"baseline '{name}' was measured before this machine was upgraded ({differences}), and is not compared "
            f"with what is measured now; gate again, and accept the first engine of the new system with {accept}"
        )
    if change.kind == "settings":
        raise ConfigError(
            f"baseline '{name}': was measured with other settings of this machine ({differences}); set them as they "
            "were, or name another baseline for these settings"
        )
    if change.kind != "none":
        raise ConfigError(
            f"baseline '{name}': was measured on another machine ({differences}), and runs of different machines are "
            "not compared; gate there, or set one that was measured here"
        )
    return baseline


def machine_change(name: str, store: Path, now: Machine) -> MachineChange | None:
    """What became of the machine since the current baseline was measured; None if there is none that can be read."""
    folder = current_folder(name, store)
    try:
        record = None if folder is None else record_from_json(folder / RECORD, BaselineRecord, SCHEMA_VERSION, AGAIN)
    except ConfigError:
        return None
    return None if record is None else change_since(record.machine, now)


def stored_baseline(name: str, store: Path) -> Baseline | None:
    """The current one, checked, on whatever machine it was measured; None if there is none.

    Raises:
        DataError: it is damaged.
    """
    while (folder := current_folder(name, store)) is not None:
        try:
            return read_baseline(folder, name)
        except DataError:
            if current_folder(name, store) == folder:
                raise  # Else it was set again, and this generation removed, in between.
    return None


def read_baseline(folder: Path, name: str = "") -> Baseline:
    """A baseline in its folder, every file checked against ``SHA256SUMS``.

    Raises:
        DataError: a file is missing or is not what was set; of the baseline ``name``, if not that of the folder.
    """
    name = name or folder.name
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
    if not any(f"{path}/".startswith(f"{baseline.record.engine.path}/") for path in digests):
        raise DataError(f"baseline '{name}': its engine {baseline.engine.path} is missing; {AGAIN}")
    return baseline


def baselines_in(store: Path) -> Iterator[tuple[str, Baseline | DataError]]:
    """Every baseline that is kept, in the order of names; a damaged one as what is wrong with it."""
    for name in names_in(store):
        try:
            if (baseline := stored_baseline(name, store)) is not None:
                yield name, baseline
        except DataError as error:
            yield name, error


def generations(name: str, store: Path) -> tuple[Generation, ...]:
    """All that can be rolled back to, and the current one, in the order in which they were set; files are not checked.

    One that was being set when its process was killed is none of them.
    """
    current, engines, listed = current_number(name, store), withdrawn(name, store), []
    for number in numbers_of(name, store):
        folder = folder_of(name, number, store)
        try:
            record = record_from_json(folder / RECORD, BaselineRecord, SCHEMA_VERSION, AGAIN)
        except ConfigError as error:
            log.warning("baseline '%s', generation %d: %s", name, number, error)
            continue
        withdrawn_on = engines.get(record.engine.digest, "")
        if number <= current or withdrawn_on:
            listed.append(Generation(number, folder, record, number == current, withdrawn_on))
    return tuple(listed)


def set_baseline(name: str, gate_folder: Path, store: Path, *, first: bool, keep: int = KEEP) -> Baseline:
    """Keep the candidate of a gate that passed. The one before stays, as a generation that can be rolled back to.

    Where it is the same engine it takes the place of that one; if it had been rolled back from, it no longer is.

    Args:
        name, store: of the baseline, and the store's folder that it lies in.
        gate_folder: what `trtforge gate` wrote.
        first: also take a gate that lacks nothing but this baseline.
        keep: how many generations before this one stay; those that were rolled back from go first.

    Raises:
        ConfigError: the gate did not pass, or was run on another machine.
        DataError: the engine or the raw latencies are no longer what was gated.
    """
    check_name(name)
    gate = gate_from_folder(gate_folder)
    if differences := this_machine().differences(gate.machine):
        raise ConfigError(f"{gate_folder}: was gated on another machine ({'; '.join(differences)}); gate it here")
    return set_device_baseline(name, gate_folder, store, first=first, keep=keep)


def set_device_baseline(name: str, gate_folder: Path, store: Path, *, first: bool, keep: int = KEEP) -> Baseline:
    """As ``set_baseline``, of a gate on whatever machine."""
    check_name(name)
    gate = gate_from_folder(gate_folder)
    _check_passed(gate, gate_folder, first=first)
    info = next(engine for engine in gate.engines if engine.name == gate.candidate)
    engine = Engine(Path(info.path), info.backend, min_batch=info.min_batch, max_batch=info.max_batch)
    if not engine.path.exists() or digest_of_engine(engine.path) != info.digest:
        what = "is not what was gated" if engine.path.exists() else "is no longer there"
        raise DataError(f"{engine.path}: {what}; gate it again, and set the baseline from that")
    final = store / FOLDER / name
    with work_folder(final) as work, alone(store / FOLDER, store):
        new = work / "new"
        for file in files_of_engine(engine.path):
            _take(file, new / "engine" / file.relative_to(engine.path.parent), store)
        if record := record_to_keep(engine.path):
            record |= {"min_batch": info.min_batch, "max_batch": info.max_batch}
            (new / "engine" / f"{engine.path.name}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        measurements = tuple(measurement for measurement in gate.measured if measurement.variant == gate.candidate)
        for measurement in measurements:
            _take(gate_folder / measurement.queries_file, new / measurement.queries_file, store)
        write_json(_baseline_record(gate, info, measurements), new / RECORD)
        (new / SUMS).write_text(sums_of(new), encoding="utf-8")
        _check_copy(new, engine, info)
        share(new, store)
        sync(new)
        settle(name, store)
        make_current(name, add_generation(name, new, store), store, work)
        _take_back(name, info.digest, store, work)
        _drop_generations(name, keep, store, work)
    return read_baseline(final)


def rollback(name: str, store: Path, to: int = 0) -> Baseline:
    """Make an earlier generation the current one, by one rename; its files are checked, and nothing is built.

    What is rolled back from is remembered as withdrawn, with the generations in between; going on to a later one takes
    that back.

    Args:
        name: of the baseline.
        store: the store's folder.
        to: the generation's number; 0: the last one before the current one that is another engine, not withdrawn.

    Raises:
        ConfigError: there is no such baseline, or no such generation of it.
        DataError: it is damaged.
    """
    check_stored(name, store)
    with work_folder(store / FOLDER / name) as work, alone(store / FOLDER, store):
        settle(name, store)
        by_number = {generation.number: generation for generation in generations(name, store)}
        current = current_number(name, store)
        if to == 0:
            engine = {g.record.engine.digest for g in by_number.values() if g.is_current}
            others = [g for g in by_number.values() if not g.withdrawn_on and g.record.engine.digest not in engine]
            to = max((g.number for g in others if g.number < current), default=0)
        if to not in by_number or to == current:
            raise ConfigError(_no_such_generation(name, to, current, by_number))
        read_baseline(by_number[to].folder, name)
        target = by_number[to].record.engine.digest
        passed = {g.record.engine.digest for g in by_number.values() if to < g.number <= current} - {target}
        write_withdrawn(name, dict.fromkeys(passed, now_text()) | withdrawn(name, store), store, work)
        make_current(name, to, store, work)
        _take_back(name, target, store, work)
    return read_baseline(store / FOLDER / name)


def _no_such_generation(name: str, to: int, current: int, by_number: Mapping[int, Generation]) -> str:
    numbers = ", ".join(str(number) for number in by_number if number != current)
    if not numbers:
        return f"baseline '{name}': has no generation but the current one, {current}; set another from a gate"
    if not to:
        return (
            f"baseline '{name}': no generation before the current one, {current}, was not withdrawn; name one with "
            f"--to: {numbers}"
        )
    what = "is the current one" if to == current else "is not stored"
    return f"baseline '{name}': generation {to} {what}; give one of {numbers} with --to"


def _take_back(name: str, engine: str, store: Path, work: Path) -> None:
    """The engine with this digest, which is the current one now, is not withdrawn any more."""
    engines = withdrawn(name, store)
    if since := engines.pop(engine, ""):
        log.warning("baseline '%s': its engine was withdrawn on %s; it is the current one again", name, since)
        write_withdrawn(name, engines, store, work)


def _drop_generations(name: str, keep: int, store: Path, work: Path) -> None:
    """Remove what holds the current engine too, what a kill left, and what is more than ``keep``, the oldest first."""
    listed = {generation.number: generation for generation in generations(name, store)}
    current = listed[current_number(name, store)]
    others = [g for g in listed.values() if g.record.engine.digest != current.record.engine.digest]
    others.sort(key=lambda generation: (not generation.withdrawn_on, generation.number))
    staying = {current.number, *(generation.number for generation in others[max(len(others) - keep, 0) :])}
    for number in {*numbers_of(name, store)} - staying:
        folder_of(name, number, store).rename(work / f"dropped{number}")


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
            f"{folder}: the gate of {gate.candidate} was not decided because there was no baseline to "
            f"compare with ({excused[0].budget}); add --first to take it as the first one"
        )


def _lacks_baseline(check: Check, gate: GateRecord) -> bool:
    return not gate.baseline and (check.relative or check.budget.partition(" <")[0].endswith("baseline"))


def _baseline_record(gate: GateRecord, info: EngineInfo, measured: tuple[LatencyMeasurement, ...]) -> BaselineRecord:
    return BaselineRecord(
        schema_version=SCHEMA_VERSION,
        set_on=now_text(),
        gated_on=gate.created,
        engine=EngineInfo(**{**vars(info), "path": f"engine/{Path(info.path).name}"}),
        machine=gate.machine,
        evaluation_digest=gate.evaluation.digest,
        metric="" if gate.metric is None else gate.metric.name,
        checks=gate.checks,
        measured=measured,
        preprocess=gate.evaluation.preprocess,
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
