"""Dynamic-range INT8: what is written, that it computes what FP32 does, and what stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from calibration.errors import DataError, ModelError
from calibration.precision.dynamic import dynamic_from_onnx
from calibration.precision.scale import LARGEST_PAIR
from tests.made import model_with_weights

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 8, 6, 6] x) => (float[N, 5] y)
{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, kernel)
    [up] u = ConvTranspose (c, spread)
    [tiny] t = Conv <group = 16> (u, each)
    r = Relu (t)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    [head] m = MatMul (f, matrix)
    [bias] h = Add (m, shift)
    [gemm] g = Gemm <transB = 1> (h, turned, offset)
    [scaled] s = Gemm <alpha = 0.5> (g, square)
    [product] a = MatMul (s, other)
    y = Identity (a)
}"""
WEIGHTS = {
    "kernel": (16, 8, 3, 3), "spread": (16, 16, 2, 2), "each": (16, 1, 1, 1), "matrix": (16, 12), "shift": (12,),
    "turned": (5, 12), "offset": (5,), "square": (5, 5), "other": (5, 5),
}  # fmt: skip


def net() -> onnx.ModelProto:
    return model_with_weights(NET, 3, **WEIGHTS)


def answers(model: onnx.ModelProto, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_matrix_products_multiply_integers_and_convolutions_keep_theirs_in_the_file() -> None:
    written = dynamic_from_onnx(net(), (), "u8s8")
    assert written.in_integers == ("head", "gemm", "product")
    assert written.stored == ("conv", "up")
    assert written.notes == (
        "node 'tiny' (Conv) stays FP32: its weight is so small that the file would grow",
        "node 'scaled' (Gemm) stays FP32: it has alpha, beta or transA",
    )
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.model.graph.initializer}
    assert {name for name, array in stored.items() if array.dtype == np.int8 and array.ndim} == {
        "kernel_quantized", "spread_quantized", "matrix_quantized", "turned_quantized", "other_quantized",
    }  # fmt: skip
    assert stored["kernel_scale"].shape == (16, 1, 1, 1)
    assert stored["spread_scale"].shape == (1, 16, 1, 1)
    assert stored["turned_quantized"].shape == (12, 5)
    assert not {"kernel", "spread", "matrix", "turned"} & set(stored)


def test_it_answers_nearly_as_fp32_and_the_fused_kernels_as_the_standard_says() -> None:
    x = np.random.default_rng(1).normal(size=(3, 8, 6, 6)).astype(np.float32)
    written = dynamic_from_onnx(net(), (), "u8s8").model
    full, reduced = answers(net(), x), answers(written, x)
    assert 0 < np.abs(reduced - full).max() < 0.05 * np.abs(full).max()
    by_standard = np.asarray(ReferenceEvaluator(written).run(["y"], {"x": x}))[0]
    np.testing.assert_allclose(reduced, by_standard, rtol=0.01, atol=0.01 * np.abs(full).max())


def test_onnx_runtime_fuses_what_is_written(tmp_path: Any) -> None:
    """A fused product for each, and no trace of the weights of convolutions being restored."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 4
    model = dynamic_from_onnx(net(), (), "u8s8").model
    onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("DynamicQuantizeMatMul") == 3
    assert not {"Cast", "Mul", "Add", "MatMulInteger", "DynamicQuantizeLinear"} & set(operators)


@pytest.mark.parametrize(("arithmetic", "dtype"), [("u8s8", np.int8), ("u8s7", np.int8), ("u8u8", np.uint8)])
def test_products_are_in_the_arithmetic_that_the_cpu_does(arithmetic: Any, dtype: Any) -> None:
    model = model_with_weights(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 64] x) => (float[N, 8] y) { [p] y = MatMul (x, w) }""",
        2,
        w=(64, 8),
    )
    written = dynamic_from_onnx(model, (), arithmetic).model
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    matrix, middle = stored["w_quantized"], int(stored["w_zero_point"])
    assert (matrix.dtype, middle) == (dtype, 128 if dtype == np.uint8 else 0)
    pairs = (matrix.astype(int) - middle).reshape(32, 2, 8)
    of_one_sign = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1))
    assert (of_one_sign.max() <= LARGEST_PAIR) == (arithmetic == "u8s7")
    x = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    assert np.abs(answers(written, x) - answers(model, x)).max() < 0.05 * np.abs(answers(model, x)).max()


def test_data_and_weights_that_several_products_read_are_rounded_once() -> None:
    model = model_with_weights(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 6] x) => (float[N, 6] y, float[N, 6] z)
        { a = MatMul (x, w) b = MatMul (x, w) y = Relu (a) z = MatMul (b, w) }""",
        2,
        w=(6, 6),
    )
    written = dynamic_from_onnx(model, (), "u8s8").model
    operators = [node.op_type for node in written.graph.node]
    assert operators.count("DynamicQuantizeLinear") == 2
    assert operators.count("MatMulInteger") == 3
    assert [tensor.name for tensor in written.graph.initializer].count("w_quantized") == 1
    assert [value.name for value in written.graph.output] == ["y", "z"]


def test_what_the_user_excludes_and_what_has_no_constant_weight_stays() -> None:
    model = model_with_weights(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 6] x) => (float[N, 6] y)
        { [first] a = MatMul (x, w) [kept] b = MatMul (a, v) t = Transpose (x) [both] c = MatMul (t, b)
          [batched] y = MatMul (b, c) }""",
        2,
        w=(6, 6),
        v=(6, 6),
    )
    written = dynamic_from_onnx(model, ("kept",), "u8s8")
    assert written.in_integers == ("first",)
    assert written.notes == (
        "node 'kept' (MatMul) stays FP32: the user excluded it",
        "node 'both' (MatMul) stays FP32: its weight is not a float32 constant",
        "node 'batched' (MatMul) stays FP32: its weight is not a float32 constant",
    )
    with pytest.raises(DataError, match="kepd"):
        dynamic_from_onnx(model, ("kepd",), "u8s8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("""<ir_version: 4, opset_import: ["" : 9]> g (float[2, 2] x) => (float[2, 2] y) { y = MatMul (x, x) }""",
         "g: is opset 9, DynamicQuantizeLinear needs 11 or later; export it again"),
        ("""<ir_version: 8, opset_import: ["" : 17]> g (float[2, 2] x) => (uint8[2, 2] q)
         { q, s, z = DynamicQuantizeLinear (x) }""", "g: is quantized already; quantize the FP32 model"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        dynamic_from_onnx(onnx.parser.parse_model(text), (), "u8s8")
    assert str(caught.value) == words
