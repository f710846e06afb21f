"""Scales that are those of the ranges, those that are not, and those that are another tensor's with good reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from calibration.analysis.scale_check import quantization, scale_mismatches
from calibration.precision.int8_fp16 import typed_int8_from_qdq
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.precision.scale import Quantization
from calibration.ranges.span import Span

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = Relu (a)
    both = Concat <axis = 1> (b, x)
    y = Conv <pads = [1, 1, 1, 1]> (both, v)
}"""

SPANS = {"x": Span(4.0, -4.0, 4.0), "a": Span(2.0, -2.0, 2.0), "b": Span(1.0, 0.0, 2.0)}
SPANS |= {"both": Span(4.0, -4.0, 4.0), "y": Span(3.0, -3.0, 2.0)}


def model() -> onnx.ModelProto:
    random = np.random.default_rng(3)
    found = onnx.parser.parse_model(NETWORK)
    for name, shape in {"w": (16, 16, 3, 3), "v": (16, 32, 3, 3)}.items():
        found.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    return found


def quantized(target: Any) -> onnx.ModelProto:
    return qdq_from_onnx(model(), SPANS, PlacementOptions(target=target)).model


def with_scale(found: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """The same with one of its scales multiplied."""
    (tensor,) = (tensor for tensor in found.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return found


def scales_in(found: onnx.ModelProto) -> list[str]:
    """The scales of activations."""
    constants = {tensor.name for tensor in found.graph.initializer}
    quantizes = (node for node in found.graph.node if node.op_type == "QuantizeLinear")
    return [node.input[1] for node in quantizes if node.input[0] not in constants]


def names(found: Iterable[Any]) -> list[str]:
    return [misfit.tensor for misfit in found]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_what_was_written_from_the_ranges_fits_them(target: Any) -> None:
    assert list(scale_mismatches(quantized(target), SPANS)) == []


def test_fp16_scales_fit_as_well_as_fp16_can() -> None:
    typed = typed_int8_from_qdq(quantized("tensorrt"), keep_fp32=()).model
    assert {t.data_type for t in typed.graph.initializer if t.name == "x_scale_fp16"} == {onnx.TensorProto.FLOAT16}
    assert list(scale_mismatches(typed, SPANS)) == []


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.01])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_each_wrong_scale_is_named(target: Any, factor: float) -> None:
    for name in scales_in(quantized(target)):
        (found,) = scale_mismatches(with_scale(quantized(target), name, factor), SPANS)
        assert found.tensor == name.removesuffix("_scale")
        assert found.scale / found.expected == pytest.approx(factor, rel=1e-3)


def test_joined_tensors_share_the_largest_scale_and_no_other() -> None:
    """TensorRT: b is concatenated with x, so that its scale may be that of x; half of it may not."""
    shared = quantized("tensorrt")
    assert {"x_scale", "both_scale"} <= {tensor.name for tensor in shared.graph.initializer}
    spans = SPANS | {"both": SPANS["b"]}
    assert list(scale_mismatches(shared, spans)) == [], "both has a smaller range of its own, and the scale of x"
    assert names(scale_mismatches(with_scale(shared, "both_scale", 0.5), spans)) == ["both"]


def test_what_gives_values_back_has_the_scale_of_its_data() -> None:
    pools = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = Relu (a)
        c = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b)
        d = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)
        y = Conv <pads = [1, 1, 1, 1]> (d, w)
    }"""
    network = onnx.parser.parse_model(pools)
    network.graph.initializer.extend(tensor for tensor in model().graph.initializer if tensor.name == "w")
    spans = SPANS | {"c": Span(2.2, 0.0, 2.2), "d": Span(2.4, 0.0, 2.4)}
    placed = qdq_from_onnx(network, spans, PlacementOptions(target="onnxruntime")).model
    quantizes = [node.input[0] for node in placed.graph.node if node.op_type == "QuantizeLinear"]
    assert {"c", "d"} <= set(quantizes), "they are rounded again, to the levels of b"
    assert names(scale_mismatches(placed, spans)) == []
    (of_b,) = (node.input[1] for node in placed.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "b")
    assert names(scale_mismatches(with_scale(placed, of_b, 0.8), spans)) == ["b", "c"]


def test_the_sentence() -> None:
    (found,) = scale_mismatches(with_scale(quantized("tensorrt"), "x_scale", 2), SPANS)
    assert found.sentence() == (
        "tensor 'x' is quantized (node 'x_DequantizeLinear') with scale 0.0629921, 2 times the 0.0314961 of its "
        "calibrated range"
    )


def test_what_has_no_range_is_passed_over() -> None:
    assert list(scale_mismatches(with_scale(quantized("tensorrt"), "x_scale", 2), {"both": SPANS["both"]})) == []
    assert list(scale_mismatches(model(), SPANS)) == []


QDQ = """<ir_version: 8, opset_import: ["" : 17]>
g (float[4] x, float scale_of_input) => (float[4] y) <float scale = {0.5}, uint8 middle = {7}, float[4] many = {1,2,3,4}> {
    q = QuantizeLinear (x, scale, middle)
    y = DequantizeLinear (q, scale, middle)
    y2 = DequantizeLinear (q, scale)
    y3 = DequantizeLinear <axis = 0> (q, many)
    y4 = DequantizeLinear (q, scale_of_input)
}"""  # fmt: skip  # noqa: E501


def test_scale_and_zero_point_of_a_node() -> None:
    found = onnx.parser.parse_model(QDQ)
    arrays = {tensor.name: tensor for tensor in found.graph.initializer}
    nodes = found.graph.node[1:]
    expected = [Quantization(0.5, 7, "uint8"), Quantization(0.5, 0, "uint8"), None, None]
    assert [quantization(node, arrays) for node in nodes] == expected
