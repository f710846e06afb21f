"""What every kind of source offers, and which kind a user's path is."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol, cast

import onnx

from pipeline.artifact import Engine, OnnxModel, Source, TfliteModel
from pipeline.errors import ConfigError

RENAMED = "source.onnx"
"""Beside the exported model: an ONNX source with portable tensor names and no plugin, where it had others, or one."""
NO_KINDS = ("contract", "side_effects", "tf2onnx")
"""Files of this room that are no kind of source."""


@dataclass(frozen=True)
class Conversion:
    """How a source is converted."""

    opset: int
    allow: tuple[str, ...] = ()
    """Operators and layers that run code of the model's, or touch files, and are allowed to."""


@dataclass(frozen=True)
class Converted:
    """An ONNX model that answers as the source does, before trtforge changes anything in it."""

    model: onnx.ModelProto
    original: onnx.ModelProto | None = None
    """The source itself, where it is ONNX and something was changed already."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the report."""
    runs_alone: bool = True
    """Whether every runtime runs the source's own file; else ``original`` is run in its place."""


class SourceKind(Protocol):
    """A module of this room. Every name below is a module-level name of it."""

    WHAT: str
    """What a user brings, for sentences: endings such as ``.keras, .h5``, or what a folder is and holds."""

    def recognises(self, path: Path) -> bool:
        """Whether a path is of this kind, by its ending or by what a folder holds; one that is not there seldom is."""
        ...

    def source(self, path: Path, signature: str) -> Source:
        """The source; ``signature``: which of several, where the kind has such."""
        ...

    def to_onnx(self, source: Source, out: Path, how: Conversion) -> Converted:
        """Convert it, of ``how.opset`` at least. What it is compared with later may be left in the folder ``out``.

        Raises:
            ConfigError: it has no such signature, or runs code that is not allowed.
            Unavailable: what reads or converts it is not installed.
            StageError: it cannot be converted.
        """
        ...

    def trained(self, source: Source, exported: OnnxModel, runner: str) -> Engine:
        """The trained network as an engine that answers samples; ``runner``: the backend that runs ONNX files."""
        ...


def kind_names() -> tuple[str, ...]:
    """The kinds: the files of this room."""
    folder = Path(__file__).parent
    return tuple(
        sorted(file.stem for file in folder.glob("*.py") if file.stem not in NO_KINDS and file.stem[0] not in "._")
    )


def module_of(kind: str) -> str:
    """The module of a kind, by its dotted name."""
    return f"pipeline.sources.{kind}"


@cache
def source_kind(name: str) -> SourceKind:
    """The kind of that name. Loads this project's file for it, not what reads such sources."""
    return cast(SourceKind, importlib.import_module(module_of(name)))


def source_from_path(path: Path, signature: str) -> Source:
    """What a user's path is, by its ending and content.

    Raises:
        ConfigError: there is nothing, or nothing that can be converted.
    """
    kinds = [source_kind(name) for name in kind_names()]
    listed = ", ".join(kind.WHAT for kind in kinds)
    for kind in kinds:
        if kind.recognises(path):
            return kind.source(path, signature)
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; give one of {listed}")
    raise ConfigError(f"{path}: is none of {listed}; convert it to one of these first")


def check_convertible(source: Source) -> None:
    """That a network can become a `.tflite` file.

    Raises:
        ConfigError: it is of a kind from which no way leads there.
    """
    if TfliteModel.FORMAT not in source.BECOMES:
        raise ConfigError(
            f"{source.path}: a .tflite file is made of a SavedModel or a Keras file; what makes it of ONNX cannot be "
            "installed beside the rest: give the network that it came from, or take a backend other than litert"
        )


def first_line(error: BaseException) -> str:
    """The first line of what a tool says of its error."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
