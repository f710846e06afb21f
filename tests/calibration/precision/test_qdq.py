"""A placement becomes Q/DQ nodes that TensorRT's parsers take and ONNX Runtime's kernels run in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

from calibration.errors import ModelError
from calibration.graph.editing import opened
from calibration.precision.place import place
from calibration.precision.qdq import Arithmetic, PlacementOptions, Quantized, Span, qdq_from_onnx
from calibration.precision.weights import rounded_weight

Array = npt.NDArray[np.float32]

RESIDUAL_NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,16,8,8] x) => (float[N,10] y)
{
  a = Conv <pads = [1,1,1,1]> (x, w1, b1)             r1 = Relu (a)
  b = Conv <pads = [1,1,1,1], group = 16> (r1, w2, b2)  r2 = Clip (b, zero, six)
  c = Conv (r2, w3, b3)
  s = Add (r1, c)                                    r3 = Relu (s)
  p = GlobalAveragePool (r3)                         f = Flatten (p)
  m = MatMul (f, w4)                                 l = Add (m, b4)
  y = Softmax (l)
}
"""
SHAPES = {
    "w1": (16, 16, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "b2": (16,), "w3": (16, 16, 1, 1), "b3": (16,),
    "w4": (16, 10), "b4": (10,),
}  # fmt: skip


def _residual_net() -> onnx.ModelProto:
    random = np.random.default_rng(1)
    constants = {name: random.normal(scale=0.3, size=shape) for name, shape in SHAPES.items()}
    return _model(RESIDUAL_NET, constants | {"zero": np.array(0.0), "six": np.array(6.0)})


def _model(text: str, constants: Mapping[str, npt.NDArray[np.float64]]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(from_array(a.astype(np.float32), name) for name, a in constants.items())
    return model


def _spans(model: onnx.ModelProto, x: Array) -> dict[str, Span]:
    """Smallest and largest value of each tensor on ``x``."""
    watched = onnx.shape_inference.infer_shapes(model)
    watched.graph.output.extend(watched.graph.value_info)
    names = [value.name for value in watched.graph.output]
    values = zip(names, ReferenceEvaluator(watched).run(names, {"x": x}), strict=True)
    arrays = {"x": x} | {name: np.asarray(value) for name, value in values}
    return {name: Span(float(np.abs(a).max()), float(a.min()), float(a.max())) for name, a in arrays.items()}


def _images(count: int = 4) -> Array:
    return np.random.default_rng(2).normal(size=(count, 16, 8, 8)).astype(np.float32)


def _quantize(model: onnx.ModelProto, x: Array, options: PlacementOptions) -> Quantized:
    return qdq_from_onnx(model, _spans(model, x), options)


def _session(model: onnx.ModelProto, *, simulation: bool = False, optimized: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if simulation:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _simulate(model: onnx.ModelProto, x: Array) -> Array:
    """The float simulation: what Q/DQ mean, node by node."""
    return np.asarray(_session(model, simulation=True).run(None, {"x": x})[0], np.float32)


def _constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer}


def _sqnr_db(exact: Array, approximate: Array) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - approximate).sum()))


