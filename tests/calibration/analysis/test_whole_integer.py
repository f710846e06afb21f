"""The network in integers throughout: which tensors are rounded, by which scales, and what comes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from calibration.analysis.rounding import steps_feed
from calibration.analysis.sqnr import sqnr_db_of
from calibration.analysis.whole_integer import WholeInteger, WholeIntegerNetwork, place_throughout, throughout
from calibration.graph.editing import opened
from calibration.ranges.span import Span
from tests.made import model_with_weights

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4, 8, 8] x) => (float[N, 5] y)
{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, kernel, offset)
    r = Relu (c)
    [depth] d = Conv <group = 8> (r, each)
    [other] o = Conv (r, square)
    s = Add (d, o)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    [dense] m = MatMul (f, matrix)
    b = Add (m, shift)
    l = Relu (b)
    [last] y = Gemm (l, end)
}"""
WEIGHTS = {
    "kernel": (8, 4, 3, 3), "offset": (8,), "each": (8, 1, 3, 3), "square": (8, 8, 3, 3), "matrix": (8, 16),
    "shift": (16,), "end": (16, 5),
}  # fmt: skip
SPANS = {name: Span(4.0, -2.0, 4.0) for name in ("x", "c", "r", "d", "o", "s", "f", "m", "b", "l", "y")}
SPANS["p"] = Span(1.0, -0.5, 1.0)


def net() -> onnx.ModelProto:
    return model_with_weights(NET, 3, **WEIGHTS)


def placed(**options: Any) -> Any:
    return place_throughout(opened(net()).graph, WholeInteger(**options), SPANS)


def test_each_tensor_that_an_operator_of_the_runtime_makes_is_rounded_once() -> None:
    """Products with what is added and the Relu are one operator, and a Flatten moves what is rounded already."""
    assert [tensor.tensor for tensor in placed().tensors] == ["x", "r", "d", "o", "s", "p", "l", "y"]
    assert [tensor.tensor for tensor in placed().tensors if tensor.is_output] == ["y"]


def test_scales_are_of_the_whole_range_and_a_pools_that_of_its_data() -> None:
    scales = {tensor.tensor: tensor.quantization for tensor in placed().tensors}
    assert scales["x"].scale == pytest.approx(6 / 255)
    assert scales["x"].zero_point == -43
    assert scales["p"] == scales["s"]
    wide = {tensor.tensor: tensor.quantization for tensor in placed(data_bits=16).tensors}
    assert wide["x"].scale == pytest.approx(4 / 32767)
    assert (wide["x"].zero_point, wide["x"].dtype) == (0, "int16")


def test_weights() -> None:
    by_node = {weight.reader.node: weight for weight in placed().weights}
    assert {name: weight.axis for name, weight in by_node.items()} == {
        "conv": 0, "depth": 0, "other": 0, "dense": 1, "last": 1,
    }  # fmt: skip
    few = placed(weight_bits=4, one_scale=("MatMul", "Gemm")).weights
    assert {weight.reader.node: (weight.bits, weight.axis) for weight in few} == {
        "conv": (4, 0), "depth": (8, 0), "other": (4, 0), "dense": (4, None), "last": (4, None),
    }  # fmt: skip


def test_tensors_without_a_range_that_holds_something_are_left() -> None:
    spans = SPANS | {"x": Span(0.0, 0.0, 0.0), "y": Span(float("inf"), 0.0, float("inf"), is_finite=False)}
    names = [tensor.tensor for tensor in place_throughout(opened(net()).graph, WholeInteger(), spans).tensors]
    assert names == ["r", "d", "o", "s", "p", "l"]


def answers(model: onnx.ModelProto, **inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_more_bits_are_nearer_and_the_steps_are_inputs() -> None:
    x = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    wide = {name: Span(400.0, -400.0, 400.0) for name in SPANS}
    exact = answers(net(), x=x)
    ratios = []
    for bits in (8, 16):
        network = WholeIntegerNetwork(net(), WholeInteger(data_bits=bits), wide)
        ratios.append(sqnr_db_of(exact, answers(network.model, x=x, **steps_feed(network.steps(wide), None))))
    assert 0 < ratios[0] < 30
    assert ratios[1] > ratios[0] + 10
    halved = {name: Span(200.0, -200.0, 200.0) for name in SPANS}
    network = WholeIntegerNetwork(net(), WholeInteger(), wide)
    nearer = sqnr_db_of(exact, answers(network.model, x=x, **steps_feed(network.steps(halved), None)))
    assert nearer > ratios[0] + 3


def test_in_dynamic_range_every_product_but_depthwise_ones_rounds_its_data() -> None:
    what = throughout(net(), 8, ())
    assert what.in_integers == {"conv", "other", "dense", "last"}
    assert len(what.weights) == 5
