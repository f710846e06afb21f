"""Moments of what products sum over: held to what the product itself gives of weights that are drawn."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from calibration.arrays import AnyArray
from calibration.graph.editing import opened
from calibration.precision.placement import NodeInput, QdqPlacement, QuantizedWeight
from calibration.ranges.moments import SumWindow, moments_of
from calibration.weights.gptq import products_of
from tests.calibration.graph.nets import with_arrays

NETS = {
    "Conv": ("Conv <pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]>", (6, 4, 3, 2), (2, 4, 9, 8)),
    "Conv of groups": ("Conv <group = 2, pads = [1, 1, 1, 1]>", (6, 2, 3, 3), (1, 4, 7, 7)),
    "depthwise Conv": ('Conv <group = 4, auto_pad = "SAME_UPPER", strides = [2, 2]>', (4, 1, 3, 3), (1, 4, 8, 9)),
    "Conv that pads below": ('Conv <auto_pad = "SAME_LOWER">', (3, 4, 2, 2), (1, 4, 5, 5)),
    "Conv of one axis": ("Conv <pads = [2, 2]>", (5, 4, 3), (1, 4, 11)),
    "MatMul": ("MatMul", (4, 6), (3, 5, 4)),
    "Gemm": ("Gemm <transB = 1>", (6, 4), (7, 4)),
}
"""The product, and the shapes of its weight and its data."""


def window_of(kind: str) -> tuple[onnx.ModelProto, SumWindow]:
    operator, weight, data = NETS[kind]
    shape = ",".join(map(str, data))
    text = f'<ir_version: 8, opset_import: ["" : 17]> net (float[{shape}] x) => (float y) {{ y = {operator} (x, w) }}'
    random = np.random.default_rng(2)
    model = with_arrays(onnx.parser.parse_model(text), {"w": random.normal(size=weight).astype(np.float32)})
    model.graph.node[0].name = "p"
    axis = 1 if kind == "MatMul" else 0
    placement = QdqPlacement("tensorrt", (), (QuantizedWeight("w", NodeInput("p", 1), axis, "int8"),), (), ("p",), ())
    (product,) = products_of(opened(model).graph, placement)
    return model, product.window


@pytest.mark.parametrize("kind", NETS)
def test_a_sum_over_a_row_is_what_the_product_gives(kind: str) -> None:
    model, window = window_of(kind)
    x = np.random.default_rng(3).normal(1.0, 1.0, NETS[kind][2]).astype(np.float32)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    answer = np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])  # type: ignore[index]
    rows = window.rows(x)
    turned = weight.T if kind == "MatMul" else weight
    by_group = turned.reshape(len(rows), -1, rows.shape[-1])
    sums = rows @ np.swapaxes(by_group, 1, 2)  # (G, R, M)
    of_channels = np.moveaxis(sums, 1, -1).reshape(-1, rows.shape[1])
    expected = np.moveaxis(answer, 1 if "Conv" in kind else -1, 0).reshape(len(of_channels), -1)
    np.testing.assert_allclose(of_channels, expected, rtol=1e-4, atol=1e-4)
    moments = moments_of(lambda _feed: {}, [{"x": x}, {"x": 2 * x}], [window])[window]
    errors = np.random.default_rng(4).normal(size=by_group.shape)
    both = np.concatenate([rows, 2 * rows], axis=1) @ np.swapaxes(errors, 1, 2)
    for form, expected in ((moments.second, (both**2).mean(axis=1)), (moments.covariance(), both.var(axis=1))):
        np.testing.assert_allclose(np.einsum("gmk,gkl,gml->gm", errors, form, errors), expected, rtol=1e-4)


def test_positions_of_large_pictures_are_a_part_of_them() -> None:
    window = SumWindow("x", (1, 1), (1, 1), (1, 1))
    x = np.arange(100 * 100, dtype=np.float32).reshape(1, 1, 100, 100)
    rows = window.rows(x)
    assert rows.shape == (1, 2000, 1)
    np.testing.assert_array_equal(rows[0, :3, 0], [0, 5, 10])


@pytest.mark.parametrize(
    "x",
    [
        np.full((2, 3), np.inf, np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros(3, np.float32),
        np.zeros((2, 3), np.int64),
    ],
)
def test_what_has_no_finite_rows_has_no_moments(x: AnyArray) -> None:
    good = np.ones((2, 3), np.float32)
    assert not moments_of(lambda _feed: {}, [{"x": good}, {"x": x}], [SumWindow("x")])
    assert moments_of(lambda _feed: {}, [{"x": good}, {"x": good}], [SumWindow("x")])
