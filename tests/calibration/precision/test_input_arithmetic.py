"""Scaling of an input goes into its QuantizeLinear where integers stay the same; else all stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx.numpy_helper import from_array, to_array

from calibration.analysis.bisection import counterparts
from calibration.analysis.scale_check import scale_mismatches
from calibration.graph.editing import closed, opened
from calibration.precision.input_arithmetic import absorb_input_arithmetic, aligned, drop_casts_of_bytes
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.precision.scale import Quantization
from calibration.ranges.span import Span

Array = npt.NDArray[np.float32]
CONSTANTS: dict[str, Any] = {
    "grey": 1 / 255, "twice_grey": 1 / 127.5, "one": 1.0, "minus_one": -1.0, "mean": np.full((1, 1, 1, 3), 0.5),
    "means": np.array([0.4, 0.5, 0.6]), "zeros": np.zeros(3), "divisor": 255.0, "negative": -2.0, "none": 0.0,
    "wide": np.ones((2, 1, 1, 1)), "middle": 127.0, "half": 127.5,
}  # fmt: skip
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3)).astype(np.float32)


def constants(names: set[str]) -> list[onnx.TensorProto]:
    arrays = [from_array(np.asarray(CONSTANTS[name], np.float32), name) for name in CONSTANTS if name in names]
    return [*arrays, *[from_array(np.array([-1, 8, 6, 3], np.int64), "nhwc")] * ("nhwc" in names)]


def written(chain: str, scale: float, zero_point: int, dtype: str = "uint8") -> onnx.ModelProto:
    """``chain`` makes ``t`` of ``x``; it is quantized, and dequantized as ``y``."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N,8,6,3] x) => (float[A,B,C,D] y)'
        f"<float s = {{{scale!r}}}, {dtype} z = {{{zero_point}}}>"
        f"{{ {chain} q = QuantizeLinear (t, s, z) d = DequantizeLinear (q, s, z) y = Neg (d) }}"
    )
    model.graph.initializer.extend(constants({name for node in model.graph.node for name in node.input}))
    return model


def absorbed(model: onnx.ModelProto, keep: str = "") -> onnx.ModelProto | None:
    """The model with the arithmetic in its QuantizeLinear; None if it stays."""
    open_model = opened(model)
    if not absorb_input_arithmetic(open_model.graph, lambda node: node.op_type == keep):
        return None
    return closed(open_model)


def answer(model: onnx.ModelProto, x: Any, *, as_written: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("chain", "scale", "zero_point"),
    [
        ("t = Mul (x, grey)", 1 / 255, 0),
        ("t = Mul (grey, x)", 0.9 / 255, 0),
        ("a = Div (x, divisor) b = Sub (a, zeros) c = Flatten (b) e = Mul (c, one) t = Reshape (e, nhwc)", 1 / 255, 0),
        ("a = Transpose <perm = [0, 3, 1, 2]> (x) b = Mul (a, twice_grey) t = Add (b, minus_one)", 1 / 127, 127),
        ("a = Div (x, divisor) t = Sub (a, mean)", 0.5 / 127, 127),
        ("a = Add (minus_one, x) t = Mul (a, twice_grey)", 1 / 127.5, 1),
        ("a = Sub (x, one) b = Mul (a, one) t = Add (b, minus_one)", 1.0, 2),
    ],
)  # fmt: skip
def test_the_arithmetic_goes_and_every_picture_has_the_same_bits(chain: str, scale: float, zero_point: int) -> None:
    model = written(chain, float(np.float32(scale)), zero_point)
    made = absorbed(model)
    assert made is not None
    assert operators(made) <= {"QuantizeLinear", "DequantizeLinear", "Neg", "Transpose", "Flatten", "Reshape"}
    onnx.checker.check_model(made, full_check=True)
    for as_written in (True, False):
        expected = answer(model, PICTURES, as_written=as_written)
        np.testing.assert_array_equal(answer(made, PICTURES, as_written=as_written), expected)


