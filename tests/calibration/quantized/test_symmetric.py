"""What TensorRT takes: int8 with zero point 0 and weights in front of their Q, every value as it was; or an error."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from onnx.numpy_helper import from_array, to_array

from calibration.errors import ModelError
from calibration.quantized.symmetric import symmetric_from_quantized
from tests.quantized_files import SYMMETRIC, answers, drawn, float_network, quantized_by_onnxruntime, sqnr_db

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

FORMS: dict[str, dict[str, Any]] = {
    "QDQ": {"extra_options": dict(SYMMETRIC)},
    "QDQ by channel": {"per_channel": True, "extra_options": dict(SYMMETRIC)},
    "QDQ with weights in float": {"extra_options": {**SYMMETRIC, "AddQDQPairToWeight": True, "QuantizeBias": False}},
    "QOperator": {"quant_format": "QOperator", "extra_options": dict(SYMMETRIC)},
}
INT8 = {"activation_type": "QInt8", "weight_type": "QInt8"}


def constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer}


def check_taken_by_tensorrt(model: onnx.ModelProto) -> None:
    """Each Q and DQ is int8 with zero point 0, none reads an integer of the file, each DQ reads a Q."""
    arrays = constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        assert node.domain == ""
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = arrays[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
            if node.op_type == "DequantizeLinear":
                assert makers[node.input[0]].op_type == "QuantizeLinear"


def scales(model: onnx.ModelProto) -> Counter[bytes]:
    """The scales of all weights and data, each tensor once, but for biases."""
    arrays = constants(model)
    quantizers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    tensors = {
        node.input[0]: node.input[1]
        for node in quantizers
        if arrays.get(node.input[0], np.zeros(0, np.int8)).dtype != np.int32
    }
    return Counter(arrays[scale].tobytes() for scale in tensors.values())


@pytest.mark.parametrize("how", FORMS.values(), ids=FORMS.keys())
def test_symmetric_files_stay_as_they_are(tmp_path: Path, how: dict[str, Any]) -> None:
    path = quantized_by_onnxruntime(float_network(), tmp_path / "net.onnx", {"x": drawn(32, 2)}, **(INT8 | how))
    model = onnx.load(path)
    made = symmetric_from_quantized(model)
    check_taken_by_tensorrt(made.model)
    assert made.coarsened == []
    if how.get("quant_format") != "QOperator":
        assert scales(made.model) == scales(model), "byte for byte"
        for seed in range(3):
            x = 2 * drawn(64, seed)
            before, after = (answers(each, x, in_integers=False) for each in (model, made.model))
            np.testing.assert_array_equal(before, after)
    else:
        assert made.num_integer_operators == 13
        x = 2 * drawn(64, 1)
        assert sqnr_db(answers(model, x), answers(made.model, x, in_integers=False)) > 50


def test_asymmetric_files_are_refused_with_two_ways_out(tmp_path: Path) -> None:
    path = quantized_by_onnxruntime(
        float_network(), tmp_path / "net.onnx", {"x": drawn(32, 2)}, activation_type="QUInt8", weight_type="QInt8"
    )
    with pytest.raises(ModelError) as caught:
        symmetric_from_quantized(onnx.load(path))
    assert str(caught.value).startswith("'x' is UINT8 with zero point ")
    assert str(caught.value).endswith(
        "further tensors), TensorRT takes INT8 with zero point 0 alone; quantize the model again with symmetric "
        "ranges, or let those tensors have coarser scales: [quantize] coarsen_to_symmetric = true, or "
        "--coarsen-to-symmetric"
    )


@pytest.mark.parametrize("types", [{"activation_type": "QUInt8", "weight_type": "QUInt8"}, {}], ids=["uint8", "int8"])
@pytest.mark.parametrize("quant_format", ["QDQ", "QOperator"])
def test_coarser_scales_where_the_user_wants_them(tmp_path: Path, types: dict[str, str], quant_format: str) -> None:
    source = float_network()
    how = {"quant_format": quant_format, **types}
    path = quantized_by_onnxruntime(source, tmp_path / "net.onnx", {"x": drawn(32, 2)}, **how)
    model = onnx.load(path)
    made = symmetric_from_quantized(model, coarsen=True)
    check_taken_by_tensorrt(made.model)
    assert len(made.coarsened) > 5
    assert made.notes()[-1].startswith(f"{len(made.coarsened)} asymmetric tensors have coarser, symmetric scales")
    x = drawn(64, 5)
    expected = answers(source, x)
    before, after = (sqnr_db(expected, answers(each, x, in_integers=False)) for each in (model, made.model))
    assert after > before - 6, "a bit less, so at most 6 dB"
    assert after > 30
    assert [node.op_type for node in made.model.graph.node].count("Relu") == 2, "those that zero points were"


def dense(weight: npt.NDArray[Any], zero_points: dict[str, Any], scale: float = 0.02) -> onnx.ModelProto:
    """x, quantized, times a stored weight, and a stored bias."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 3] y)
    { q = QuantizeLinear (x, s, zx)  d = DequantizeLinear (q, s, zx)  w = DequantizeLinear <axis = 1> (wq, sw, zw)
      b = DequantizeLinear (bq, sb, zb)  y = Gemm (d, w, b) }"""
    model = onnx.parser.parse_model(text)
    arrays = {
        "s": np.array(0.03, np.float32), "wq": weight, "sw": np.full(3, scale, np.float32),
        "bq": np.array([-70000, 5, 123456789], np.int32), "sb": np.array(0.0006, np.float32),
        "zb": np.array(0, np.int32), **zero_points,
    }  # fmt: skip
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items())
    return model


def all_bytes(dtype: Any) -> npt.NDArray[Any]:
    """Twelve weights, both ends of the type among them."""
    info = np.iinfo(dtype)
    return np.linspace(info.min, info.max, 12).round().astype(dtype).reshape(4, 3)


@pytest.mark.parametrize("scale", [1e-30, 0.02, 0.1, 1 / 3, 3e30])
def test_zero_point_128_is_int8_with_zero_point_0(scale: float) -> None:
    zero_points = {"zx": np.array(128, np.uint8), "zw": np.full(3, 128, np.uint8)}
    model = dense(all_bytes(np.uint8), zero_points, scale)
    made = symmetric_from_quantized(model)
    assert made.num_shifted == 2
    assert made.num_floats == 1, "the bias"
    check_taken_by_tensorrt(made.model)
    before, after = constants(model), constants(made.model)
    for name in ("s", "sw"):
        assert after[name].tobytes() == before[name].tobytes()
    x = np.random.default_rng(0).normal(scale=3, size=(4096, 4)).astype(np.float32)
    np.testing.assert_array_equal(answers(model, x, in_integers=False), answers(made.model, x, in_integers=False))


def test_int32_biases_are_the_numbers_that_they_mean() -> None:
    model = dense(all_bytes(np.int8), {"zx": np.array(0, np.int8), "zw": np.zeros(3, np.int8)})
    made = symmetric_from_quantized(model)
    (gemm,) = (node for node in made.model.graph.node if node.op_type == "Gemm")
    bias = constants(made.model)[gemm.input[2]]
    np.testing.assert_array_equal(bias, np.array([-70000, 5, 123456789], np.float32) * np.float32(0.0006))


def test_scales_in_fp16_stay() -> None:
    """As NVIDIA ModelOpt writes them: opset 19, FP16 within, a Cast at each end."""
    text = """<ir_version: 9, opset_import: ["" : 19]> net (float[N, 4] x) => (float[N, 3] y)
    { h = Cast <to = 10> (x)  q = QuantizeLinear (h, s, zx)  d = DequantizeLinear (q, s, zx)
      wq = QuantizeLinear <axis = 1> (wh, sw, zw)  w = DequantizeLinear <axis = 1> (wq, sw, zw)
      m = MatMul (d, w)  y = Cast <to = 1> (m) }"""
    model = onnx.parser.parse_model(text)
    arrays: dict[str, npt.NDArray[Any]] = {
        "s": np.array(0.03, np.float16), "zx": np.array(0, np.int8), "sw": np.full(3, 0.02, np.float16),
        "zw": np.zeros(3, np.int8), "wh": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16),
    }  # fmt: skip
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items())
    made = symmetric_from_quantized(model)
    assert constants(made.model).keys() == arrays.keys()
    assert made.notes() == []
    assert [node.op_type for node in made.model.graph.node] == [node.op_type for node in model.graph.node]


def test_a_zero_point_is_written_where_there_is_none() -> None:
    model = dense(all_bytes(np.int8), {"zw": np.zeros(3, np.int8), "zx": np.array(0, np.int8)})
    for node in model.graph.node:
        if node.output[0] == "w":
            del node.input[2]
    check_taken_by_tensorrt(symmetric_from_quantized(model).model)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("d = DequantizeLinear (q, s, zx)", "d = DequantizeLinear (q, s2, zx)",
         "'x' is quantized with one scale or zero point and read with another by 'DequantizeLinear_d', TensorRT takes"),
        ("(x, s, zx)  d = DequantizeLinear (q, s, zx)",
         "<axis = 1> (x, s4, z4)  d = DequantizeLinear <axis = 1> (q, s4, z4)",
         "'x' is data that is quantized by channel, TensorRT takes one scale for all of it; quantize the model"),
    ],
    ids=["another scale", "by channel"],
)  # fmt: skip
def test_data_in_ways_that_tensorrt_does_not_take(old: str, new: str, words: str) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y)
    <float s = {0.5}, float s2 = {0.25}, int8 zx = {0}, float[4] s4 = {1.0, 2.0, 3.0, 4.0}, int8[4] z4 = {0, 0, 0, 0}>
    { q = QuantizeLinear (x, s, zx)  d = DequantizeLinear (q, s, zx)  y = Relu (d) }"""
    assert old in text
    with pytest.raises(ModelError) as caught:
        symmetric_from_quantized(onnx.parser.parse_model(text.replace(old, new)), coarsen=True)
    assert str(caught.value).startswith(words)


