"""The fleet file: which plans, on which devices, and what the nightly job does with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.gate.generations import NAME
from pipeline.nightly.delivery_place import Deliver, check_places
from pipeline.option import check_bounds, option
from pipeline.page.toml_text import key_text, value_text
from pipeline.plan import Plan, read_plan, table_from_file
from pipeline.remote.ssh import destinations_from
from pipeline.spelling import nearest
from pipeline.strict import NO_KEY, record_from_table
from pipeline.workers.address import SchedulerAddress, Tls, scheduler_from
from pipeline.workers.census import Expects

Until = Literal["build", "validate", "gate"]
Remeasure = Literal["changed", "always"]

DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Fleet:
    """[fleet]: the plans."""

    plans: tuple[str, ...] = option((), "patterns of plans' paths, from the folder of this file, such as */plan.toml")
    until: Until = option("gate", "how far: build, validate, or gate, which decides beside the last good engine")
    jobs: int = option(1, "plans whose models are made at the same time; what is timed is timed alone")
    scheduler: str = option("", "tls://HOST:PORT of a Dask scheduler; empty: devices are this machine, or have `on`")
    depot: str = option("", "with a scheduler: where bundles and engines pass, as fsspec reads it: file:///mnt/share")
    retries: int = option(
        2, "with a scheduler: how often a line begins anew whose worker died; a failed build does not"
    )
    wait_s: float = option(60.0, "with a scheduler: how long a device may be away in the middle, in seconds")
    tls: Tls = Tls()

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, jobs=(1, 1024), retries=(0, 100), wait_s=(1, 86400))


@dataclass(frozen=True)
class DeviceTable:
    """[device.NAME]: one way to build the plans, on this machine or another."""

    plans: tuple[str, ...] = option(("*",), "patterns of models' names")
    on: str = option("", "user@host, or a Host of ~/.ssh/config: built and gated there; empty: on this machine")
    on_python: str = option("", "interpreter there that has all that is needed; empty: an environment is made there")
    expects: Expects = Expects()
    """What its workers must be."""
    deliver: Deliver = Deliver()
    """Where its last good engines go."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Tables of the plan with other values, as [device.NAME.set.build] workspace_mib."""

    def settings(self) -> tuple[str, ...]:
        """The same as lines, as `trtforge gate --set` takes them."""
        return tuple(_lines(self.set, ""))


@dataclass(frozen=True)
class Night:
    """[nightly]: what is done with what was made."""

    budgets: tuple[str, ...] = option(("p50_ms <= 1.05 x baseline",), "of plans whose [gate] has none")
    promote: bool = option(True, "what passes its gate becomes the last good engine of its model and device")
    remeasure: Remeasure = option("changed", "when a gate is held: if something changed, or always")
    report: str = option("nightly", "folder of the report, relative to this file's; another fleet needs another")
    html: bool = option(True, "write index.html (needs the extra `report`)")
    pins: int = option(3, "nights whose results `trtforge store gc` does not remove")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, pins=(1, 1000))


@dataclass(frozen=True)
class FleetFile:
    """A whole fleet file."""

    fleet: Fleet
    device: Mapping[str, DeviceTable] = field(default_factory=lambda: {"here": DeviceTable()})
    nightly: Night = Night()
    path: Path = field(default=Path(), metadata=NO_KEY)
    """The file; not a table."""

    def scheduler(self) -> SchedulerAddress | None:
        """Where the scheduler is; None: there is none.

        Raises:
            ConfigError: it cannot be used so, or a certificate is missing.
        """
        if not self.fleet.scheduler:
            return None
        return scheduler_from(self.fleet.scheduler, self.fleet.tls, self.path.parent, str(self.path))

    @property
    def report_folder(self) -> Path:
        """Where the report and the state of the lines lie."""
        return self.path.parent / self.nightly.report


@dataclass(frozen=True)
class Line:
    """One plan on one device."""

    model: str
    device: str
    plan_path: Path
    settings: tuple[str, ...]
    on: str = ""
    """Another machine that it is built and gated on; empty: this one."""
    on_python: str = ""
    is_scheduled: bool = False
    """Built and gated by a worker that has the device's tag."""

    @property
    def is_here(self) -> bool:
        """Whether it is built and gated on this machine."""
        return not self.on and not self.is_scheduled

    @property
    def name(self) -> str:
        """As it stands in reports; also the name of its last good engine."""
        return f"{self.model}.{self.device}"

    def plan(self) -> Plan:
        """The plan, as the device wants it.

        Raises:
            ConfigError: see ``read_plan``.
        """
        return read_plan(self.plan_path, self.settings)


