"""The census: which workers have a device's tag, what they are, and why a device is not used; nothing is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, Unavailable
from pipeline.json_record import record_from_data
from pipeline.option import option
from pipeline.remote.device_files import is_version
from pipeline.workers.device import WorkerInfo, program_digest
from pipeline.workers.scheduler import Hub

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN_DIGEST = 12


@dataclass(frozen=True)
class Expects:
    """[device.NAME] expects: what its workers must be."""

    tensorrt: str = option("", "version of TensorRT, or how it begins, such as 10.3")
    power_mode: str = option("", "of a Jetson, such as MAXN")
    free_gib: float = option(0.0, "free on its disk")


@dataclass(frozen=True)
class SeenWorker:
    """A worker that has a device's tag."""

    name: str
    info: WorkerInfo | None
    """None: it could not say."""
    refusal: str
    """Why it is not used; empty: it is."""


@dataclass(frozen=True)
class DeviceState:
    """A device as the census saw it."""

    device: str
    workers: tuple[SeenWorker, ...]
    refusal: str
    """Why nothing is sent to it; empty: it is used."""

    @property
    def infos(self) -> list[WorkerInfo]:
        """What its workers say of themselves."""
        return [worker.info for worker in self.workers if worker.info is not None]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that results depend on there."""
        seen = sorted({f"{info.machine} {sorted(info.versions.items())} {info.tensorrt}" for info in self.infos})
        return hashlib.sha256("\n".join(seen).encode()).hexdigest()

    @property
    def versions(self) -> dict[str, str]:
        """Of distributions there; TensorRT's also where it is no distribution of Python's."""
        info = self.infos[0]
        return info.versions | ({"tensorrt": info.tensorrt} if info.tensorrt else {})


def census(hub: Hub, devices: Mapping[str, Expects]) -> dict[str, DeviceState]:
    """Ask every worker that has one of these devices' tags.

    Workers of one tag are one device: if one of them is refused, so is the device.

    Raises:
        Unavailable: the scheduler is gone.
    """
    tags = {key: (name, tags) for key, (name, tags) in hub.workers().items() if set(tags) & set(devices)}
    answers = hub.ask({"ask": "census"}, sorted(tags)) if tags else {}
    states = {}
    for device, expects in devices.items():
        seen = tuple(
            _seen(name, answers.get(key, Unavailable("it is gone")), expects)
            for key, (name, worker_tags) in sorted(tags.items(), key=lambda item: item[1][0])
            if device in worker_tags
        )
        states[device] = DeviceState(device, seen, _refusal(device, seen, hub.address.text))
    return states


def _refusal(device: str, seen: tuple[SeenWorker, ...], scheduler: str) -> str:
    if not seen:
        return (
            f"device {device}: no worker at {scheduler} has its tag; start there `dask worker {scheduler} "
            f'--resources "{device}=1" --nthreads 1`'
        )
    machines = {worker.info.machine for worker in seen if worker.info is not None}
    refused = next((f"worker {worker.name}: {worker.refusal}" for worker in seen if worker.refusal), "")
    if not refused and len(machines) > 1:
        names = ", ".join(worker.name for worker in seen)
        return f"device {device}: its workers {names} are machines of different kinds; give each kind a tag of its own"
    return f"device {device}: {refused}" if refused else ""


def _seen(name: str, answer: dict[str, Any] | Exception, expects: Expects) -> SeenWorker:
    if isinstance(answer, Exception):
        words = f"{type(answer).__name__}: {answer}".splitlines()[0][:200]
        return SeenWorker(name, None, f"cannot be asked ({words}); install trtforge there, and start it again")
    if answer.get("status") != 0:
        return SeenWorker(name, None, str(answer.get("sentence"))[:500])
    try:
        fields = {key: value for key, value in answer.items() if key != "status"}
        info = record_from_data(fields, WorkerInfo, name, "install the same version of trtforge there")
    except ConfigError as error:
        return SeenWorker(name, None, f"runs another version of trtforge ({error})")
    return SeenWorker(name, info, next(_misfits(info, expects), ""))


def _misfits(info: WorkerInfo, expects: Expects) -> Iterator[str]:
    """Each thing by which a worker is refused."""
    if info.source != (here := program_digest()):
        there = f"trtforge {info.trtforge} (source {info.source[:SHOWN_DIGEST]})"
        yield f"runs {there}, here it is source {here[:SHOWN_DIGEST]}; install the same one there"
    expected = expects.tensorrt.rstrip(".")
    if not is_version(info.tensorrt, expected):
        has = f"has TensorRT {info.tensorrt}" if info.tensorrt else "has no TensorRT"
        yield f"{has}, {expected} is expected (expects); install it, or write what it has"
    if expects.power_mode and info.power_mode != expects.power_mode:
        has = f"is in power mode {info.power_mode}" if info.power_mode else "has no power mode"
        yield f"{has}, {expects.power_mode} is expected (expects); set it with nvpmodel, or write what it is"
    if info.free_mib < expects.free_gib * 1024:
        free = f"has {info.free_mib / 1024:.1f} GiB free"
        yield f"{free}, {expects.free_gib:g} GiB are expected (expects); make room there"
