"""A quantized model without its rounding: what it would compute with infinitely many levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array

from calibration.errors import ModelError
from calibration.quantized.unrounded import unrounded
from tests.quantized_files import SYMMETRIC, answers, drawn, float_network, quantized_by_onnxruntime, sqnr_db

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

FORMS: dict[str, dict[str, Any]] = {
    "QDQ": {},
    "QOperator": {"quant_format": "QOperator"},
    "uint8 weights": {"activation_type": "QUInt8", "weight_type": "QUInt8"},
    "symmetric": {"extra_options": dict(SYMMETRIC)},
}


@pytest.mark.parametrize("how", FORMS.values(), ids=FORMS.keys())
def test_it_is_the_network_with_rounded_weights(tmp_path: Path, how: dict[str, Any]) -> None:
    """And a Relu is there again that the quantizer left out, as a Clip."""
    source = float_network()
    path = quantized_by_onnxruntime(source, tmp_path / "net.onnx", {"x": drawn(32, 2)}, **how)
    model = onnx.load(path)
    made = unrounded(model)
    assert {node.op_type for node in made.graph.node}.isdisjoint(("QuantizeLinear", "DequantizeLinear"))
    assert not any(node.domain or node.op_type.startswith("Q") for node in made.graph.node)
    x = drawn(32, 2)  # Within the bounds that were calibrated.
    by_float, by_integers = (sqnr_db(answers(other, x), answers(made, x)) for other in (source, model))
    assert by_float > 35
    assert by_integers > 35
    assert sqnr_db(answers(source, x), answers(model, x)) < by_float, "rounding of data is gone"


def test_weights_that_are_stored_in_float_are_those(tmp_path: Path) -> None:
    source = float_network()
    extra = {**SYMMETRIC, "AddQDQPairToWeight": True, "QuantizeBias": False}
    path = quantized_by_onnxruntime(source, tmp_path / "net.onnx", {"x": drawn(32, 2)}, extra_options=extra)
    made = unrounded(onnx.load(path))
    x = 3 * drawn(32, 4)
    np.testing.assert_array_equal(answers(source, x), answers(made, x))
    names = {tensor.name for tensor in made.graph.initializer}
    assert names >= {"w1", "w2", "w3", "w4"}


def test_bounds_are_written_once_and_only_where_they_may_be_the_networks() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y)
    <float s = {0.5}, int8 z = {0}, uint8 u = {0}>
    { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
      q2 = QuantizeLinear (d, s, u)  d2 = DequantizeLinear (q2, s, u)
      p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d2)
      q3 = QuantizeLinear (p, s, u)  y = DequantizeLinear (q3, s, u) }"""
    made = unrounded(onnx.parser.parse_model(text))
    assert [node.op_type for node in made.graph.node] == ["Clip", "MaxPool", "Identity"]
    bounds = {tensor.name: to_array(tensor).item() for tensor in made.graph.initializer}
    assert [bounds[name] for name in made.graph.node[0].input[1:]] == [0.0, 127.5]


def test_another_scale_behind_than_in_front() -> None:
    """As ``trtforge quantize`` itself writes it where an input's scaling is left to its QuantizeLinear."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N] x) => (float[N] y)
    <float s = {1.0}, uint8 z = {0}, float t = {0.25}, uint8 u = {100}>
    { q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, t, u) }"""
    model = onnx.parser.parse_model(text)
    made = unrounded(model)
    x = np.array([0.0, 1.0, 200.0, 255.0], np.float32)
    np.testing.assert_array_equal(answers(model, x), answers(made, x))
    np.testing.assert_array_equal(answers(made, np.array([1.5, 300.0], np.float32)), [-24.625, 38.75])


def test_fp16_becomes_fp32(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 19]> net (float16[N, 4] x) => (float16[N, 3] y)
    { q = QuantizeLinear (x, s, zx)  d = DequantizeLinear (q, s, zx)  w = DequantizeLinear (wq, sw, zw)
      h = MatMul (d, w)  f = Cast <to = 1> (h)  g = Cast <to = 10> (f)  y = Relu (g) }"""
    model = onnx.parser.parse_model(text)
    arrays: dict[str, npt.NDArray[Any]] = {
        "s": np.array(0.03, np.float16), "zx": np.array(0, np.int8), "sw": np.array(0.02, np.float16),
        "zw": np.array(0, np.int8), "wq": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
    }  # fmt: skip
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items())
    made = unrounded(model)
    kinds = {tensor.data_type for tensor in made.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT}
    assert made.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16, "it is fed the same samples"
    assert made.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float16)
    assert sqnr_db(answers(made, x), answers(model, x, in_integers=False).astype(np.float32)) > 30  # type: ignore[arg-type]


def test_what_has_no_fp32_behind_it() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N] x, uint8[N] i) => (float[N] y)
    <float s = {1.0}, uint8 z = {0}> { d = DequantizeLinear (i, s, z)  y = Add (x, d) }"""
    with pytest.raises(ModelError) as caught:
        unrounded(onnx.parser.parse_model(text))
    assert str(caught.value) == (
        "node 'DequantizeLinear_d' (DequantizeLinear) reads 'i', which no QuantizeLinear gives; quantize the model "
        "again in the format QDQ"
    )
