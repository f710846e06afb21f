"""INT8 models of one network by several quantizers, all from the same FP32 network and calibration samples.

Ours is made by the command ``trtforge``, the others as their documentation says, each in a process of its own, which
gets at most 10 GiB of memory:

- ONNX Runtime: ``quant_pre_process``, then ``quantize_static``, with its defaults (int8 activations) but
  ``per_channel``, without which it is further from FP32; min-max, percentile (99.999) and entropy. For kernels that add
  products in pairs, in 16 bits, with ``reduce_range``, without which they saturate. It keeps every tensor of the
  samples that it gets, so those of large networks go to it 16 at a time (``CalibStridedMinMax``, which all its methods
  obey).
- ModelOpt: ``modelopt.onnx.quantization.quantize``, on the CPU and with FP32 around; max and entropy.
- TFLite: ``TFLiteConverter`` from the SavedModel, full integer; and the model that came with the given. Not of an
  ONNX file.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from calibration.precision.scale import arithmetic_for
from engines.cpu import cpu_flags
from engines.onnx_model import PRODUCTS, facts

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 10 * 2**30
"""Of addresses, for a process of another tool."""
METHODS = ("auto", "entropy", "minmax", "percentile", "mse")
AS_THEY = "as they"
"""In place of a method: the default's, with another tool's products in INT8."""
Run = Literal["simulation", "kernels", "tflite"]
RUNS: tuple[tuple[str, Run], ...] = (
    ("tensorrt", "simulation"),
    ("onnxruntime", "simulation"),
    ("onnxruntime", "kernels"),
)

READER = """
import sys, numpy as np, onnx
source, data, out, method = sys.argv[1:]
name = onnx.load(source).graph.input[0].name
from onnxruntime.quantization.calibrate import CalibrationDataReader
class Reader(CalibrationDataReader):
    def __init__(self):
        self.samples = np.load(data)
        self.row, self.end = 0, len(self.samples)
    def __len__(self): return len(self.samples)
    def set_range(self, start_index, end_index): self.row, self.end = start_index, end_index
    def get_next(self):
        self.row += 1
        return {name: self.samples[self.row - 1 : self.row]} if self.row <= self.end else None
    def rewind(self): self.row = 0
    def get_first(self): return {name: self.samples[:1]}
"""
ORT = """
from onnxruntime.quantization import CalibrationMethod, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
quantize = sys.modules["onnxruntime.quantization.quantize"]  # A function of the package has the module's name.
quant_pre_process(source, out + ".pre", skip_symbolic_shape=True)  # Which takes sympy; the shapes are known.
create, kept = quantize.create_calibrator, []
class Once:  # Both models have the ranges of one calibration.
    def __init__(self, *args, **options): self.made = None if kept else create(*args, **options)
    def collect_data(self, reader): self.made and self.made.collect_data(reader)
    def compute_data(self):
        kept or kept.append(self.made.compute_data())
        return kept[0]
quantize.create_calibrator = Once
reader = Reader()
options = {"CalibStridedMinMax": 16} if reader.samples[0].size > 40_000 else None
for reduce_range in (False, True):
    quantize_static(out + ".pre", out + ".reduced" * reduce_range, reader, per_channel=True, extra_options=options,
                    calibrate_method=getattr(CalibrationMethod, method), reduce_range=reduce_range)
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
    failure: str = ""
    """Why there is no such model."""


@dataclass(frozen=True)
class Given:
    """What all quantizers are given."""

    saved_model: Path
    """Or another file of the trained network."""
    fp32: Path
    """ONNX, as ``trtforge export`` writes it."""
    calibration: Path
    """(N, ...) float32 .npy, preprocessed."""
    tflite: Path | None
    """The INT8 model that came with the given."""
    modelopt: Path | None
    """Python of ModelOpt's environment."""


