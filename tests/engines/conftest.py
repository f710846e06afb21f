"""Small ONNX models, written so that the test's reader sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SaveModel = Callable[[str], Path]

LINEAR = """<ir_version: 8, opset_import: ["" : 17]>
linear (float[N, 3] x) => (float[N, 2] y)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {0.5, -0.5}>
{
    [fc] xw = MatMul(x, w)
    [bias] y = Add(xw, b)
}"""


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Text in ONNX's own syntax to an ONNX file."""

    def save(text: str) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        return path

    return save


@pytest.fixture
def linear(save_model: SaveModel) -> Path:
    """y = x w + b, with a free batch dimension N."""
    return save_model(LINEAR)


def _quantized(
    name: str, scale: npt.NDArray[np.float32], axis: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    zero = np.zeros(scale.shape, np.int8)
    parameters = [numpy_helper.from_array(scale, f"{name}_scale"), numpy_helper.from_array(zero, f"{name}_zero")]
    settings = [f"{name}_scale", f"{name}_zero"]
    quantize = helper.make_node("QuantizeLinear", [name, *settings], [f"{name}_q"], f"{name}_Q", axis=axis)
    restore = helper.make_node("DequantizeLinear", [f"{name}_q", *settings], [f"{name}_dq"], f"{name}_DQ", axis=axis)
    return [quantize, restore], parameters


@pytest.fixture
def save_quantized_conv(tmp_path: Path) -> Callable[[int], Path]:
    """float[N, 16, 8, 8] -> Q/DQ -> Conv 3x3 with Q/DQ weights per channel, int8 zero point 0 -> Relu; any group."""

    def save(group: int) -> Path:
        random = np.random.default_rng(0)
        weight = random.standard_normal((32, 16 // group, 3, 3)).astype(np.float32)
        scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        input_nodes, input_parameters = _quantized("x", np.array(0.02, np.float32), 1)
        weight_nodes, weight_parameters = _quantized("w", scale, 0)
        nodes = [
            *input_nodes,
            *weight_nodes,
            helper.make_node("Conv", ["x_dq", "w_dq"], ["c"], "conv", pads=[1, 1, 1, 1], group=group),
            helper.make_node("Relu", ["c"], ["y"], "relu"),
        ]
        graph = helper.make_graph(
            nodes,
            "quantized",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32, 8, 8])],
            [numpy_helper.from_array(weight, "w"), *input_parameters, *weight_parameters],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        path = tmp_path / "quantized.onnx"
        onnx.save(model, path)
        return path

    return save
