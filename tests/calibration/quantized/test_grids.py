"""What of a quantized model is read, and what is refused with a sentence."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.numpy_helper import from_array

from calibration.errors import ModelError
from calibration.quantized.grids import Grid, check_quantized, is_quantized

HEAD = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> net (float[N, 4] x) => (float[N, 4] y)
<float s = {0.5}, float zero = {0.0}, float minus = {-1.0}, float[2] s2 = {1.0, 2.0}, int8 z = {0}, uint16 z16 = {0},
 int8[3] z3 = {0, 0, 0}, int8[4] w = {1, 2, 3, 4}, float[2, 2] blocks = {1.0, 1.0, 1.0, 1.0}>"""


def model_of(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + "{" + body + "}")


def test_a_model_is_told_by_its_nodes() -> None:
    assert is_quantized(model_of("q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z)"))
    assert is_quantized(model_of("y = com.microsoft.QLinearAdd (x, s, z, x, s, z, s, z)")), "as it stands"
    assert not is_quantized(model_of("y = Relu (x)"))
    assert not is_quantized(model_of("a, b, c = DynamicQuantizeLinear (x)  y = Relu (x)")), "it has no fixed scales"


WRONG = {
    "scale of 0": ("q = QuantizeLinear (x, zero, z)  y = DequantizeLinear (q, zero, z)",
        "node 'QuantizeLinear_q' (QuantizeLinear) has the scale 0, a positive number is expected; quantize the model "
        "again"),
    "negative scale": ("q = QuantizeLinear (x, minus, z)  y = DequantizeLinear (q, minus, z)",
        "node 'QuantizeLinear_q' (QuantizeLinear) has the scale -1, a positive number is expected; quantize the model "
        "again"),
    "computed scale": ("t = ReduceMax <keepdims = 0> (x)  q = QuantizeLinear (x, t, z)  y = DequantizeLinear (q, t, z)",
        "node 'QuantizeLinear_q': its scale or zero point 't' is computed, a constant is expected; run `trtforge "
        "export` on it, or quantize the model again with scales that calibration fixes"),
    "16 bits": ("q = QuantizeLinear (x, s, z16)  y = DequantizeLinear (q, s, z16)",
        "node 'QuantizeLinear_q' (QuantizeLinear) is of UINT16, of quantized models INT8 and UINT8 are taken; quantize "
        "it to these, or give the FP32 model"),
    "float8": ("q = QuantizeLinear <output_dtype = 17> (x, s)  y = DequantizeLinear (q, s)",
        "node 'QuantizeLinear_q' (QuantizeLinear) is of FLOAT8E4M3FN, of quantized models INT8 and UINT8 are taken; "
        "quantize it to these, or give the FP32 model"),
    "int4": ("q = QuantizeLinear <output_dtype = 22> (x, s)  y = DequantizeLinear (q, s)",
        "node 'QuantizeLinear_q' (QuantizeLinear) is of INT4, of quantized models INT8 and UINT8 are taken; quantize "
        "it to these, or give the FP32 model"),
    "blocks": ("q = QuantizeLinear <axis = 1, block_size = 2> (x, blocks)  "
        "y = DequantizeLinear <axis = 1, block_size = 2> (q, blocks)",
        "node 'QuantizeLinear_q' has a scale for each block of 2 values, one for a tensor or a channel is expected; "
        "quantize the model again without blocks"),
    "numbers of scales": ("q = QuantizeLinear (x, s2, z3)  y = DequantizeLinear (q, s2, z3)",
        "node 'QuantizeLinear_q' (QuantizeLinear) has scales (2,) and zero points (3,), one for the tensor or one for "
        "each channel are expected; quantize the model again"),
    "weights alone": ("d = DequantizeLinear (w, s, z)  y = Mul (x, d)",
        "net: has weights in INT8 alone and computes in floating point, so that it is no INT8 model; give the FP32 "
        "model"),
    "in a body": ("c = Constant <value_int = 1> ()  b = Cast <to = 9> (c)  y = If (b) <then_branch = t () => (r) "
        "{ q = QuantizeLinear (x, s, z)  r = DequantizeLinear (q, s, z) }, else_branch = e () => (r) { r = Relu (x) }>",
        "node 'QuantizeLinear_q' (QuantizeLinear) is in the body of a Loop, Scan or If, where it is not read; quantize "
        "the model without these"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_what_is_not_taken(body: str, sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_quantized(model_of(body))
    assert str(caught.value) == sentence


def test_integers_outside() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (uint8[N, 4] x) => (float[N, 4] y)
    <float s = {0.5}, uint8 z = {3}> { d = DequantizeLinear (x, s, z)  y = Relu (d) }"""
    with pytest.raises(ModelError) as caught:
        check_quantized(onnx.parser.parse_model(text))
    assert str(caught.value) == (
        "'x' is an UINT8 input or output with a scale, floating-point numbers are expected there; export the model so "
        "that it quantizes its inputs and dequantizes its outputs itself"
    )


@pytest.mark.parametrize("half", [False, True], ids=["FP32", "FP16"])
def test_integers_mean_what_onnx_runtime_says(half: bool) -> None:
    kind = np.float16 if half else np.float32
    integers = np.random.default_rng(0).integers(-(2**31), 2**31, (5, 3)).astype(np.int32) // (2**16 if half else 1)
    scale = np.array([1e-3, 0.1, 1 / 3], kind)
    grid = Grid(scale, np.zeros(3, np.int64), "int32", axis=1)
    text = """<ir_version: 9, opset_import: ["" : 19]> net (int32[N, 3] x) => (TYPE[N, 3] y)
    { y = DequantizeLinear <axis = 1> (x, s) }""".replace("TYPE", "float16" if half else "float")
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(from_array(scale, "s"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": integers})
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(grid.dequantized(integers), expected)
