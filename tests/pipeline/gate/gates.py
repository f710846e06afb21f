"""What the tests of the gate share: a network that decides by amplitudes, its good and bad engines, and its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import numpy_helper

from calibration.data.batches import input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, write_ranges
from pipeline.artifact import OnnxModel, Ranges
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.quantize import Quantize

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
louder (float[N,4,16,16] image) => (float[N,4] scores)
<float[4,4] weight = {4.,0.,0.,0., 0.,4.,0.,0., 0.,0.,4.,0., 0.,0.,0.,4.}>
{
  same = Conv <kernel_shape = [1, 1]> (image, kernel)
  active = Relu (same)
  pooled = GlobalAveragePool (active)
  flat = Flatten (pooled)
  scores = MatMul (flat, weight)
}
"""
"""Which of four channels is the loudest; ``kernel`` (4, 4, 1, 1) is the unit matrix."""

SLOW = NETWORK.replace(
    "scores = MatMul (flat, weight)",
    """wide = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, more)
  wider = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (wide, again)
  small = ReduceMean <axes = [1, 2, 3], keepdims = 0> (wider)
  nothing = Mul (small, zero)
  column = Reshape (nothing, shape)
  right = MatMul (flat, weight)
  scores = Add (right, column)""",
)
"""The same answers, with two convolutions that nobody needs, and that take many times as long as all the others."""

NUM_SAMPLES = 240

ANY_MACHINE = (
    "--max-drift", "inf", "--max-other-load", 1, "--max-other-load-relative", 1, "--max-seconds", 600,
)  # fmt: skip
"""Options of a gate that decides however busy others keep the machine: it ends as soon as all is decided."""


@dataclass(frozen=True)
class Engines:
    """Files in one folder."""

    folder: Path
    fp32: Path
    slow: Path
    int8: Path
    """Ranges from all samples."""
    shrunk: Path
    """The same ranges, each halved: the two loudest channels become equal."""
    data: Path
    """``image`` and ``y``, the loudest channel; ``swapped``, the labels of other images."""


def make_engines(folder: Path) -> Engines:
    """Write the engines and their data into a folder."""
    samples = folder / "data.npz"
    random = np.random.default_rng(3)
    levels = np.full((NUM_SAMPLES, 4), 0.5)
    for row, (first, second) in zip(levels, [random.permutation(4)[:2] for _ in range(NUM_SAMPLES)]):
        row[first], row[second] = random.uniform(3.2, 4.0), random.uniform(2.2, 2.9)
    image = np.broadcast_to(levels[:, :, None, None], (NUM_SAMPLES, 4, 16, 16)).astype(np.float32)
    y = levels.argmax(axis=1)
    np.savez(samples, image=image, y=y, swapped=np.roll(y, 1))
    unit = {"kernel": np.eye(4).reshape(4, 4, 1, 1)}
    extra = {
        "more": random.normal(size=(48, 4, 3, 3)),
        "again": random.normal(size=(48, 48, 3, 3)),
        "zero": np.zeros(()),
    }
    fp32 = _save(NETWORK, folder / "fp32.onnx", unit)
    slow = _save(SLOW, folder / "slow.onnx", unit | extra)
    int8, shrunk = (_quantized(fp32, samples, folder / f"{scale}", scale) for scale in (1.0, 0.5))
    return Engines(folder, fp32, slow, int8, shrunk, samples)


def _save(text: str, path: Path, weights: Mapping[str, npt.NDArray[np.float64]]) -> Path:
    model = onnx.parser.parse_model(text)
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    if "Reshape" in text:
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), "shape"))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _quantized(fp32: Path, data: Path, folder: Path, scale: float) -> Path:
    """INT8 with the ranges that the samples have, times ``scale``."""
    model = OnnxModel(fp32)
    samples = open_samples(DataSource(str(data)), input_specs_from_onnx(fp32), Preprocess())
    for name in ("found", "scaled", "model"):
        (folder / name).mkdir(parents=True)
    found = Calibrate(method="minmax")(folder / "found", model, samples).path
    ranges = ranges_from_folder(found)
    scaled = {name: replace(tensor, amax=tensor.amax * scale) for name, tensor in ranges.tensors.items()}
    write_ranges(replace(ranges, tensors=scaled), histograms_from_folder(found), folder / "scaled")
    return Quantize()(folder / "model", model, Ranges(folder / "scaled")).path
