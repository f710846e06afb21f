"""Weights that FakeQuant left on INT8 steps get these back; others stay as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.numpy_helper import from_array, to_array

from calibration.quantized.stepped_weights import channel_steps, quantize_stepped_weights

Floats = npt.NDArray[np.float32]


def fake_quant(weight: Floats, amax: Floats, axis: int) -> Floats:
    """``fake_quant_with_min_max_vars_per_channel`` of narrow range, as TensorFlow's kernel computes it in FP32."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    low, scale = -amax.reshape(shape), (np.float32(2) * amax / np.float32(254)).reshape(shape)
    clamped = np.clip(weight, low, -low)
    return np.asarray(np.floor((clamped - low) / scale + np.float32(0.5)) * scale + low, np.float32)


@pytest.mark.parametrize(("shape", "axis"), [((8, 3, 3, 3), 0), ((64, 10), 1), ((16, 1, 3, 3), 0)])
@pytest.mark.parametrize("share", [1.0, 0.9, 1.3], ids=["all", "clipped", "wider"])
def test_the_steps_are_found_again(shape: tuple[int, ...], axis: int, share: float) -> None:
    weight = np.random.default_rng(0).normal(scale=0.3, size=shape).astype(np.float32)
    others = tuple(a for a in range(weight.ndim) if a != axis)
    amax = np.asarray(share * np.abs(weight).max(axis=others), np.float32)
    stepped = fake_quant(weight, amax, axis)
    steps = channel_steps(stepped, axis)
    assert steps is not None
    counts = stepped / steps.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    assert np.abs(counts - np.rint(counts)).max() < 1e-3
    assert np.abs(counts).max() <= 127.001
    if weight[0].size > 8:
        np.testing.assert_allclose(steps, amax / 127, rtol=1e-5)


def test_the_steps_of_a_whole_tensor_are_each_channels() -> None:
    """As TFMOT quantizes depthwise weights: channels reach no 127, and their steps are the same all the same."""
    counts = np.random.default_rng(0).integers(-60, 61, (16, 9)).astype(np.float32)
    steps = channel_steps(counts * np.float32(0.013), 0)
    assert steps is not None
    np.testing.assert_allclose(0.013 / steps, np.rint(0.013 / steps), rtol=1e-5)


def test_other_weights_have_none() -> None:
    assert channel_steps(np.random.default_rng(0).normal(size=(4, 100)).astype(np.float32), 0) is None
    zeros = channel_steps(np.zeros((2, 3), np.float32), 0)
    assert zeros is not None
    assert zeros.tolist() == [1.0, 1.0]


PRODUCTS = {
    "Conv": ("y = Conv (d, w)", (5, 4, 1, 1), 0, "float[N, 4, 3, 3]"),
    "Gemm": ("f = Flatten (d)  y = Gemm (f, w)", (36, 5), 1, "float[N, 4, 3, 3]"),
    "Gemm, transposed": ("f = Flatten (d)  y = Gemm <transB = 1> (f, w)", (5, 36), 0, "float[N, 4, 3, 3]"),
    "MatMul": ("y = MatMul (d, w)", (3, 5), 1, "float[N, 4, 3, 3]"),
}


@pytest.mark.parametrize(("body", "shape", "axis", "kind"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_products_of_quantized_data(body: str, shape: tuple[int, ...], axis: int, kind: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net ({kind} x) => (float[N, K] y)
    <float s = {{0.05}}, uint8 z = {{128}}>
    {{ q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z) {body} }}"""
    model = onnx.parser.parse_model(text.replace("float[N, K] y", "float[] y") if "Conv" in body else text)
    weight = np.random.default_rng(0).normal(scale=0.3, size=shape).astype(np.float32)
    others = tuple(a for a in range(weight.ndim) if a != axis)
    stepped = fake_quant(weight, np.abs(weight).max(axis=others), axis)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.append(from_array(stepped, "w"))
    made, num = quantize_stepped_weights(model)
    assert num == 1
    (product,) = (node for node in made.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
    makers = {node.output[0]: node for node in made.graph.node}
    dequantize = makers[product.input[1]]
    assert [attribute.i for attribute in dequantize.attribute] == [axis]
    assert makers[dequantize.input[0]].input[0] == "w"
    x = np.random.default_rng(1).normal(size=(7, 4, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(answers(made, x), answers(model, x), rtol=1e-5, atol=1e-5)


def answers(model: onnx.ModelProto, x: Floats) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_products_of_float_data_stay() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 2] x) => (float[N, 2] y)
    <float[2, 2] w = {1.0, 2.0, 3.0, 4.0}> { y = MatMul (x, w) }"""
    model = onnx.parser.parse_model(text)
    made, num = quantize_stepped_weights(model)
    assert (made, num) == (model, 0)
    assert to_array(made.graph.initializer[0]).tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT8E4M3FN, TensorProto.INT16, TensorProto.INT8])
def test_weights_beside_data_of_other_types_stay(kind: int) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> net (float[N, 2] x) => (float[N, 2] y)
    <float s = {0.5}, float[2, 2] w = {1.0, 2.0, 3.0, 4.0}>
    { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = MatMul (d, w) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.helper.make_tensor("z", kind, [], [0]))
    made, num = quantize_stepped_weights(model)
    assert num == (kind == TensorProto.INT8)
    assert num or made is model