def test_constants_that_nothing_multiplies_by_are_floats() -> None:
    """ONNX Runtime quantizes an Add's constant with a zero point of its own."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 2] x) => (float[N, 2] y)
    <float s = {0.5}, int8 z = {0}, int8[2] c = {-100, 27}, float sc = {0.125}, int8 zc = {16}>
    { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  f = DequantizeLinear (c, sc, zc)
      y = Add (d, f) }"""
    made = symmetric_from_quantized(onnx.parser.parse_model(text))
    assert made.num_floats == 1
    (add,) = (node for node in made.model.graph.node if node.op_type == "Add")
    np.testing.assert_array_equal(constants(made.model)[add.input[1]], [-14.5, 1.375])


def quantizer(zero_point: int) -> onnx.ModelProto:
    """x on uint8 levels."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(name, 1, ["N", 4]) for name in "xy"]
    arrays = [from_array(np.array(0.025, np.float32), "s"), from_array(np.array(zero_point, np.uint8), "z")]
    graph = helper.make_graph(nodes, "net", value[:1], value[1:], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("zero_point", "operators", "expected"),
    [(0, ["Relu"], [[0, 0, 2.0, 6.375]]), (20, [], [[-3.0, -0.4, 2.0, 5.875]])],
    ids=["a Relu", "a range"],
)
def test_a_zero_point_that_was_a_relu_becomes_one(
    zero_point: int, operators: list[str], expected: list[list[float]]
) -> None:
    """ONNX Runtime's quantizer leaves out a Relu in front of such a tensor."""
    made = symmetric_from_quantized(quantizer(zero_point), coarsen=True)
    x = np.array([[-3.0, -0.4, 2.0, 9.0]], np.float32)
    np.testing.assert_allclose(answers(made.model, x), expected, atol=0.026)
    assert [node.op_type for node in made.model.graph.node] == [*operators, "QuantizeLinear", "DequantizeLinear"]
