"""Weights that are rounded by their data: nearer than the nearest, in every kind of product, and within their codes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from calibration.arrays import AnyArray, Floats
from calibration.graph.editing import constant, opened
from calibration.graph.watched_outputs import watch_tensors
from calibration.precision.place import place
from calibration.precision.placement import (
    ChosenCodes,
    CodesByNode,
    NodeInput,
    PlacementOptions,
    QuantizedWeight,
)
from calibration.precision.qdq import qdq_from_onnx
from calibration.precision.scale import LARGEST_PAIR, spread_scales
from calibration.precision.weights import rounded_weight
from calibration.ranges.moments import Moments, SumWindow, moments_of
from calibration.ranges.span import Span
from calibration.weights import gptq
from calibration.weights.gptq import Product, parts_of, products_of, rounded_product
from tests.calibration.graph.nets import with_arrays

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 10, 10] x) => (float[N, 12] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, full, full_bias)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 4> (b, grouped)
    d = Relu (c)
    e = Conv <pads = [1, 1, 1, 1], group = 32> (d, depthwise, depthwise_bias)
    f = Relu (e)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    i = Gemm <transB = 1> (h, wide, wide_bias)
    j = Relu (i)
    y = MatMul (j, last)
}
"""
SHAPES = {
    "full": (32, 16, 3, 3), "full_bias": (32,), "grouped": (32, 8, 3, 3), "depthwise": (32, 1, 3, 3),
    "depthwise_bias": (32,), "wide": (48, 32), "wide_bias": (48,), "last": (48, 12),
}  # fmt: skip
PRODUCTS = {"Conv_a", "Conv_c", "Conv_e", "Gemm_i", "MatMul_y"}


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    random = np.random.default_rng(3)
    arrays = {name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in SHAPES.items()}
    model = with_arrays(onnx.parser.parse_model(NET), arrays)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return onnx.shape_inference.infer_shapes(model)


@pytest.fixture(scope="module")
def values(net: onnx.ModelProto) -> dict[str, AnyArray]:
    """What the network computes of smooth pictures, whose channels go together."""
    random = np.random.default_rng(5)
    coarse = random.normal(size=(24, 4, 5, 5)).repeat(2, axis=2).repeat(2, axis=3)
    x = np.einsum("nchw,cd->ndhw", coarse, random.normal(size=(4, 16))) + 0.3 * random.normal(size=(24, 16, 10, 10))
    watched = watch_tensors(net, "abcdefghij")
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return {"x": x.astype(np.float32), **dict(zip(names, session.run(None, {"x": x.astype(np.float32)}), strict=True))}


@pytest.fixture(scope="module")
def spans(values: Mapping[str, AnyArray]) -> dict[str, Span]:
    return {
        name: Span(
            float(np.abs(array).max()),
            float(array.min()),
            float(array.max()),
            tuple(np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).mean(axis=1).tolist()),
        )
        for name, array in values.items()
    }


def options_of(target: str, bits: int, arithmetic: str = "u8s8") -> PlacementOptions:
    return PlacementOptions(
        target,  # type: ignore[arg-type]
        arithmetic=arithmetic,  # type: ignore[arg-type]
        small_products="int8",
        weight_bits=bits,
        rounding="gptq",
    )


def moments(products: list[Product], values: Mapping[str, AnyArray]) -> dict[SumWindow, Moments]:
    feeds = [{name: array[row : row + 1] for name, array in values.items()} for row in range(24)]
    return moments_of(lambda _feed: {}, feeds, [product.window for product in products])


CASES = [
    ("onnxruntime", 4, "u8s8"),
    ("onnxruntime", 8, "u8s8"),
    ("onnxruntime", 8, "u8s7"),
    ("tensorrt", 8, "s8s8"),
]


@pytest.mark.parametrize(("target", "bits", "arithmetic"), CASES)
def test_every_product_is_nearer_than_by_nearest_codes(
    net: onnx.ModelProto, values: dict[str, AnyArray], spans: dict[str, Span], target: str, bits: int, arithmetic: str
) -> None:
    """By the data itself, the bias taking the mean back where there is one; and in the file that is written."""
    graph = opened(net).graph
    options = options_of(target, bits, arithmetic)
    products = products_of(graph, place(graph, spans, options))
    assert {product.node.name for product in products} == PRODUCTS
    known, chosen = moments(products, values), {}
    for product in products:
        node, weight = product.node, product.weight
        array = constant(node.inputs[1])
        assert array is not None
        made = rounded_product(product, known[product.window])
        chosen[node.name or ""] = made.chosen
        steps = np.broadcast_to(spread_scales(made.chosen.scales, array.shape, weight.axis, weight.block), array.shape)
        limit = 7 if weight.bits == 4 else 127
        nearest = np.clip(np.rint(array / steps), -limit, limit)
        assert np.abs(made.chosen.codes).max() <= limit
        errors = [product_error(product, codes * steps - array, values) for codes in (made.chosen.codes, nearest)]
        assert errors[0] < errors[1], node.name
        assert made.error < made.error_of_nearest
        if weight.in_pairs:
            check_pairs(np.moveaxis(made.chosen.codes, weight.axis or 0, 0))
    by_data = qdq_from_onnx(net, spans, replace_chosen(options, chosen)).model
    written = {tuple(tensor.dims): onnx.numpy_helper.to_array(tensor) for tensor in by_data.graph.initializer}
    if target == "onnxruntime":
        np.testing.assert_array_equal(written[SHAPES["grouped"]].astype(np.int16), chosen["Conv_c"].codes)


