"""Convert a trained network to the float `.tflite` file that every precision for LiteRT is made of."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from engines import backend, module_of
from engines.backends import litert, tensorflow
from engines.litert.names import with_short_names
from pipeline.artifact import Engine, TfliteModel
from pipeline.errors import Unavailable
from pipeline.machine import child_process
from pipeline.machine.packages import distribution_versions
from pipeline.option import check_bounds, option
from pipeline.stage import Stage


@dataclass(frozen=True)
class Convert(Stage):
    """Convert a SavedModel or a Keras file to a float `.tflite` file with a fixed batch, for LiteRT.

    TensorFlow's converter does it, in a process of its own. Batch norms are folded by it; inputs and outputs have the
    signature's names, and other tensors the first of those that the converter lists.
    """

    RESULT: ClassVar[str] = "converted"

    batch_size: int = option(1, "batch of the `.tflite` file, which is fixed; more samples are run in batches of it")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, batch_size=(1, math.inf))

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("tensorflow", "keras", "tf_keras", litert.DISTRIBUTION, "flatbuffers")

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(tensorflow.NAME), module_of(litert.NAME))

    def __call__(self, out: Path, trained: Engine) -> TfliteModel:
        """Write ``out/model.tflite`` and ``out/notes.json``; ``trained``: the network as TensorFlow runs it.

        Raises:
            Unavailable: TensorFlow or ai-edge-litert is not installed.
            EngineError: the network has other dynamic dimensions than the batch, or operators that TensorFlow Lite
                lacks.
            StageError: the converter crashed.
        """
        if backend(trained.backend).TAKES == TfliteModel.FORMAT:
            return _taken_over(trained, out, self.batch_size)
        assert backend(trained.backend).TAKES == "savedmodel", "others are refused before, see check_convertible"
        for reason in (tensorflow.why_not_run(), litert.why_not_build()):
            if reason:
                raise Unavailable(reason)
        path = out / "model.tflite"
        child_process.call(out / "convert.log", f"{trained.path}", _convert, trained, self.batch_size, path)
        return _noted(path, self.batch_size)


def _taken_over(trained: Engine, out: Path, batch_size: int) -> TfliteModel:
    """A `.tflite` file as it came: nothing is to be converted."""
    shutil.copyfile(trained.path, out / "model.tflite")
    return _noted(out / "model.tflite", batch_size)


def _noted(path: Path, batch_size: int) -> TfliteModel:
    """The file, and beside it what is to be said of its batch."""
    sizes = {tensor.shape[:1] for _, tensor in litert.tflite_facts(path).inputs}
    notes = [] if sizes == {(batch_size,)} else [f"convert: the network's own batch is kept, {sizes}"]
    path.with_name("notes.json").write_text(json.dumps(notes))
    return TfliteModel(path)


def _convert(trained: Engine, batch_size: int, path: Path) -> None:
    """For a process of its own, whose output goes to ``convert.log``."""
    import flatbuffers

    data = tensorflow.tflite_from_savedmodel(trained.path, trained.signature, batch_size)
    path.write_bytes(with_short_names(litert.schema(), flatbuffers, data))
