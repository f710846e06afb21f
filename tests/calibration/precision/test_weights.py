"""What rounding takes from a weight, and what the bias gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, strategies
from onnx.numpy_helper import from_array, to_array

from calibration.analysis.adjustable import AdjustableNetwork
from calibration.analysis.rounding import unrounded_feed
from calibration.graph.editing import opened
from calibration.precision.placement import NodeInput, PlacementOptions, PlacementTarget, QuantizedWeight
from calibration.precision.qdq import qdq_from_onnx
from calibration.precision.scale import LARGEST_PAIR
from calibration.precision.weights import bias_of, mean_axes, rounded_weight
from calibration.ranges.span import Span

Floats = npt.NDArray[np.float64]

PRODUCTS = {
    "Conv": "y = Conv <pads = [1,1,1,1]> (x, w, b)",
    "Conv without a bias": "y = Conv <pads = [1,1,1,1]> (x, w)",
    "grouped Conv": "y = Conv <pads = [1,1,1,1], group = 4> (x, w, b)",
    "depthwise Conv": "y = Conv <pads = [1,1,1,1], group = 16> (x, w, b)",
    "Gemm": "y = Gemm (x, w, b)",
    "Gemm of a turned weight, without a bias": "y = Gemm <transB = 1> (x, w)",
    "MatMul and Add": "m = MatMul (x, w)  y = Add (b, m)",
    "MatMul of three dimensions": "m = MatMul (x, w)  y = Add (m, b)",
}
WEIGHTS = {
    "grouped Conv": (32, 4, 3, 3),
    "depthwise Conv": (16, 1, 3, 3),
    "Gemm of a turned weight, without a bias": (32, 16),
}


def weight_shape(kind: str) -> tuple[int, ...]:
    """Of a kind of product."""
    return WEIGHTS.get(kind, (32, 16, 3, 3) if "Conv" in kind else (16, 32))


def data(kind: str) -> npt.NDArray[np.float32]:
    """Positive, as behind a ReLU, each channel with a mean of its own; convolutions get pictures without edges."""
    random = np.random.default_rng(3)
    shape = (4, 16, 12, 12) if "Conv" in kind else (2, 64, 16) if "three" in kind else (128, 16)
    means = random.uniform(0.2, 4.0, 16)
    each = means[:, None, None] if "Conv" in kind else means
    return np.asarray(each * random.uniform(0.8, 1.2, shape), np.float32)


def product(kind: str) -> onnx.ModelProto:
    """A model of one product, with the node's name ``p``."""
    rank = data(kind).ndim
    shapes = f"float[{','.join('ABCD'[:rank])}]"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net ({shapes} x) => ({shapes} y) {{ {PRODUCTS[kind]} }}'
    )
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", 1, data(kind).shape))
    model.graph.node[0].name = "p"
    random = np.random.default_rng(4)
    weight = random.normal(size=weight_shape(kind))
    num_out = weight.shape[0] if "Conv" in kind or "turned" in kind else weight.shape[1]
    arrays: dict[str, Floats] = {"w": weight, "b": np.asarray(random.normal(size=num_out))}
    names = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(from_array(a.astype(np.float32), n) for n, a in arrays.items() if n in names)
    return onnx.shape_inference.infer_shapes(model)


