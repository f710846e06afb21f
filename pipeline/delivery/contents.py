"""What of an engine a server's configuration is made from: its tensors, profiles, precision and GPU."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.data.source import DYNAMIC
from engines.contract import ShapeRange, TensorSpec
from engines.onnx_model import facts
from pipeline.artifact import Artifact
from pipeline.errors import ConfigError
from pipeline.output import check_no_folder, checked_record

Profile = Mapping[str, ShapeRange]


@dataclass(frozen=True)
class Delivered:
    """An engine with what its record says of it."""

    name: str
    """Of the baseline."""
    path: Path
    backend: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    """Optimization profiles; empty where the engine takes its inputs' shapes as they are."""
    compute_capability: str
    """Of the GPU that it was built on, such as ``8.7``; empty where it is for none."""
    max_batch: int
    """The largest batch that any profile takes; 0: no bound."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """That it was built with, as its record has them."""
    preprocess: str = ""
    """What was done to the samples that it was gated on, a sentence; empty where that is not known."""

    def files(self) -> list[Path]:
        """The engine's file, and those that hold weights of it."""
        return [self.path, *Artifact(self.path).weight_files()]

    @property
    def has_batch(self) -> bool:
        """Whether the first dimension of every input and output is the batch, and may vary."""
        return all(spec.shape[:1] == (DYNAMIC,) for spec in (*self.inputs, *self.outputs))

    def batch_of(self, profile: Profile) -> int:
        """The largest batch of a profile: the smallest of its inputs' largest, as Triton has it."""
        return min(ranges.max[0] for ranges in profile.values())


@contextmanager
def delivering_to(folder: Path) -> Iterator[None]:
    """While it is entered nobody else delivers to the folder: who comes second waits. It is made where it is not there.

    Raises:
        ConfigError: it cannot be made.
    """
    make_folder(folder, ())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Of a file system that has no locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_folder(folder: Path, files: Iterable[str]) -> None:
    """Make the folder that is delivered to, where it is not there.

    Args:
        folder: the folder.
        files: names of what is going to be written there.

    Raises:
        ConfigError: it cannot be made, as where a file is in its way, or a folder in it has the name of such a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error
    for name in files:
        check_no_folder(folder / name)


def delivered_from(name: str, path: Path, backend: str) -> Delivered:
    """An engine's file with its record, which lies beside it; an ONNX file says itself what it takes and gives.

    Raises:
        ConfigError: there is no record of this file.
        ModelError: the ONNX file is damaged.
    """
    record = checked_record(path)
    if not record and path.suffix == ".onnx":
        model = facts(path)
        return Delivered(name, path, backend, "", model.inputs, model.outputs, (), "", 0)
    if not record:
        raise ConfigError(
            f"{path}: has no record, which says what its inputs are; set the baseline again, from a gate of an engine "
            "that `trtforge build` or a plan made"
        )
    try:
        return Delivered(
            name=name,
            path=path,
            backend=backend,
            precision=record["precision"],
            inputs=tuple(map(_spec, record["inputs"])),
            outputs=tuple(map(_spec, record["outputs"])),
            profiles=tuple(map(_profile, record.get("options", {}).get("profiles", ()))),
            compute_capability=str(record.get("versions", {}).get("compute_capability", "")),
            max_batch=int(record.get("max_batch", 0)),
            options=dict(record.get("options", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: its record is not whole ({error}); build the engine again") from error


def _spec(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(str(data["name"]), str(data["dtype"]), tuple(int(size) for size in data["shape"]))


def _profile(data: Mapping[str, Any]) -> Profile:
    return {
        name: ShapeRange(*(tuple(int(size) for size in ranges[which]) for which in ("min", "opt", "max")))
        for name, ranges in data.items()
    }
