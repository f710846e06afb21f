"""A hard sigmoid of an integer tensor is no more than another scale, within half a step of 254."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx.numpy_helper import from_array

from calibration.analysis.bisection import counterparts
from calibration.analysis.scale_check import scale_mismatches
from calibration.graph.editing import closed, opened
from calibration.precision.hard_sigmoid_levels import absorb_hard_sigmoids, hard_sigmoid_levels
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span

Array = np.ndarray[Any, Any]


def written(alpha: float = 1 / 6, dtype: str = "uint8", output: str = "y = Neg (hd)") -> onnx.ModelProto:
    """A quantized tensor, its hard sigmoid, and that quantized as the placement wants it."""
    zero_point, least = (100, 0) if dtype == "uint8" else (-28, -128)
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> net (float[N,512] x) => (float[A,B] y)
        <float s = {{0.04}}, {dtype} z = {{{zero_point}}}, float t = {{{1 / 254.5!r}}}, {dtype} o = {{{least}}}> {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) h = HardSigmoid <alpha = {alpha!r}, beta = 0.5> (d)
        hq = QuantizeLinear (h, t, o) hd = DequantizeLinear (hq, t, o) {output} }}"""
    )


def absorbed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    open_model = opened(model)
    return closed(open_model) if absorb_hard_sigmoids(open_model.graph) else None


def answer(model: onnx.ModelProto, x: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("alpha", [1 / 6, 0.2])
def test_every_level_of_the_input_has_its_sigmoid_within_a_step(alpha: float, dtype: str) -> None:
    model = written(alpha, dtype)
    made = absorbed(model)
    assert made is not None
    assert "HardSigmoid" not in {node.op_type for node in made.graph.node}
    x = np.linspace(-7, 9, 512).astype(np.float32).reshape(1, 512)
    exact = np.clip(alpha * np.clip(np.rint(x / np.float32(0.04)), -100, 155) * 0.04 + 0.5, 0, 1)
    assert np.abs(-answer(made, x) - exact).max() < 1.2 / 254.5
    assert np.abs(answer(made, x) - answer(model, x)).max() < 1.1 / 254.5


@pytest.mark.parametrize(
    ("alpha", "beta", "dtype", "expected"),
    [
        (1 / 6, 0.5, "uint8", (6 / 254, 127)),
        (0.2, 0.5, "uint8", (5 / 254, 127)),
        (1 / 6, 0.5, "int8", (6 / 254, -1)),
        (1.0, 0.0, "uint8", (1 / 254, 0)),
        (0.2, 0.4, "uint8", None),  # 101.6 steps.
        (-0.2, 0.5, "uint8", None),
        (0.2, 2.0, "uint8", None),
    ],
)
def test_scale_and_zero_point(alpha: float, beta: float, dtype: Any, expected: tuple[float, int] | None) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> net (float[N] x) => (float[N] y)
        {{ y = HardSigmoid <alpha = {alpha!r}, beta = {beta!r}> (x) }}"""
    )
    levels = hard_sigmoid_levels(opened(model).graph[0], dtype)
    if expected is None:
        assert levels is None
        return
    assert levels is not None
    scale, zero_point = expected
    assert [(level.zero_point, level.dtype) for level in levels] == [
        (zero_point, dtype), (0 if dtype == "uint8" else -128, dtype),
    ]  # fmt: skip
    assert [level.scale for level in levels] == pytest.approx([scale, 1 / 254.5], rel=1e-6)
    assert hard_sigmoid_levels(None, dtype) is None


def test_one_that_is_read_in_float_too_stays() -> None:
    assert absorbed(written(output="y = Add (hd, h)")) is None
    float_input = written()
    float_input.graph.node[2].input[0] = "x"
    assert absorbed(float_input) is None


NETWORK = """<ir_version: 8, opset_import: ["" : 17]> net (float[N,4,6,6] x) => (float[N,4,6,6] y) {
    c = Conv (x, w) h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (c) m = Mul (c, h) y = Conv (m, w) }"""
SPANS = {"x": Span(3.0, -3.0, 3.0), "c": Span(12.0, -12.0, 12.0), "h": Span(1.0, 0.0, 1.0)}
SPANS |= {"m": Span(12.0, -0.4, 12.0), "y": Span(25.0, -25.0, 25.0)}


def test_a_hard_swish_is_integer_throughout() -> None:
    model = onnx.parser.parse_model(NETWORK)
    weight = np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32)
    model.graph.initializer.append(from_array(weight, "w"))
    made = qdq_from_onnx(model, SPANS, PlacementOptions("onnxruntime")).model
    assert {node.op_type for node in made.graph.node} == {"QuantizeLinear", "DequantizeLinear", "Conv", "Mul"}
    producers = {node.output[0]: node.op_type for node in made.graph.node}
    (product,) = (node for node in made.graph.node if node.op_type == "Mul")
    assert {producers[name] for name in product.input} == {"DequantizeLinear"}
    x = np.random.default_rng(1).uniform(-3, 3, (4, 4, 6, 6)).astype(np.float32)
    exact, rounded = answer(model, x), answer(made, x)
    assert np.square(exact).sum() / np.square(exact - rounded).sum() > 10**3
    assert list(scale_mismatches(made, SPANS)) == []
    matched = counterparts(model, made)
    assert matched["h"] == "h"
    assert matched[next(n.output[0] for n in made.graph.node if n.op_type == "QuantizeLinear")] == "x"
    left = qdq_from_onnx(model, SPANS, PlacementOptions("onnxruntime", exclude=("HardSigmoid",))).model
    assert "HardSigmoid" in {node.op_type for node in left.graph.node}