def answer(model: onnx.ModelProto, feed: Mapping[str, npt.NDArray[Any]]) -> Floats:
    """Node by node, as written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], dict(feed))[0], np.float64)


def by_channel(values: Floats, kind: str) -> Floats:
    """(C, …)."""
    return np.moveaxis(values, 1 if "Conv" in kind else -1, 0).reshape(weight_channels(kind), -1)


def weight_channels(kind: str) -> int:
    """Of a product."""
    return 16 if kind == "depthwise Conv" else 32


def spans(kind: str, *, with_means: bool) -> dict[str, Span]:
    """Of such fine steps that only weights count."""
    x = data(kind)
    means = tuple(np.moveaxis(x, 1 if "Conv" in kind else -1, 0).reshape(16, -1).mean(axis=1).tolist())
    wide = Span(100.0, -100.0, 100.0)
    return {"x": Span(float(x.max()), 0.0, float(x.max()), means if with_means else ()), "m": wide, "y": wide}


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_the_bias_takes_back_what_rounding_shifts(kind: str, target: PlacementTarget) -> None:
    model, feed = product(kind), {"x": data(kind)}
    exact = by_channel(answer(model, feed), kind)
    off = {}
    for with_means in (False, True):
        made = qdq_from_onnx(model, spans(kind, with_means=with_means), PlacementOptions(target, arithmetic="u8s8"))
        assert made.placement.nodes == ("p",)
        onnx.checker.check_model(made.model, full_check=True)
        weights = {name: array for name, array in rounded(made.model).items() if array.shape == weight_shape(kind)}
        floats = without_rounded_data(made.model, weights)
        off[with_means] = np.abs((by_channel(answer(floats, feed), kind) - exact).mean(axis=1)).max()
    # Where the pictures are padded, means are smaller; a hundredth of what it was is not to be had there.
    assert off[True] < off[False] * (0.35 if "Conv" in kind else 0.02), off


def rounded(model: onnx.ModelProto) -> dict[str, Floats]:
    """What DequantizeLinear gives of constants, by output."""
    arrays: dict[str, Any] = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in arrays:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            array, scale = arrays[node.input[0]].astype(np.float64), arrays[node.input[1]].astype(np.float64)
            shape = [-1 if i == axis else 1 for i in range(array.ndim)] if scale.ndim else []
            arrays[node.output[0]] = np.rint(array / scale.reshape(shape))
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            array, scale = arrays[node.input[0]].astype(np.float64), arrays[node.input[1]].astype(np.float64)
            shape = [-1 if i == axis else 1 for i in range(array.ndim)] if scale.ndim else []
            found[node.output[0]] = array * scale.reshape(shape)
    return found


def without_rounded_data(model: onnx.ModelProto, weights: Mapping[str, Floats]) -> onnx.ModelProto:
    """The Q/DQ model with its weights rounded and its data as it is."""
    assert weights
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    sources: dict[str, str] = {}
    del plain.graph.node[:]
    for node in model.graph.node:
        is_data = node.input[0] not in constants and node.output[0] not in weights
        if node.op_type == "QuantizeLinear" and is_data:
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] in sources:
            sources[node.output[0]] = sources[node.input[0]]
            if node.output[0] == "y":
                plain.graph.node.append(onnx.helper.make_node("Identity", [sources["y"]], ["y"]))
        else:
            plain.graph.node.add().CopyFrom(node)
            for index, name in enumerate(node.input):
                plain.graph.node[-1].input[index] = sources.get(name, name)
    return plain


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_the_adjustable_network_has_the_same_weights_and_biases(kind: str, target: PlacementTarget) -> None:
    model, feed, given_spans = product(kind), {"x": data(kind)}, spans(kind, with_means=True)
    options = PlacementOptions(target, arithmetic="u8s8")
    made = qdq_from_onnx(model, given_spans, options).model
    weights = {name: array for name, array in rounded(made).items() if array.shape == weight_shape(kind)}
    network = AdjustableNetwork(model, options, given_spans, inputs="switched")
    unrounded = unrounded_feed(network.placed(given_spans))
    off, on = (dict.fromkeys(network.switches.values(), np.array(v, np.float32)) for v in (0.0, 1.0))
    written = answer(without_rounded_data(made, weights), feed)
    np.testing.assert_allclose(answer(network.model, {**feed, **unrounded, **off}), written, rtol=1e-4, atol=1e-3)
    exact = answer(model, feed)
    np.testing.assert_allclose(answer(network.model, {**feed, **unrounded, **on}), exact, rtol=1e-4, atol=1e-4)


def kernels(seed: int, num_in: int, size: int) -> ir.Node:
    """A Conv of random kernels."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(4, num_in, size, size)) * random.choice([1e-3, 1.0, 30.0], size=(4, 1, 1, 1))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[1,C,H,W] x) => (float[1,D,I,J] y) { y = Conv (x, w) }'
    )
    model.graph.initializer.append(from_array(weight.astype(np.float32), "w"))
    return opened(model).graph[0]


