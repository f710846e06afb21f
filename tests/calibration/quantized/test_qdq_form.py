"""Operators on integers become Q/DQ of the same scales; ONNX Runtime computes the same integers from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array, to_array

from calibration.errors import ModelError
from calibration.graph.editing import closed, opened
from calibration.quantized.qdq_form import write_qdq
from tests.quantized_files import answers, drawn, float_network, quantized_by_onnxruntime, sqnr_db

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

INTEGER = {"QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool",
           "QLinearLeakyRelu", "QLinearMatMul", "QLinearMul", "QLinearSigmoid"}  # fmt: skip
TYPES = {
    "int8": {"activation_type": "QInt8", "weight_type": "QInt8"},
    "uint8": {"activation_type": "QUInt8", "weight_type": "QInt8"},
    "uint8 weights by channel": {"activation_type": "QUInt8", "weight_type": "QUInt8", "per_channel": True},
    "int8 by channel": {"activation_type": "QInt8", "weight_type": "QInt8", "per_channel": True},
}


def written(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    opened_model = opened(model)
    num = write_qdq(opened_model)
    return closed(opened_model), num


def constants(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: to_array(tensor).tobytes() for tensor in model.graph.initializer}


@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES.keys())
def test_every_operator_of_onnx_runtimes_quantizer(tmp_path: Path, types: dict[str, Any]) -> None:
    path = quantized_by_onnxruntime(
        float_network(), tmp_path / "net.onnx", {"x": drawn(32, 2)}, quant_format="QOperator", **types
    )
    model = onnx.load(path)
    before = {node.op_type for node in model.graph.node}
    assert before >= INTEGER
    made, num = written(model)
    assert num == len(INTEGER) + 4, "two Conv, two Add; MaxPool and Flatten, which move integers"
    assert {node.op_type for node in made.graph.node}.isdisjoint(INTEGER)
    assert not any(node.domain for node in made.graph.node)
    same = {name: value for name, value in constants(made).items() if name in constants(model)}
    assert same == {name: value for name, value in constants(model).items() if name in same}, "byte for byte"
    assert {name for name in constants(model) if name.endswith("_scale")} <= set(same)
    for seed in range(3):
        x = 2 * drawn(64, seed)
        np.testing.assert_array_equal(answers(model, x), answers(made, x))
        assert sqnr_db(answers(model, x), answers(made, x, in_integers=False)) > 50, "each axis is the right one"


OPERATORS = {
    "QLinearSoftmax": ("m = com.microsoft.QLinearSoftmax <axis = 1, opset = 13> (q, s, z, s2, zu)", "s2"),
    "QLinearWhere": ("c = Greater (x, n) m = com.microsoft.QLinearWhere (c, q, s, z, q, s, z, s2, zu)", "s2"),
}


@pytest.mark.parametrize(("operator", "scale"), OPERATORS.values(), ids=OPERATORS.keys())
def test_those_that_its_quantizer_seldom_writes(operator: str, scale: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
    net (float[N, 6] x) => (float[N, K] y) <float s = {{0.05}}, uint8 z = {{120}}, float s2 = {{0.00390625}},
    uint8 zu = {{0}}, float n = {{0.0}}>
    {{ q = QuantizeLinear (x, s, z) {operator} y = DequantizeLinear (m, {scale}, zu) }}"""
    model = onnx.parser.parse_model(text)
    made, num = written(model)
    assert num == 1
    x = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    step = np.abs(answers(model, x) - answers(made, x)) / 0.00390625
    assert step.max() <= 1.001, "ONNX Runtime rounds by a table or in another order: one level at most"
    assert (step > 0.5).mean() < 0.05


MOVED = {
    "Reshape": "m = Reshape (q, shape)", "Transpose": "m = Transpose <perm = [1, 0]> (q)",
    "Slice": "m = Slice (q, zero, one, one)", "Pad of zero": "m = Pad (q, pads)", "Pad": "m = Pad (q, pads, pad)",
    "Concat": "m = Concat <axis = 1> (q, q)", "Gather": "m = Gather <axis = 1> (q, zero)",
}  # fmt: skip