def test_signed_integers_and_other_numbers_than_pictures() -> None:
    model = written("a = Mul (x, twice_grey) t = Add (a, minus_one)", float(np.float32(1 / 127)), -1, "int8")
    made = absorbed(model)
    assert made is not None
    x = np.random.default_rng(1).uniform(-20, 300, (9, 8, 6, 3)).astype(np.float32)
    before, after = answer(model, x), answer(made, x)
    steps = (before - after) * 127
    at = x * 127 / 127.5
    near = np.abs(at - np.floor(at) - 0.5) < 1e-3
    assert not steps[~near].any(), "only next to the middle between two levels"
    assert np.abs(steps).max() < 1.01


@pytest.mark.parametrize(
    ("chain", "scale", "zero_point", "dtype"),
    [
        ("a = Mul (x, twice_grey) t = Add (a, minus_one)", 2 / 255, 128, "uint8"),  # 127.5 steps.
        ("a = Mul (x, twice_grey) t = Add (a, minus_one)", 1 / 127, 120, "uint8"),  # The zero point would be -7.
        ("t = Mul (x, negative)", 2.0, 0, "uint8"),
        ("t = Mul (x, none)", 2.0, 0, "uint8"),
        ("t = Add (x, means)", 1.0, 0, "uint8"),
        ("t = Sub (one, x)", 1.0, 0, "uint8"),
        ("t = Div (one, x)", 1.0, 0, "uint8"),
        ("t = Add (x, wide)", 1.0, 1, "uint8"),
        ("a = Relu (x) t = Mul (a, grey)", 1 / 255, 0, "uint8"),
        ("t = Transpose <perm = [0, 3, 1, 2]> (x)", 1.0, 0, "uint8"),
        ("a = Mul (x, x) t = Mul (a, grey)", 1 / 255, 0, "uint8"),
        ("t = Mul (x, grey) u = Mul (t, grey)", 1 / 255, 0, "uint8"),
        ("t = Mul (x, grey)", 2 / 765, 0, "uint8"),  # Each second grey level is in the middle between two.
    ],
)
def test_what_would_change_or_is_read_elsewhere_stays(chain: str, scale: float, zero_point: int, dtype: str) -> None:
    model = written(chain, float(np.float32(scale)), zero_point, dtype)
    if " u = " in chain:
        model.graph.output.append(onnx.helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, None))
    assert absorbed(model) is None


def test_what_is_excluded_stays() -> None:
    model = written("t = Mul (x, grey)", float(np.float32(1 / 255)), 0)
    assert absorbed(model, keep="Mul") is None
    assert absorbed(model, keep="Conv") is not None


@pytest.mark.parametrize(
    ("span", "factor", "shift", "expected"),
    [
        (Span(1.0, 0.0, 1.0), 1 / 255, 0.0, Quantization(float(np.float32(1 / 255)), 0, "uint8")),
        (Span(0.98, 0.0, 0.98), 1 / 255, 0.0, Quantization(float(np.float32(1 / 255)), 0, "uint8")),
        (Span(0.9, 0.0, 0.9), 1 / 255, 0.0, Quantization(float(np.float32(0.9 / 255)), 0, "uint8")),
        (Span(1.0, -1.0, 1.0), 1 / 127.5, -1.0, Quantization(float(np.float32(1 / 127)), 127, "uint8")),
        (Span(1.0, -0.98, 0.99), 1 / 127.5, -1.0, Quantization(1 / 128, 128, "uint8")),
        (Span(1.0, -1.0, 127 / 128), 1 / 128, -1.0, Quantization(1 / 128, 128, "uint8")),
        (Span(0.5, -0.5, 0.5), 1 / 255, -0.5, Quantization(float(np.float32(0.5 / 127)), 127, "uint8")),
        # An input of 0 is far outside, or its step too coarse; and what the user set stays.
        (Span(1.0, 0.0, 1.0), 1.0, -9.0, Quantization(float(np.float32(1 / 255)), 0, "uint8")),
        (Span(1.0, -0.01, 1.0), 1.0, -0.01, Quantization(float(np.float32(1.01 / 255)), 3, "uint8")),
        (Span(1.0, -1.0, 1.0, is_set=True), 1 / 127.5, -1.0, Quantization(float(np.float32(2 / 255)), 127, "uint8")),
    ],
)  # fmt: skip
def test_the_scale_whose_levels_suit_the_input(span: Span, factor: float, shift: float, expected: Any) -> None:
    how = aligned(span, "uint8", factor, shift)
    assert how is not None
    assert (how.zero_point, how.dtype) == (expected.zero_point, expected.dtype)
    assert how.scale == pytest.approx(expected.scale, rel=2e-7)