def test_tensorrt_file_obeys_the_rules_of_every_parser_since_8_5() -> None:
    model = _quantize(_residual_net(), _images(), PlacementOptions("tensorrt", small_products="int8")).model
    constants = _constants(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 2 * (4 + 5)
    for node in pairs:
        scale, zero_point = constants[node.input[1]], constants[node.input[2]]
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert zero_point.dtype == np.int8
        assert zero_point.shape == scale.shape
        assert not zero_point.any()
        if node.op_type == "DequantizeLinear":
            assert producers[node.input[0]].op_type == "QuantizeLinear"
    for name in ("w1", "w2", "w3", "w4", "b1", "b2", "b3", "b4"):
        assert constants[name].dtype == np.float32


def test_tensorrt_conv_computes_with_rounded_data_and_weights() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1,16,1,1] x) => (float[1,16,1,1] y) { y = Conv (x, w, b) }
    """
    weight, bias = np.eye(16).reshape(16, 16, 1, 1), np.full(16, 0.3)
    weight[0, 1] = 0.5
    model = _model(text, {"w": weight, "b": bias})
    made = qdq_from_onnx(model, {"x": Span(amax=127.0, min=-9.0, max=9.0)}, PlacementOptions("tensorrt"))
    x = np.zeros((1, 16, 1, 1), np.float32)
    x[0, :4, 0, 0] = [1.4, 2.5, 300.0, -300.0]
    y = _simulate(made.model, x)
    half = np.rint(0.5 * 127) / 127
    expected = [1.0 + half * 2.0 + 0.3, 2.0 + 0.3, 127.0 + 0.3, -128.0 + 0.3]
    np.testing.assert_allclose(y[0, :4, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("options", [PlacementOptions("tensorrt"), PlacementOptions("onnxruntime", arithmetic="u8s8")])
def test_quantizing_keeps_the_answer_the_argument_and_the_names(options: PlacementOptions) -> None:
    model, x = _residual_net(), _images(8)
    before = model.SerializeToString()
    made = _quantize(model, x, options)
    assert model.SerializeToString() == before
    assert [value.name for value in (*made.model.graph.input, *made.model.graph.output)] == ["x", "y"]
    assert _sqnr_db(_simulate(model, x), _simulate(made.model, x)) > 25.0


def test_the_same_model_and_ranges_give_the_same_bytes() -> None:
    first, second = (_quantize(_residual_net(), _images(), PlacementOptions()).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_one_pair_serves_all_readers_of_a_tensor_and_of_a_weight() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,16,8,8] x) => (float[N,16,8,8] y, float[N,16,8,8] z) { y = Conv (x, w)  z = Conv (x, w) }
    """
    model = _model(text, {"w": np.ones((16, 16, 1, 1))})
    made = qdq_from_onnx(model, {"x": Span(1.0, -1.0, 1.0)}, PlacementOptions("tensorrt"))
    assert Counter(node.op_type for node in made.model.graph.node) == {
        "QuantizeLinear": 2, "DequantizeLinear": 2, "Conv": 2,
    }  # fmt: skip


@pytest.mark.parametrize("arithmetic", ["u8s8", "u8s7", "u8u8"])
def test_onnxruntime_runs_every_layer_in_integers(arithmetic: Arithmetic, tmp_path: Path) -> None:
    model, x = _residual_net(), _images(8)
    made = _quantize(model, x, PlacementOptions("onnxruntime", arithmetic=arithmetic)).model
    kernels = _session(made, optimized=str(tmp_path / "optimized.onnx"))
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 1
    assert found["QLinearGlobalAveragePool"] == 1
    assert found["QGemm"] == 1
    assert found["QuantizeLinear"] == 1, "only the input is quantized at run time"
    assert found.keys().isdisjoint({"Conv", "MatMul", "Relu", "Clip", "DequantizeLinear"})
    exact = _simulate(model, x)
    assert _sqnr_db(exact, _simulate(made, x)) > 20.0
    if arithmetic in ("u8s7", "u8u8"):
        assert _sqnr_db(exact, kernels.run(None, {"x": x})[0]) > 20.0, "these saturate on no CPU"


def test_signed_activations_mean_the_same() -> None:
    """ONNX Runtime has kernels for them on Arm only; here their simulation must agree with the unsigned one."""
    model, x = _residual_net(), _images(8)
    signed = _quantize(model, x, PlacementOptions("onnxruntime", arithmetic="s8s8")).model
    unsigned = _quantize(model, x, PlacementOptions("onnxruntime", arithmetic="u8s8")).model
    assert {t.data_type for t in signed.graph.initializer}.isdisjoint({onnx.TensorProto.UINT8})
    np.testing.assert_allclose(_simulate(signed, x), _simulate(unsigned, x), atol=1e-2)