@pytest.mark.parametrize("operator", MOVED.values(), ids=MOVED.keys())
def test_integers_that_are_moved(operator: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[2, 3] x) => (float[K, L] y) <float s = {{0.05}}, uint8 z = {{12}}, int64[2] shape = {{3, 2}},
    int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[4] pads = {{1, 0, 0, 1}}, uint8 pad = {{200}}>
    {{ q = QuantizeLinear (x, s, z) {operator} y = DequantizeLinear (m, s, z) }}"""
    model = onnx.parser.parse_model(text)
    made, num = written(model)
    assert num == 1
    quantizers = ("QuantizeLinear", "DequantizeLinear")
    readers = [node for node in made.graph.node if node.op_type not in quantizers]
    makers = {output: node.op_type for node in made.graph.node for output in node.output}
    assert [makers[node.input[0]] for node in readers] == ["DequantizeLinear"]
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_array_equal(answers(model, x, in_integers=False), answers(made, x, in_integers=False))


def test_onnx_runtimes_own_quantizelinear_is_onnxs() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> net (float[N, 3] x) => (float[N, 3] y)
    <float s = {0.05}, int8 z = {0}>
    { q = com.microsoft.QuantizeLinear (x, s, z)  y = com.microsoft.DequantizeLinear (q, s, z) }"""
    model = onnx.parser.parse_model(text)
    made, _ = written(model)
    assert {node.domain for node in made.graph.node} == {""}
    x = np.random.default_rng(0).normal(scale=5, size=(500, 3)).astype(np.float32)
    np.testing.assert_array_equal(answers(model, x), answers(made, x))


def test_what_computes_on_integers_otherwise() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[2, 3] x) => (int32[2, 2] y) <float s = {0.05}, uint8 z = {12}, uint8[3, 2] w = {1, 2, 3, 4, 5, 6}>
    { q = QuantizeLinear (x, s, z)  y = MatMulInteger (q, w, z) }"""
    with pytest.raises(ModelError) as caught:
        written(onnx.parser.parse_model(text))
    assert str(caught.value) == (
        "node 'MatMulInteger_y' (MatMulInteger) computes on the integers of 'q', of which no DequantizeLinear comes "
        "before it; quantize the model again in the format QDQ"
    )


def test_channels_last_are_not_rewritten() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    net (float[1, 4, 4, 2] x) => (float[1, 1, 1, 2] y) <float s = {0.05}, uint8 z = {12}>
    { q = QuantizeLinear (x, s, z)
      m = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (q, s, z, s, z)
      y = DequantizeLinear (m, s, z) }"""
    with pytest.raises(ModelError, match="has its channels last, which ONNX's operators do not"):
        written(onnx.parser.parse_model(text))


def test_integer_weights_that_are_computed_are_refused_and_those_of_a_constant_are_not() -> None:
    """TensorRT takes integers only where a DequantizeLinear reads the constant itself; `export` makes it so."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N,4] x) => (float[N,3] y)
    { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  w = %s  [weights] f = DequantizeLinear (w, s, z)
      y = MatMul (d, f) }"""
    flat, shape = np.arange(12, dtype=np.int8), np.array([4, 3], np.int64)
    for made, is_taken in (("Reshape (flat, shape)", False), ("Constant <value: tensor = int8[4,3] w0 {1}> ()", True)):
        made = made.replace("{1}", "{" + ",".join(map(str, flat)) + "}")
        model = onnx.parser.parse_model(text % made)
        arrays = {"s": np.float32(0.02), "z": np.int8(0), "flat": flat, "shape": shape}
        model.graph.initializer.extend(from_array(np.asarray(array), name) for name, array in arrays.items())
        if is_taken:
            assert written(model)[1] == 0
            continue
        with pytest.raises(ModelError, match=r"node 'weights' \(DequantizeLinear\) reads integers that node .*Reshape"):
            written(model)
