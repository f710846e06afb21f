"""A TensorFlow SavedModel: converted by tf2onnx, run by TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from engines.backends.tensorflow import NAME as TENSORFLOW
from engines.model_format import ModelFormat
from pipeline.artifact import Engine, OnnxModel, Source
from pipeline.sources.contract import Conversion, Converted
from pipeline.sources.tf2onnx import convert

WHAT = "SavedModel folder (with saved_model.pb)"
DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class SavedModel(Source):
    """A TensorFlow SavedModel folder and one of its signatures."""

    KIND: ClassVar[str] = "savedmodel"
    BECOMES: ClassVar[frozenset[ModelFormat]] = frozenset({"onnx", "tflite"})
    signature: str = DEFAULT_SIGNATURE

    def signature_name(self) -> str:
        """The signature."""
        return self.signature


def recognises(path: Path) -> bool:
    """A folder with ``saved_model.pb``."""
    return path.is_dir() and (path / "saved_model.pb").is_file()


def source(path: Path, signature: str) -> Source:
    """The folder, by that signature."""
    return SavedModel(path, signature)


def to_onnx(source: Source, out: Path, how: Conversion) -> Converted:
    """By tf2onnx, in a process of its own. See ``contract.SourceKind``."""
    model, notes = convert(source.path, source.signature_name(), out, how)
    return Converted(model, notes=notes)


def trained(source: Source, exported: OnnxModel, runner: str) -> Engine:
    """Run by TensorFlow."""
    return Engine(source.path, TENSORFLOW, signature=source.signature_name())
