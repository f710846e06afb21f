"""A Keras file: saved again as a SavedModel, which is converted and run."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from engines.backends.tensorflow import NAME as TENSORFLOW
from pipeline.artifact import Engine, OnnxModel, Source
from pipeline.sources.contract import Conversion, Converted
from pipeline.sources.tf2onnx import SAVEDMODEL, convert

WHAT = ".keras, .h5"
SUFFIXES = (".keras", ".h5", ".hdf5")
SIGNATURE = "serving_default"
"""Of the SavedModel that Keras writes."""


class KerasFile(Source):
    """A ``.keras`` file, or a Keras ``.h5`` file."""

    KIND: ClassVar[str] = "keras"


def recognises(path: Path) -> bool:
    """By its ending."""
    return path.is_file() and path.suffix in SUFFIXES


def source(path: Path, _signature: str) -> Source:
    """The file."""
    return KerasFile(path)


def to_onnx(source: Source, out: Path, how: Conversion) -> Converted:
    """By way of a SavedModel, which is left in ``out``. See ``contract.SourceKind``."""
    model, notes = convert(source.path, SIGNATURE, out, how, is_keras=True)
    return Converted(model, notes=notes)


def trained(source: Source, exported: OnnxModel, runner: str) -> Engine:
    """The SavedModel that the export made of it, run by TensorFlow."""
    return Engine(exported.beside(SAVEDMODEL), TENSORFLOW, signature=SIGNATURE)