def product_error(product: Product, error: Floats, values: Mapping[str, AnyArray]) -> float:
    """The variance, or the mean square where no bias takes the mean, of what an error of the weight brings."""
    rows = product.window.rows(values[product.window.tensor]).astype(np.float64)
    moved = error if product.node.op_type == "Conv" else np.moveaxis(error, product.weight.axis or 0, 0)
    sums = rows @ np.swapaxes(moved.reshape(len(rows), -1, rows.shape[-1]), 1, 2)
    has_bias = product.node.name != "MatMul_y"
    return float((sums.var(axis=1) if has_bias else np.square(sums).mean(axis=1)).sum())


def check_pairs(codes: AnyArray) -> None:
    """No two neighbours of one sign are too much for 16 bits."""
    matrix = codes if codes.ndim == 2 else np.moveaxis(codes, 1, -1).reshape(len(codes), -1)
    even = np.concatenate([matrix, np.zeros((len(matrix), matrix.shape[1] % 2), matrix.dtype)], axis=1)
    assert np.abs(even.reshape(len(even), -1, 2).sum(axis=-1)).max() <= LARGEST_PAIR


def replace_chosen(options: PlacementOptions, chosen: dict[str, ChosenCodes]) -> PlacementOptions:
    return replace(options, chosen=CodesByNode("digest", chosen))


def test_codes_are_for_their_scales(net: onnx.ModelProto, spans: dict[str, Span]) -> None:
    """With others, the nearest to the values that were chosen."""
    graph = opened(net).graph
    (weight,) = (each for each in place(graph, spans, options_of("tensorrt", 8)).weights if each.tensor == "wide")
    node = next(node for node in graph if node.name == "Gemm_i")
    scales = rounded_weight(node, weight).scales
    codes = 2 * np.random.default_rng(0).integers(-60, 60, SHAPES["wide"]).astype(np.int16)
    for factor in (1.0, 2.0):
        chosen = ChosenCodes(codes, np.asarray(scales / np.float32(factor), np.float32))
        rounded = rounded_weight(node, replace(weight, chosen=chosen))
        np.testing.assert_array_equal(rounded.integers, np.rint(codes / factor))


def test_few_weights_are_rounded_nearly_as_well_as_can_be() -> None:
    """Held to the best of all 3 ** 6 codes next to the nearest, of a hundred channels."""
    moves = np.array(list(itertools.product((-1, 0, 1), repeat=6)))
    sums = np.zeros(3)
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(400, 3)) @ random.normal(size=(3, 6)) + 0.3 * random.normal(size=(400, 6))
        array, form = random.normal(size=(6, 5)).astype(np.float32), np.asarray(rows.T @ rows / 400)
        made = rounded_product(matrix_product(array), Moments(np.zeros((1, 6)), form[None]))
        steps, damped = made.chosen.scales.astype(np.float64), form + 0.01 * np.trace(form) / 6 * np.eye(6)
        best = 0.0
        for channel in range(5):
            codes = np.clip(np.rint(array / steps)[:, channel] + moves, -7, 7)
            errors = codes * steps[channel] - array[:, channel].astype(np.float64)
            best += float(np.einsum("nk,kl,nl->n", errors, damped, errors).min())
        assert made.error <= made.error_of_nearest
        sums += made.error, made.error_of_nearest, best
    assert sums[0] < 1.15 * sums[2] < 0.6 * sums[1], sums


def matrix_product(array: AnyArray) -> Product:
    """Of data (N, K) with a matrix (K, C) that is to have 4 bits."""
    terms, channels = array.shape
    text = f"net (float[N, {terms}] x) => (float[N, {channels}] y) {{ y = MatMul (x, w) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    node = opened(with_arrays(model, {"w": array})).graph[0]
    return Product(node, QuantizedWeight("w", NodeInput("", 1), 1, "int8", bits=4), SumWindow("x"))


def test_data_that_is_zero_leaves_the_nearest_codes() -> None:
    array = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    made = rounded_product(matrix_product(array), Moments(np.zeros((1, 6)), np.zeros((1, 6, 6))))
    np.testing.assert_array_equal(made.chosen.codes, np.clip(np.rint(array / made.chosen.scales), -7, 7))


def test_blocks_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many weights are looked at together does not decide what becomes of them."""
    random = np.random.default_rng(6)
    rows = random.normal(size=(900, 8)) @ random.normal(size=(8, 40)) + 0.2 * random.normal(size=(900, 40))
    array = random.normal(size=(40, 30)).astype(np.float32)
    product, moments = matrix_product(array), Moments(np.zeros((1, 40)), np.asarray(rows.T @ rows / 900)[None])
    whole = rounded_product(product, moments)
    monkeypatch.setattr(gptq, "BLOCK", 7)
    monkeypatch.setattr(gptq, "MOST_AT_ONCE", 40 * 4)
    in_parts = rounded_product(product, moments)
    np.testing.assert_array_equal(whole.chosen.codes, in_parts.chosen.codes)
    assert in_parts.error == pytest.approx(whole.error)


def test_products_are_taken_in_parts_that_memory_has_room_for(net: onnx.ModelProto, spans: dict[str, Span]) -> None:
    graph = opened(net).graph
    products = products_of(graph, place(graph, spans, options_of("onnxruntime", 8)))
    sizes = {product.node.name: product.num_moments for product in products}
    assert sizes == {"Conv_a": 144**2, "Conv_c": 4 * 72**2, "Conv_e": 32 * 81, "Gemm_i": 32**2, "MatMul_y": 48**2}
    assert list(parts_of(products, 10**9)) == [products]
    parts = list(parts_of(products, 144**2))
    assert [product for part in parts for product in part] == products
    assert len(parts) == 3
    assert list(parts_of(products, 1)) == [[product] for product in products]