def read_fleet(path: Path) -> FleetFile:
    """The fleet in a TOML file.

    Raises:
        ConfigError: the file is missing, is not TOML, or has an unknown key or a value of a wrong type.
    """
    table = table_from_file(path, "a fleet file")
    if "fleet" not in table:
        raise ConfigError(f"{path}: the table [fleet] is missing; write at least [fleet] plans = ['*/plan.toml']")
    fleet_file = record_from_table(table | {"path": path}, FleetFile, str(path))
    if not fleet_file.fleet.plans:
        raise ConfigError(f"{path}: [fleet] plans is empty; write for example plans = ['*/plan.toml']")
    for name in fleet_file.device:
        if not DEVICE_NAME.fullmatch(name):
            raise ConfigError(f"{path}: [device.{name}] is no name for a device; use letters, digits, '_' and '-'")
    for name, device in fleet_file.device.items():
        if device.on and len(destinations_from((device.on,), f"{path}: [device.{name}] on")) > 1:
            raise ConfigError(f"{path}: [device.{name}] on: names several machines; write a table for each")
        if device.on_python and not device.on:
            raise ConfigError(f"{path}: [device.{name}] on_python: has an effect only with on; drop it")
        is_scheduled = bool(fleet_file.fleet.scheduler) and not device.on
        if (device.on or is_scheduled) and fleet_file.fleet.until == "validate":
            where = f"[device.{name}] on" if device.on else "a worker"
            raise ConfigError(f'{path}: [fleet] until: is "validate", and {where} builds or gates; name one')
        if device.expects != Expects() and not is_scheduled:
            raise ConfigError(f"{path}: [device.{name}] expects: has an effect only with [fleet] scheduler; drop it")
    if not fleet_file.device:
        raise ConfigError(f"{path}: [device] is empty; leave it out, or name a device: [device.orin]")
    _check_scheduler(fleet_file)
    _check_deliver(fleet_file)
    return fleet_file


def _check_deliver(fleet_file: FleetFile) -> None:
    """Raise ConfigError if engines are to be delivered that are not here, or two devices deliver to one place."""
    path = fleet_file.path
    for name, device in fleet_file.device.items():
        where = f"{path}: [device.{name}.deliver]"
        if device.deliver.to and device.on:
            raise ConfigError(f"{where} has no effect with on, as the last good engines are kept there; drop it")
        if device.deliver.to and fleet_file.fleet.until != "gate":
            raise ConfigError(f'{where} has an effect only with [fleet] until = "gate", which finds what is good')
    try:
        check_places({name: device.deliver for name, device in fleet_file.device.items()})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_scheduler(fleet_file: FleetFile) -> None:
    """Raise ConfigError if a scheduler lacks a depot or certificates, or stands where none is meant."""
    fleet, path = fleet_file.fleet, fleet_file.path
    if not fleet.scheduler:
        if fleet.depot or fleet.tls != Tls():
            raise ConfigError(f"{path}: [fleet] {'depot' if fleet.depot else 'tls'}: needs [fleet] scheduler; name it")
        return
    if all(device.on for device in fleet_file.device.values()):
        raise ConfigError(
            f"{path}: [fleet] scheduler: each device has `on`, and is reached by ssh; drop one of the two"
        )
    fleet_file.scheduler()
    if not fleet.depot:
        raise ConfigError(
            f"{path}: [fleet] depot: is missing, bundles and engines pass through it; name a place that this machine "
            "and all workers reach, such as file:///mnt/share/depot"
        )


def lines_of(fleet_file: FleetFile) -> list[Line]:
    """Every plan on every device that takes it, in the order of names.

    Raises:
        ConfigError: a pattern matches nothing, or two plans have one name.
    """
    models = models_of(fleet_file)
    lines = []
    for device_name, device in fleet_file.device.items():
        chosen = [model for model in models if any(fnmatchcase(model, pattern) for pattern in device.plans)]
        for pattern in device.plans:
            if not any(fnmatchcase(model, pattern) for model in models):
                raise ConfigError(
                    f"{fleet_file.path}: [device.{device_name}] plans: '{pattern}' matches no model"
                    f"{nearest(pattern, list(models))}"
                )
        settings = device.settings()
        is_scheduled = bool(fleet_file.fleet.scheduler) and not device.on
        place = (settings, device.on, device.on_python, is_scheduled)
        lines += [Line(model, device_name, models[model], *place) for model in chosen]
    return sorted(lines, key=lambda line: (line.model, line.device))


def models_of(fleet_file: FleetFile) -> dict[str, Path]:
    """The plans by the names of their models: that of its file, or for a ``plan.toml`` that of its folder.

    Raises:
        ConfigError: a pattern matches nothing, or two plans have one name.
    """
    models: dict[str, Path] = {}
    folder = fleet_file.path.parent
    for pattern in fleet_file.fleet.plans:
        try:
            paths = [path for path in _paths_of(folder, Path(pattern)) if not path.samefile(fleet_file.path)]
        except ValueError as error:  # A NUL in it, or `**` beside something else.
            raise ConfigError(f"{fleet_file.path}: [fleet] plans: {pattern!r} is no pattern ({error})") from error
        if not paths:
            inside = "" if Path(pattern).is_absolute() else f" in {folder}"
            raise ConfigError(f"{fleet_file.path}: [fleet] plans: '{pattern}' matches no file{inside}")
        for path in paths:
            name = path.resolve().parent.name if path.stem == "plan" else path.stem
            if not NAME.fullmatch(name):
                raise ConfigError(f"{path}: '{name}' is no name for a model; use letters, digits, '.', '_' and '-'")
            if models.get(name, path) != path:
                raise ConfigError(
                    f"{fleet_file.path}: {models[name]} and {path} are both named '{name}'; rename a folder or a file"
                )
            models[name] = path
    return models


def _paths_of(folder: Path, pattern: Path) -> list[Path]:
    """The files that a pattern matches, which may be absolute; ValueError if it is none."""
    start = Path(pattern.anchor) if pattern.is_absolute() else folder
    inside = pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern
    if not inside.parts:
        raise ValueError("it names no file")
    return sorted(path for path in start.glob(str(inside)) if path.is_file())


def _lines(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in table.items():
        bare = key_text(key)
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{bare}.")
        else:
            yield f"{prefix}{bare}={value_text(value)}"
