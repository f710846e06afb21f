"""What others make of the same networks and calibration samples, each in an environment of its own.

- NNCF, on the ONNX file that we export: ``nncf.quantize`` with its fast and with its exact bias correction, and
  ``quantize_with_accuracy_control`` to a drop of nothing on the labelled calibration samples. Judged node by node, as
  ours are; its placement is OpenVINO's.
- TensorFlow Model Optimization's quantization-aware training with Keras 2 (``tf_keras``), of networks that it can load,
  on three quarters of the labelled calibration samples; judged as it simulates INT8, and in LiteRT after conversion.
- TensorFlow's converter to LiteRT, full integer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.candidates import TFLITE, environment, python
from benchmarks.int8_answers import tflite_answers

Bools = npt.NDArray[np.bool_]
NNCF, TFMOT = "nncf==3.4.0", "tensorflow-model-optimization==0.8.1"
TFMOT_EPOCHS = 10

NNCF_CODE = """
import json, sys, time, warnings
import numpy as np, onnx, nncf, onnxruntime as ort
how, source, folder, out = sys.argv[1:]
model, begin = onnx.load(source), time.process_time()
x, y, test = (np.load(f"{folder}/{name}.npy") for name in ("x", "y", "test"))
name = model.graph.input[0].name
def session(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
def validate(model, rows):
    run = session(model) if isinstance(model, onnx.ModelProto) else model
    right = [float(run.run(None, {name: x[row : row + 1]})[0].argmax() == y[row]) for row in rows]
    return float(np.mean(right)), right
data = nncf.Dataset(list(range(len(x))), lambda row: {name: x[row : row + 1]})
if how == "control":
    made = nncf.quantize_with_accuracy_control(model, data, data, validate, max_drop=0.0, subset_size=len(x))
else:
    made = nncf.quantize(model, data, fast_bias_correction=how == "fast", subset_size=len(x))
seconds, run = time.process_time() - begin, session(made)
classes = [run.run(None, {name: test[row : row + 100]})[0].argmax(axis=-1) for row in range(0, len(test), 100)]
np.save(out, np.concatenate(classes))
json.dump({"seconds": seconds}, open(out + ".json", "w"))
"""
TFMOT_CODE = """
import json, os, sys, time
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import numpy as np, tensorflow as tf, tf_keras as keras, tensorflow_model_optimization as tfmot
source, folder, seed, epochs, out = sys.argv[1:]
x, y, test = (np.load(f"{folder}/{name}.npy") for name in ("x", "y", "test"))
model = keras.models.load_model(source, compile=False)
keras.utils.set_random_seed(int(seed))
begin = time.process_time()
trained = tfmot.quantization.keras.quantize_model(model)
trained.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
num = len(x) * 3 // 4
trained.fit(x[:num], y[:num], batch_size=32, epochs=int(epochs), verbose=0)
seconds = time.process_time() - begin
np.save(out, trained.predict(test, verbose=0).argmax(axis=-1))
json.dump({"seconds": seconds}, open(out + ".json", "w"))
converter = tf.lite.TFLiteConverter.from_keras_model(trained)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.inference_input_type = converter.inference_output_type = tf.int8
with open(out + ".tflite", "wb") as file:
    file.write(converter.convert())
"""


@dataclass(frozen=True)
class SameSamples:
    """What all get: the network, and the preprocessed samples in ``x.npy``, ``y.npy`` and ``test.npy`` of a folder."""

    source: Path
    """As it was trained, for TensorFlow."""
    keras: Path
    """A file or folder that Keras 2 may load."""
    fp32: Path
    """ONNX."""
    folder: Path
    labels: npt.NDArray[np.int64]
    """Of the test samples."""


@dataclass(frozen=True)
class OtherResult:
    """What one tool made: for each seed whether each test sample is answered rightly; or why there is nothing."""

    what: str
    right: tuple[Bools, ...]
    cpu_seconds: tuple[float, ...]
    failure: str = ""


def by_others(given: SameSamples, environments: Path, seeds: Sequence[int]) -> Iterator[OtherResult]:
    """All of them."""
    nncf = environment(environments / "nncf", [NNCF, f"onnxruntime=={version('onnxruntime')}"])
    for how, words in (("fast", "fast bias correction"), ("exact", "bias correction"), ("control", "accuracy control")):
        out = given.folder / f"nncf_{how}.npy"
        why = python(nncf, NNCF_CODE, how, given.fp32, given.folder, out)
        yield _result(f"INT8 NNCF, {words}", given, [out], why)
    tensorflow = [f"{name}=={version(name)}" for name in ("tensorflow", "tf_keras")]
    tfmot = environment(environments / "tfmot", [TFMOT, *tensorflow])
    outs, why = [given.folder / f"tfmot_{seed}.npy" for seed in seeds], ""
    for seed, out in zip(seeds, outs, strict=True):
        why = why or python(tfmot, TFMOT_CODE, given.keras, given.folder, seed, TFMOT_EPOCHS, out)
    yield _result("INT8 TFMOT, trained by labels, simulated", given, outs, why)
    if not why:
        yield _of_tflite("INT8 TFMOT, trained by labels, in LiteRT", given, [Path(f"{out}.tflite") for out in outs])
    path = given.folder / "converted.tflite"
    why = python(sys.executable, TFLITE, given.source, given.folder / "x.npy", path, "")
    yield (
        OtherResult("INT8 LiteRT's converter", (), (), why)
        if why
        else _of_tflite("INT8 LiteRT's converter", given, [path])
    )


def _result(what: str, given: SameSamples, outs: Sequence[Path], why: str) -> OtherResult:
    if why:
        return OtherResult(what, (), (), why)
    right = tuple(np.asarray(np.load(out) == given.labels) for out in outs)
    seconds = tuple(float(json.loads(Path(f"{out}.json").read_text())["seconds"]) for out in outs)
    return OtherResult(what, right, seconds)


def _of_tflite(what: str, given: SameSamples, paths: Sequence[Path]) -> OtherResult:
    test = np.load(given.folder / "test.npy")
    return OtherResult(
        what, tuple(np.asarray(tflite_answers(path, test).guesses == given.labels) for path in paths), ()
    )
