"""A Keras file: saved again as a SavedModel, which is converted and run."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from engines.backends.tensorflow import NAME as TENSORFLOW
from engines.litert.facts import is_tflite
from engines.model_format import ModelFormat
from pipeline.artifact import Engine, OnnxModel, Source
from pipeline.errors import ConfigError
from pipeline.sources.contract import Conversion, Converted
from pipeline.sources.tf2onnx import SAVEDMODEL, convert

WHAT = ".keras, .h5"
SUFFIXES = (".keras", ".h5", ".hdf5")
HEADS = (b"PK\x03\x04", b"\x89HDF\r\n\x1a\n")
SIGNATURE = "serving_default"
"""Of the SavedModel that Keras writes."""


class KerasFile(Source):
    """A ``.keras`` file, or a Keras ``.h5`` file."""

    KIND: ClassVar[str] = "keras"
    BECOMES: ClassVar[frozenset[ModelFormat]] = frozenset({"onnx", "tflite"})


def recognises(path: Path) -> bool:
    """By its ending, but for a `.tflite` file of that name."""
    return path.is_file() and path.suffix in SUFFIXES and not is_tflite(path)


def source(path: Path, _signature: str) -> Source:
    """The file, which is seen to be no other before TensorFlow is loaded.

    Raises:
        ConfigError: it is neither a zip archive nor HDF5.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
    if not head.startswith(HEADS):
        raise ConfigError(
            f"{path}: is no Keras file, it begins with {head!r}, not as a zip archive or HDF5; save the model again"
        )
    return KerasFile(path)


def to_onnx(source: Source, out: Path, how: Conversion) -> Converted:
    """By way of a SavedModel, which is left in ``out``. See ``contract.SourceKind``."""
    model, notes = convert(source.path, SIGNATURE, out, how, is_keras=True)
    return Converted(model, notes=notes)


def trained(source: Source, exported: OnnxModel, runner: str) -> Engine:
    """The SavedModel that the export made of it, run by TensorFlow."""
    return Engine(exported.beside(SAVEDMODEL), TENSORFLOW, signature=SIGNATURE)
