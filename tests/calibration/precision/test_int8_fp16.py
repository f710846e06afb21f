"""INT8 with FP16 for the rest: types, opset, what stays FP32; run by ONNX Runtime as written, node by node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from calibration.errors import ModelError
from calibration.precision.int8_fp16 import typed_int8_from_qdq
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 6, 6] image) => (float[N, 3] scores)
<float[16, 16, 3, 3] kernel, float[16, 3] dense>
{
    [conv] features = Conv <pads = [1, 1, 1, 1]> (image, kernel)
    [relu] active = Relu (features)
    [mean] pooled = ReduceMean <axes = [2, 3], keepdims = 0> (active)
    [dense] scores = MatMul (pooled, dense)
}
"""
"""ReduceMean has its axes as an attribute up to opset 17, and as an input from 18 on."""

SPANS = {"image": 4.0, "features": 45.0, "active": 45.0, "pooled": 12.0, "scores": 60.0}


def quantized(*, kernel_scale: float = 1.0, image_amax: float = 4.0) -> onnx.ModelProto:
    """The network with Q/DQ nodes for TensorRT; channel 3 of the kernel is as small as ``kernel_scale`` says."""
    model = onnx.parser.parse_model(NET)
    random = np.random.default_rng(5)
    kernel = random.normal(size=(16, 16, 3, 3)).astype(np.float32)
    kernel[3] *= kernel_scale
    dense = random.normal(size=(16, 3)).astype(np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(dense, "dense")])
    spans = {name: Span(amax=a, min=-a, max=a) for name, a in {**SPANS, "image": image_amax}.items()}
    return qdq_from_onnx(model, spans, PlacementOptions(target="tensorrt", small_products="int8")).model


def answers(model: onnx.ModelProto) -> npt.NDArray[np.float32]:
    """As written: no node is fused with another."""
    ort = pytest.importorskip("onnxruntime")
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(6).normal(size=(4, 16, 6, 6)).astype(np.float32)
    found: npt.NDArray[np.float32] = session.run(None, {"image": image})[0]
    return found


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, initializers too."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def scale_types(model: onnx.ModelProto, product: str) -> set[int]:
    """Types of the scales that what goes into a node is dequantized with, and quantized."""
    producers = {name: node for node in model.graph.node for name in node.output}
    known, found = types(model), set()
    (node,) = (node for node in model.graph.node if node.name == product)
    for name in node.input[:2]:
        while name in producers and producers[name].op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            if producers[name].op_type != "Cast":
                found.add(known[producers[name].input[1]])
            name = producers[name].input[0]
    return found


def test_all_that_is_not_int8_is_fp16_in_opset_19() -> None:
    before = quantized()
    typed = typed_int8_from_qdq(before, ())
    onnx.checker.check_model(typed.model, full_check=True)
    assert (typed.model.opset_import[0].version, typed.model.ir_version) == (19, 9)
    assert typed.notes == ()
    found = types(typed.model)
    assert (found["image"], found["scores"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert found["features"] == found["active"] == found["pooled"] == TensorProto.FLOAT16
    for product in ("conv", "dense"):
        assert scale_types(typed.model, product) == {TensorProto.FLOAT16}
    assert [node.op_type for node in typed.model.graph.node].count("Cast") == 2, "at the edges alone"
    assert before.opset_import[0].version == 17, "the model that was given is not changed"


def test_it_answers_as_the_fp32_scales_do_within_fp16() -> None:
    before = quantized()
    one, other = answers(before), answers(typed_int8_from_qdq(before, ()).model)
    step = 12.0 / 127 * np.abs(numpy_helper.to_array(before.graph.initializer[1])).max()
    assert np.abs(one - other).max() < step, "less than one code of the quantized input, times a weight"
    assert not np.array_equal(one, other)


def test_a_scale_that_fp16_would_lose_digits_of_keeps_its_layer_in_fp32() -> None:
    typed = typed_int8_from_qdq(quantized(kernel_scale=1e-3), ())
    onnx.checker.check_model(typed.model, full_check=True)
    assert len(typed.notes) == 1
    assert typed.notes[0].startswith("node 'conv' stays FP32: the scale 'kernel_scale' is ")
    assert typed.notes[0].endswith(", FP16 loses digits below 6.1e-05")
    assert scale_types(typed.model, "conv") == {TensorProto.FLOAT}
    assert scale_types(typed.model, "dense") == {TensorProto.FLOAT16}
    assert np.isfinite(answers(typed.model)).all()


def test_scales_of_activations_are_guarded_too() -> None:
    typed = typed_int8_from_qdq(quantized(image_amax=1e-6), ())
    assert "'conv' stays FP32" in typed.notes[0]
    halves = [numpy_helper.to_array(t) for t in typed.model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert all(np.abs(array[array != 0]).min(initial=1.0) > 0 for array in halves)
    scales = {node.input[1] for node in typed.model.graph.node if node.op_type == "DequantizeLinear"}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in typed.model.graph.initializer}
    assert all((values[name] >= 2.0**-14).all() for name in scales if values[name].dtype == np.float16)


def test_nodes_that_are_kept_keep_their_quantizers() -> None:
    typed = typed_int8_from_qdq(quantized(), {"dense"})
    assert scale_types(typed.model, "dense") == {TensorProto.FLOAT}
    assert scale_types(typed.model, "conv") == {TensorProto.FLOAT16}
    assert types(typed.model)["scores"] == TensorProto.FLOAT


def test_an_unknown_node_offers_the_nearest() -> None:
    with pytest.raises(Exception, match=r"keep_fp32: 'convv' .*the nearest is 'conv'"):
        typed_int8_from_qdq(quantized(), {"convv"})


def test_a_model_of_opset_19_is_left_there() -> None:
    once = onnx.version_converter.convert_version(quantized(), 20)
    once.ir_version = 9
    assert typed_int8_from_qdq(once, ()).model.opset_import[0].version == 20


def test_an_operator_without_a_way_up_is_said() -> None:
    model = quantized()
    model.graph.node.append(onnx.helper.make_node("Upsample", ["scores", "s"], ["bigger"], "up"))
    with pytest.raises(ModelError, match=r"cannot be brought from opset 17 to 19, which FP16 scales need \(.*export"):
        typed_int8_from_qdq(model, ())
