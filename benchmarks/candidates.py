"""INT8 models of one network by several quantizers, all from the same FP32 network and calibration samples.

Ours is made by the command ``trtforge``, the others as their documentation says, each in a process of its own:

- ONNX Runtime: ``quant_pre_process``, then ``quantize_static``, with its defaults (int8 activations, one scale for each
  weight), and with ``per_channel``; min-max and percentile (99.999).
- ModelOpt: ``modelopt.onnx.quantization.quantize``, on the CPU and with FP32 around; max and entropy.
- TFLite: ``TFLiteConverter`` from the SavedModel, full integer; and the model that came with the given.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("entropy", "minmax", "percentile", "mse")
Run = Literal["simulation", "kernels", "tflite"]

READER = """
import sys, numpy as np, onnx
source, data, out, method = sys.argv[1:]
name = onnx.load(source).graph.input[0].name
from onnxruntime.quantization.calibrate import CalibrationDataReader
class Reader(CalibrationDataReader):
    def __init__(self): self.samples, self.row = np.load(data), 0
    def get_next(self):
        self.row += 1
        return {name: self.samples[self.row - 1 : self.row]} if self.row <= len(self.samples) else None
    def rewind(self): self.row = 0
    def get_first(self): return {name: self.samples[:1]}
"""
ORT = """
from onnxruntime.quantization import CalibrationMethod, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
quant_pre_process(source, out + ".pre", skip_symbolic_shape=True)  # Which takes sympy; the shapes are known.
which, _, per_channel = method.partition(" ")
quantize_static(out + ".pre", out, Reader(), calibrate_method=getattr(CalibrationMethod, which),
                per_channel=bool(per_channel))
"""
MODELOPT = """
from modelopt.onnx.quantization import quantize
quantize(source, quantize_mode="int8", calibration_data_reader=Reader(), calibration_method=method,
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=out, log_level="ERROR")
"""
TFLITE = """
import sys, numpy as np, tensorflow as tf
source, data, out, _ = sys.argv[1:]
samples = np.load(data)
converter = tf.lite.TFLiteConverter.from_saved_model(source)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([samples[row : row + 1]] for row in range(len(samples)))
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
converter.inference_input_type = converter.inference_output_type = tf.int8
with open(out, "wb") as file:
    file.write(converter.convert())
"""


@dataclass(frozen=True)
class Candidate:
    """A quantized model, and how it is run."""

    name: str
    path: Path
    run: Run
    method: str = ""
    target: str = ""
    """How ranges were read, and the placement; empty for other tools."""


@dataclass(frozen=True)
class Given:
    """What all quantizers are given."""

    saved_model: Path
    fp32: Path
    """ONNX, as ``trtforge export`` writes it."""
    calibration: Path
    """(N, ...) float32 .npy, preprocessed."""
    tflite: Path | None
    """The INT8 model that came with the given."""
    modelopt: Path | None
    """Python of ModelOpt's environment."""


def candidates(given: Given, work: Path) -> Iterator[Candidate]:
    """Quantize in every way; the files go to ``work``."""
    yield from ours(given, work)
    for per_channel in ("", " per channel"):
        for method, word in (("MinMax", "min-max"), ("Percentile", "percentile")):
            path = work / f"ort_{method}{per_channel}.onnx".replace(" ", "_")
            python(sys.executable, READER + ORT, given.fp32, given.calibration, path, method + per_channel)
            runs: tuple[Run, ...] = ("simulation", "kernels")
            for run in runs:
                yield Candidate(f"ONNX Runtime {word}{per_channel}", path, run)
    if given.modelopt is not None:
        for method in ("max", "entropy"):
            path = work / f"modelopt_{method}.onnx"
            python(given.modelopt, READER + MODELOPT, given.fp32, given.calibration, path, method)
            yield Candidate(f"ModelOpt {method}", path, "simulation")
    path = work / "converted.tflite"
    python(sys.executable, TFLITE, given.saved_model, given.calibration, path, "")
    yield Candidate("TFLite, converted here", path, "tflite")
    if given.tflite is not None:
        yield Candidate("TFLite, upstream's", given.tflite, "tflite")


def ours(given: Given, work: Path) -> Iterator[Candidate]:
    """By every method, for both placements; that for ONNX Runtime is run in both ways."""
    for method in METHODS:
        ranges = work / f"ranges_{method}"
        trtforge("calibrate", given.fp32, "--data", given.calibration, "--method", method, "-o", ranges)
        for target in ("tensorrt", "onnxruntime"):
            path = work / f"ours_{method}_{target}.onnx"
            trtforge("quantize", given.fp32, "--ranges", ranges, "--target", target, "-o", path)
            runs: tuple[Run, ...] = ("simulation",) if target == "tensorrt" else ("simulation", "kernels")
            for run in runs:
                yield Candidate(f"ours, {method}, for {target}", path, run, method, target)


def trtforge(*arguments: object) -> None:
    """Our command, on this checkout."""
    called([sys.executable, "-m", "pipeline", *map(str, arguments)])


def python(interpreter: Path | str, code: str, *arguments: object) -> None:
    """A few lines of Python in a process of their own."""
    called([str(interpreter), "-c", code, *map(str, arguments)])


def called(command: list[str]) -> None:
    """Run it from the checkout's folder; what it says is shown if it fails."""
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:2000]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