def candidates(given: Given, work: Path) -> Iterator[Candidate]:
    """Quantize in every way; the files go to ``work``. A tool that fails gives a candidate with the reason."""
    yield from ours(given, work)
    saturates = arithmetic_for(cpu_flags(), platform.machine())[0] == "u8s7"
    for method, word in (("MinMax", "min-max"), ("Percentile", "percentile"), ("Entropy", "entropy")):
        path = work / f"ort_{method}.onnx"
        why = python(sys.executable, READER + ORT, given.fp32, given.calibration, path, method)
        yield Candidate(f"ONNX Runtime {word}", path, "simulation", failure=why)
        if saturates:
            reduced = path.with_name(f"{path.name}.reduced")
            yield Candidate(f"ONNX Runtime {word}, reduce_range", reduced, "kernels", failure=why)
        else:
            yield Candidate(f"ONNX Runtime {word}", path, "kernels", failure=why)
    if given.modelopt is not None:
        for method in ("max", "entropy"):
            path = work / f"modelopt_{method}.onnx"
            why = python(given.modelopt, READER + MODELOPT, given.fp32, given.calibration, path, method)
            yield Candidate(f"ModelOpt {method}", path, "simulation", failure=why)
        if not why:
            yield from as_they(given, path, work)
    if given.saved_model.is_dir():
        path = work / "converted.tflite"
        why = python(sys.executable, TFLITE, given.saved_model, given.calibration, path, "")
        yield Candidate("TFLite, converted here", path, "tflite", failure=why)
    if given.tflite is not None:
        yield Candidate("TFLite, upstream's", given.tflite, "tflite")


def as_they(given: Given, other: Path, work: Path) -> Iterator[Candidate]:
    """The default's ranges for TensorRT with those products in INT8 that another tool's model has in it."""
    nodes = onnx.load(other).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    kept = [node.name for node in nodes if node.op_type in PRODUCTS and not dequantized.issuperset(node.input[:2])]
    if len(kept) == facts(given.fp32).num_quantizable:
        return
    path = work / "ours_as_they.onnx"
    exclude = ("--attention", "int8", "--small-products", "int8", *(("--exclude", ",".join(kept)) if kept else ()))
    trtforge("quantize", given.fp32, "--ranges", work / "ranges", "--target", "tensorrt", *exclude, "-o", path)
    yield Candidate(f"ours, {METHODS[0]}, ModelOpt's products in INT8", path, "simulation", AS_THEY, "tensorrt")


def ours(given: Given, work: Path) -> Iterator[Candidate]:
    """By every method, for both placements; the default also in the arithmetic of this CPU's kernels."""
    ranges = work / "ranges"
    trtforge("calibrate", given.fp32, "--data", given.calibration, "-o", ranges)
    for method in METHODS:
        for target, run in RUNS if method == METHODS[0] else RUNS[:2]:
            path = work / f"ours_{method}_{target}_{run}.onnx"
            named = () if method == METHODS[0] else ("--method", method)
            arithmetic = ("--arithmetic", "u8s8") if run == "simulation" else ()
            trtforge("quantize", given.fp32, "--ranges", ranges, *named, "--target", target, *arithmetic, "-o", path)
            yield Candidate(f"ours, {method}, for {target}", path, run, method, target)


def trtforge(*arguments: object) -> None:
    """Our command, on this checkout; what it says is shown if it fails."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    if failure := called(command):
        raise SystemExit(f"{' '.join(command)} ended with:\n{failure}")


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """A virtual environment with these packages, made where it is not there: its Python."""
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *packages], check=True)
    return interpreter


def python(interpreter: Path | str, code: str, *arguments: object) -> str:
    """A few lines of Python in a process of their own: why it failed, else nothing."""
    return called([str(interpreter), "-c", code, *map(str, arguments)], MOST_BYTES)


def called(command: list[str], most_bytes: int = resource.RLIM_INFINITY) -> str:
    """Run it from the checkout's folder, on one thread: the end of what it says if it fails, else nothing."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    limited = ["prlimit", f"--as={most_bytes}", *command] if most_bytes != resource.RLIM_INFINITY else command
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | quiet)
    if not done.returncode:
        return ""
    words = done.stderr.strip()[-3000:]
    if re.search("memory|bad_alloc|allocat", words, re.IGNORECASE):
        return f"needs more than {MOST_BYTES / 2**30:.0f} GiB of memory"
    return f"status {done.returncode}: {words}"