def test_all_zeros_have_no_scale() -> None:
    assert aligned(Span(0.0, 0.0, 0.0), "uint8", 1.0, 0.0) is None


NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,8,6,3] x) => (float[N,4,8,6] y) {
    a = Mul (x, twice_grey) b = Add (a, minus_one) t = Transpose <perm = [0, 3, 1, 2]> (b)
    y = Conv <pads = [1, 1, 1, 1]> (t, w)
}"""
SPANS = {"x": Span(255.0, 0.0, 255.0), "t": Span(1.0, -1.0, 1.0), "y": Span(3.0, -3.0, 3.0)}


def network() -> onnx.ModelProto:
    model = onnx.parser.parse_model(NETWORK)
    model.graph.initializer.extend(constants({"twice_grey", "minus_one"}))
    weight = np.random.default_rng(2).normal(size=(4, 3, 3, 3)).astype(np.float32) / 5
    model.graph.initializer.append(from_array(weight, "w"))
    return model


def test_quantized_for_onnxruntime_alone() -> None:
    made = qdq_from_onnx(network(), SPANS, PlacementOptions("onnxruntime", arithmetic="u8s8")).model
    assert operators(made) == {"Transpose", "QuantizeLinear", "DequantizeLinear", "Conv"}
    arrays = {tensor.name: to_array(tensor) for tensor in made.graph.initializer}
    (quantize,) = (node for node in made.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "t_raw")
    (dequantize,) = (node for node in made.graph.node if node.output[0] == "t")
    assert [int(arrays[node.input[2]]) for node in (quantize, dequantize)] == [0, 127]
    assert arrays[quantize.input[1]] / arrays[dequantize.input[1]] == pytest.approx(127.5, rel=1e-6)
    exact, rounded = answer(network(), PICTURES), answer(made, PICTURES)
    assert np.square(exact).sum() / np.square(exact - rounded).sum() > 10**3.5
    for options in (PlacementOptions("tensorrt"), PlacementOptions("onnxruntime", exclude=("Mul",))):
        assert {"Mul", "Add"} < operators(qdq_from_onnx(network(), SPANS, options).model)


def test_who_looks_for_faults_knows_the_tensor_and_its_scale() -> None:
    made = qdq_from_onnx(network(), SPANS, PlacementOptions("onnxruntime")).model
    assert list(scale_mismatches(made, SPANS)) == []
    (scale,) = (tensor for tensor in made.graph.initializer if tensor.name == "t_scale")
    matched = counterparts(network(), made)
    assert matched["t"] == "t"
    assert "t_raw" not in matched
    scale.CopyFrom(from_array(to_array(scale) * np.float32(1.5), "t_scale"))
    assert [mismatch.tensor for mismatch in scale_mismatches(made, SPANS)] == ["t"]


def of_bytes(arithmetic: str, pads: int = 1) -> onnx.ModelProto:
    """A network that takes bytes, casts them, and does this to them before its convolution."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (uint8[N,8,6,3] x) => (float[N,4,A,B] y) {'
        f"c = Cast <to = 1> (x) {arithmetic} t = Transpose <perm = [0, 3, 1, 2]> (b)"
        f"y = Conv <pads = [{', '.join([str(pads)] * 4)}]> (t, w) }}"
    )
    model.graph.initializer.extend(constants({name for node in model.graph.node for name in node.input}))
    weight = np.random.default_rng(2).normal(size=(4, 3, 3, 3)).astype(np.float32) / 500
    model.graph.initializer.append(from_array(weight, "w"))
    return model


