"""From samples to a Q/DQ file: which tensors have one scale, and what is said of those that int8 holds badly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.ranges.ranges_file import ranges_from_folder
from tests.made import QUICK_PROTOCOL

if TYPE_CHECKING:
    from tests.conftest import Command

JOINED = """
<ir_version: 8, opset_import: ["" : 17]>
joined (float[N,16,8,8] image) => (float[N,16] scores, float[N,16,8,8] side, float[N,16,4,4] other)
<int64[2] flat = {-1, 256}>
{
    a = Conv (image, w1)
    active = Relu (a)
    side = Conv (active, w2)
    pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (active)
    branch = Conv (pooled, w3)
    both = Concat <axis = 1> (pooled, branch)
    merged = Conv (both, w4)
    again = Conv (branch, w5)
    kept = Relu (merged)
    other = Conv (kept, w6)
    turned = Transpose <perm = [0, 2, 3, 1]> (kept)
    row = Reshape (turned, flat)
    wide = Gemm (row, w7)
    few = GlobalAveragePool (again)
    thin = Flatten (few)
    scores = Add (wide, thin)
}
"""
"""`active`, `pooled`, `branch` and `both` must agree; so must `kept` and `row`."""

SPECIAL = """
<ir_version: 8, opset_import: ["" : 17]>
special (float[N,16,8,8] image) => (float[N,16,8,8] answer)
<float half = {0.5}, float small = {0.00001}>
{
    positive = Abs (image)
    negative = Neg (positive)
    zero = Relu (negative)
    constant = Add (zero, half)
    tiny = Mul (image, small)
    a = Conv (positive, w1)
    b = Conv (zero, w2)
    c = Conv (constant, w3)
    d = Conv (tiny, w4)
    ab = Add (a, b)
    cd = Add (c, d)
    answer = Add (ab, cd)
}
"""


def saved(text: str, shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """`model.onnx` with random weights, and `data.npz` with twelve images."""
    random = np.random.default_rng(3)
    model = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "data.npz", image=random.normal(size=(12, 16, 8, 8)).astype(np.float32))


def scales_in(path: Path) -> dict[str, float]:
    """Activation tensor -> scale of the QuantizeLinear that reads it."""
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants]
    return {node.input[0]: float(constants[node.input[1]]) for node in nodes}


@pytest.mark.parametrize("method", ["entropy", "minmax", "percentile", "mse"])
def test_joined_tensors_share_the_largest_scale(
    method: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    square = dict.fromkeys(("w1", "w2", "w3", "w5", "w6"), (16, 16, 1, 1))
    saved(JOINED, {**square, "w4": (16, 32, 1, 1), "w7": (256, 16)}, tmp_path)
    made = command("calibrate", "model.onnx", "--data", "data.npz", "--method", method, "-o", "ranges")
    assert made.status == 0, made.err
    asked = ("--ranges", "ranges", "--target", "tensorrt", "-o", "int8.onnx")
    assert command("quantize", "model.onnx", *asked).status == 0

    scales = scales_in(tmp_path / "int8.onnx")
    amax = {name: tensor.amax for name, tensor in ranges_from_folder(tmp_path / "ranges").tensors.items()}
    assert set(scales) == {"image", "active", "pooled", "branch", "both", "kept", "row", "again"}
    for group in (("active", "pooled", "branch", "both"), ("kept", "row"), ("image",), ("again",)):
        largest = float(np.float32(max(amax[name] for name in group) / 127))
        assert {scales[name] for name in group} == {largest}, group
    assert len(set(scales.values())) == 4


def test_zero_constant_tiny_and_one_sided_tensors_are_named_and_quantize_soundly(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(SPECIAL, dict.fromkeys(("w1", "w2", "w3", "w4"), (16, 16, 1, 1)), tmp_path)
    plan = (
        """
[model]
source = "model.onnx"
[data]
calibration = { path = "data.npz" }
evaluation = { path = "data.npz" }
[variants]
precisions = ["fp32", "int8"]
backends = ["onnxruntime"]
[calibrate]
watch = "all"
"""
        + QUICK_PROTOCOL
    )
    (tmp_path / "plan.toml").write_text(plan)
    said = command("run", "plan.toml")
    assert said.status == 0, said.err
    record = json.loads((tmp_path / "trtforge-report" / "report.json").read_text())
    notes = {tensor["name"]: "; ".join(tensor["notes"]) for tensor in record["tensors"]}
    assert notes["zero"] == "all zero on the calibration data"
    assert notes["constant"].startswith("constant on the calibration data")
    assert notes["positive"].startswith("one-sided: half of symmetric int8's codes are unused")
    assert notes["negative"].startswith("one-sided: half of symmetric int8's codes are unused")
    assert "below FP16's smallest normal, 6.1e-5" in notes["tiny"]
    assert "image" not in [name for name, note in notes.items() if "one-sided" in note]
    (int8,) = [variant for variant in record["variants"] if variant["precision"] == "int8"]
    assert any("'zero' was 0 throughout calibration" in note for note in int8["notes"])
    assert int8["comparison"][0]["cosine_min"] > 0.99
    page = (tmp_path / "trtforge-report" / "report.html").read_text()
    assert all(note in page.replace("&#39;", "'") for note in notes.values())