@given(strategies.integers(0, 10_000), strategies.integers(1, 5), strategies.integers(1, 5), strategies.booleans())
def test_kernels_keep_their_sums(seed: int, num_in: int, size: int, in_pairs: bool) -> None:
    node = kernels(seed, num_in, size)
    weight = QuantizedWeight("w", NodeInput("", 1), 0, "int8", in_pairs, keeps_sums=True)
    plain, kept = rounded_weight(node, QuantizedWeight("w", NodeInput("", 1), 0, "int8")), rounded_weight(node, weight)
    array = node.inputs[1].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
    errors = kept.integers - array / kept.scales.astype(np.float64).reshape(-1, 1, 1, 1)
    assert np.abs(errors).max() <= 1
    assert np.abs(errors.sum(axis=(2, 3))).max() <= 0.5 + 1e-3
    assert np.abs(kept.integers).max() <= 127
    assert kept.mean_shift is None, "there are no means"
    if in_pairs:
        rows = np.moveaxis(kept.integers, 1, -1).reshape(4, -1)
        pairs = np.concatenate([rows, np.zeros((4, rows.shape[1] % 2), rows.dtype)], axis=1).reshape(-1, 2)
        assert np.abs(pairs.sum(axis=-1)).max() <= LARGEST_PAIR
    elif size == 1:
        np.testing.assert_array_equal(plain.integers, kept.integers)


def test_a_weight_of_two_products_is_changed_for_neither_of_the_others() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1,16,9,9] x) => (float[1,16,9,9] y, float[1,16,9,9] z)
    { y = Conv <pads = [1,1,1,1]> (x, w, b)  z = Conv <pads = [1,1,1,1]> (y, w, b) }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[1].name = "second"
    random = np.random.default_rng(0)
    arrays = {"w": random.normal(size=(16, 16, 3, 3)), "b": random.normal(size=16)}
    model.graph.initializer.extend(from_array(a.astype(np.float32), n) for n, a in arrays.items())
    model = onnx.shape_inference.infer_shapes(model)
    means = {"x": (1.0,) * 16, "y": (-2.0,) * 16}
    given_spans = {n: Span(50.0, -50.0, 50.0, m) for n, m in means.items()} | {"z": Span(50.0, -50.0, 50.0)}
    targets: tuple[PlacementTarget, ...] = ("tensorrt", "onnxruntime")
    for target in targets:
        before = model.SerializeToString()
        made = qdq_from_onnx(model, given_spans, PlacementOptions(target, exclude=("second",), arithmetic="u8s8")).model
        constants = {tensor.name: to_array(tensor) for tensor in made.graph.initializer}
        (second,) = (node for node in made.graph.node if node.name == "second")
        np.testing.assert_array_equal(constants[second.input[1]], arrays["w"].astype(np.float32))
        np.testing.assert_array_equal(constants[second.input[2]], arrays["b"].astype(np.float32))
        assert model.SerializeToString() == before


def test_what_is_summed_over() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1,16,9,9] x, float[1,16,9,9] k) => (float[16,3] s)
    { c = Conv (x, w)  d = Conv (x, k)  f = Flatten <axis = 2> (c)  m = MatMul (f, v)  s = Gemm (q, t) }"""
    model = onnx.parser.parse_model(text)
    for name, shape in {"w": (16, 16, 1, 1), "v": (81, 4), "t": (4, 3), "q": (16, 4)}.items():
        model.graph.initializer.append(from_array(np.ones(shape, np.float32), name))
    graph = opened(model).graph
    assert mean_axes(graph, {"x", "k", "c", "f", "m"}) == {"x": 1, "f": -1}
    assert mean_axes(graph, {"x"}) == {"x": 1}
    graph[4].replace_input_with(0, graph[2].inputs[0])
    assert mean_axes(graph, {"x", "f", "c"}) == {"x": 1, "f": -1, "c": -1}
    graph[1].replace_input_with(0, graph[2].inputs[0])
    graph[1].replace_input_with(1, graph[0].inputs[1])
    assert mean_axes(graph, {"c"}) == {}, "a convolution and a product read it along different axes"
    assert bias_of(graph[3], 4) is None, "a MatMul without an Add"