@pytest.mark.parametrize(
    ("arithmetic", "zero_point"),
    [
        ("b = Mul (c, one)", 0),
        ("b = Mul (c, grey)", 0),
        ("b = Sub (c, middle)", 127),
        ("a = Div (c, divisor) e = Mul (a, divisor) b = Sub (e, middle)", 127),
    ],
)
@pytest.mark.parametrize("arithmetic_of", ["u8s8", "u8u8"])
def test_bytes_are_levels_as_they_are_whatever_of_them_was_seen(
    arithmetic: str, zero_point: int, arithmetic_of: Any
) -> None:
    model, x = of_bytes(arithmetic), PICTURES.astype(np.uint8)
    exact = answer(model, x)
    largest = float(np.abs(exact).max())
    spans = {"t": Span(90.0, -20.0, 90.0), "y": Span(largest, -largest, largest)}
    placed = qdq_from_onnx(model, spans, PlacementOptions("onnxruntime", arithmetic=arithmetic_of))
    made = placed.model
    assert not operators(made) & {"Cast", "Mul", "Div", "Sub", "Identity"}
    data = next(tensor for tensor in placed.placement.tensors if tensor.tensor == "t")
    assert data.quantization.zero_point == zero_point
    rounded = answer(made, x)
    assert np.square(exact).sum() / np.square(exact - rounded).sum() > 10**3.5
    np.testing.assert_allclose(answer(made, x, as_written=False), rounded, atol=1e-5)
    assert list(scale_mismatches(made, spans)) == []
    assert counterparts(model, made)["t"] == "t"


def test_bytes_whose_zero_is_no_level_keep_their_rounding() -> None:
    model = of_bytes("b = Sub (c, half)")
    spans = {"t": Span(128.0, -128.0, 128.0), "y": Span(3.0, -3.0, 3.0)}
    made = qdq_from_onnx(model, spans, PlacementOptions("onnxruntime", arithmetic="u8s8")).model
    assert "QuantizeLinear" in {node.op_type for node in made.graph.node if node.input[0].startswith("t")}
    exact, rounded = (answer(each, PICTURES.astype(np.uint8)) for each in (model, made))
    assert np.square(exact).sum() / np.square(exact - rounded).sum() > 10**3.5


def test_a_range_that_the_user_set_for_bytes_and_signed_levels_keep_the_cast() -> None:
    model = of_bytes("b = Mul (c, one)")
    spans = {"t": Span(90.0, 0.0, 90.0, is_set=True), "y": Span(3.0, -3.0, 3.0)}
    for options in (
        PlacementOptions("onnxruntime", arithmetic="u8s8"),
        PlacementOptions("onnxruntime", arithmetic="s8s8"),
    ):
        made = qdq_from_onnx(model, spans, options).model
        assert "Cast" in operators(made)
        assert list(scale_mismatches(made, spans)) == []
        spans = {**spans, "t": Span(90.0, 0.0, 90.0)}
    for_tensorrt = qdq_from_onnx(model, spans, PlacementOptions("tensorrt")).model
    assert "Cast" in operators(for_tensorrt)


def test_a_cast_of_floats_or_integers_that_others_read_stays() -> None:
    model = written("t = Cast <to = 1> (x)", 1.0, 0)
    assert drop_casts_of_bytes(opened(model).graph) == 0
    model = of_bytes("b = Mul (c, one) z = Neg (c)")
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    spans = {"t": Span(90.0, 0.0, 90.0), "y": Span(3.0, -3.0, 3.0)}
    made = qdq_from_onnx(model, spans, PlacementOptions("onnxruntime", arithmetic="u8s8")).model
    assert "Cast" in operators(made)