def test_onnxruntime_file_stores_integers() -> None:
    model, x = _residual_net(), _images()
    made = _quantize(model, x, PlacementOptions("onnxruntime", arithmetic="u8s7")).model
    constants = _constants(made)
    for name in ("w1", "w2", "w3", "w4"):
        assert name not in constants
        assert constants[f"{name}_quantized"].dtype == np.int8
    assert np.abs(constants["w2_quantized"].astype(int)).max() == 127, "depthwise"
    for name in ("b1", "b2", "b3"):
        assert constants[f"{name}_quantized"].dtype == np.int32
    assert made.ByteSize() < model.ByteSize()


@pytest.mark.parametrize(
    "shape", [(4, 1, 5, 5), (4, 3, 3, 3), (8, 16, 3, 3), (4, 6, 1, 1), (6, 3, 3, 3), (40, 64, 3, 3)]
)
def test_seven_bit_convolutions_never_saturate(shape: tuple[int, ...]) -> None:
    """Each image is 1, the largest level, where the weights of an output have one sign, and 0 elsewhere."""
    weight = np.random.default_rng(3).uniform(-1.0, 1.0, shape)
    group = 2 if shape == (6, 3, 3, 3) else 1
    size = f"{shape[1] * group},{shape[2]},{shape[3]}"
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,{size}] x) => (float[N,{shape[0]},1,1] y) {{ y = Conv <group = {group}> (x, w) }}
    """
    images = np.concatenate([weight > 0, weight < 0]).astype(np.float32)
    _assert_exact(_model(text, {"w": weight}), np.concatenate([images] * group, axis=1))


@pytest.mark.parametrize("num_inputs", [1, 3, 37, 600])
def test_seven_bit_products_never_saturate(num_inputs: int) -> None:
    weight = np.random.default_rng(3).uniform(-1.0, 1.0, (num_inputs, 5))
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,{num_inputs}] x) => (float[N,5] y) {{ y = MatMul (x, w) }}
    """
    _assert_exact(_model(text, {"w": weight}), np.concatenate([weight.T > 0, weight.T < 0]).astype(np.float32))


def _assert_exact(model: onnx.ModelProto, x: Array) -> None:
    """The kernels give what the Q/DQ nodes mean, to a level of the output."""
    made = _quantize(model, x, PlacementOptions("onnxruntime", arithmetic="u8s7")).model
    expected = _simulate(made, x)
    level = (max(expected.max(), 0.0) - min(expected.min(), 0.0)) / 255
    np.testing.assert_allclose(_session(made).run(None, {"x": x})[0], expected, atol=1.01 * level, rtol=0)


def test_a_bias_that_would_overflow_int32_enlarges_the_scale_of_its_channel_only() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1,2,1,1] x) => (float[1,2,1,1] y) { y = Conv (x, w, b) }
    """
    weight = np.array([[1e-9, 0.0], [0.0, 1.0]]).reshape(2, 2, 1, 1)
    model = _model(text, {"w": weight, "b": np.array([5.0, 0.5])})
    ranges = {"x": Span(1.0, -1.0, 1.0), "y": Span(6.0, -1.0, 6.0)}
    made = qdq_from_onnx(model, ranges, PlacementOptions("onnxruntime", arithmetic="u8s8")).model
    y = _simulate(made, np.ones((1, 2, 1, 1), np.float32))
    np.testing.assert_allclose(y.ravel(), [5.0, 1.5], atol=0.02)
    assert _constants(made)["w_scale"][1] == np.float32(1 / 127)
    assert np.abs(_constants(made)["b_quantized"].astype(np.int64)).max() <= 2**30
    graph = opened(model).graph
    (placed,) = place(graph, ranges, PlacementOptions("onnxruntime", arithmetic="u8s8")).weights
    simulated = rounded_weight(graph[0], placed).scales
    np.testing.assert_array_equal(simulated, _constants(made)["w_scale"], "who simulates it has the same scales")


def test_a_quantized_output_keeps_its_name_and_its_other_readers() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2,4,4] x) => (float[N,2,4,4] y, float[N,2,4,4] z) { y = Conv (x, w)  z = Conv (y, w) }
    """
    model = _model(text, {"w": np.ones((2, 2, 1, 1))})
    ranges = dict.fromkeys("xyz", Span(4.0, -4.0, 4.0))
    made = qdq_from_onnx(model, ranges, PlacementOptions("onnxruntime")).model
    assert [value.name for value in made.graph.output] == ["y", "z"]
    producers = {name: node.op_type for node in made.graph.node for name in node.output}
    assert producers["y"] == producers["z"] == "DequantizeLinear"
    assert [node.input[0] for node in made.graph.node if node.op_type == "Conv"] == ["x_dequantized", "y"]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_an_input_that_is_given_out_keeps_its_name(target: Literal["tensorrt", "onnxruntime"]) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,16,8,8] x) => (float[N,16,8,8] x, float[N,16,8,8] y) { y = Conv (x, w) }
    """
    model = _model(text, {"w": np.ones((16, 16, 1, 1))})
    made = qdq_from_onnx(
        model, {"x": Span(4.0, -4.0, 4.0), "y": Span(40.0, -40.0, 40.0)}, PlacementOptions(target)
    ).model
    x = _images()
    given, y = _session(made, simulation=True).run(["x", "y"], {"x": x})
    assert np.array_equal(given, x)
    assert np.abs(y - x.sum(axis=1, keepdims=True)).max() < 1.0
    assert "QuantizeLinear" in [node.op_type for node in made.graph.node]


def test_a_node_beside_integers_reads_what_was_not_rounded_for_tensorrt() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,16,8,8] x) => (float[N,16,8,8] y, float[N,16,8,8] z) { y = Conv (x, w)  z = Exp (x) }
    """
    model = _model(text, {"w": np.ones((16, 16, 1, 1))})
    made = qdq_from_onnx(model, {"x": Span(1.0, -1.0, 1.0)}, PlacementOptions("tensorrt")).model
    inputs = {node.op_type: node.input[0] for node in made.graph.node}
    assert inputs["Exp"] == "x"
    assert inputs["Conv"] == "x_dequantized"


def test_excluding_the_bias_add_keeps_matmul_and_add_apart() -> None:
    model, x = _residual_net(), _images()
    options = PlacementOptions("onnxruntime", exclude=("MatMul",))
    made = _quantize(model, x, options)
    operators = [node.op_type for node in made.model.graph.node]
    assert "Gemm" not in operators
    assert any("(MatMul) stays FP32: the user excluded it" in note for note in made.placement.notes)


def test_constant_nodes_are_weights_too() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1,1,1,1] x) => (float[1,1,1,1] y)
    { w = Constant <value = float[1,1,1,1] {2}> ()  y = Conv (x, w) }
    """
    ranges = {"x": Span(1.0, 0.0, 1.0), "y": Span(2.0, 0.0, 2.0)}
    made = qdq_from_onnx(onnx.parser.parse_model(text), ranges, PlacementOptions("onnxruntime"))
    assert made.placement.nodes == ("Conv_y",)


def test_an_old_opset_is_refused() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 11]> net (float[1] x) => (float[1] y) { y = Abs (x) }'
    )
    with pytest.raises(ModelError, match=r"net: is opset 11, Q/DQ .* needs 13 or later"):
        qdq_from_onnx(model, {}, PlacementOptions())


def test_a_quantized_model_is_not_quantized_again() -> None:
    made = _quantize(_residual_net(), _images(), PlacementOptions()).model
    with pytest.raises(ModelError, match="has Q/DQ nodes already"):
        qdq_from_onnx(made, {}, PlacementOptions())
