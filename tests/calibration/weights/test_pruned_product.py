"""A product with zeros stays near to what it was, also on data that has changed before it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
import pytest

from calibration.arrays import AnyArray
from calibration.graph.editing import closed, opened
from calibration.graph.watched_outputs import watch_tensors
from calibration.ranges.moments import PairedMoments, SumWindow
from calibration.weights.masks import prunable_weights
from calibration.weights.pruned_product import PrunedProduct, pruned_products
from tests.calibration.graph.nets import with_arrays

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 8, 6, 6] x) => (float[N, 6] y, float[N, 6] z)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, full)
    b = Conv <group = 4> (a, grouped, grouped_bias)
    c = Conv <group = 16> (b, depthwise)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    f = Gemm <transB = 1> (e, wide, wide_bias)
    g = MatMul (f, last)
    y = Add (g, last_bias)
    h = Gemm <alpha = 0.5> (f, scaled)
    i = MatMul (f, shared)
    j = MatMul (h, shared2)
    k = MatMul (j, shared2)
    z = Sum (i, k)
}
"""
SHAPES = {
    "full": (16, 8, 3, 3), "grouped": (16, 4, 3, 3), "grouped_bias": (16,), "depthwise": (16, 1, 1, 1),
    "wide": (12, 16), "wide_bias": (12,), "last": (12, 6), "last_bias": (6,), "scaled": (12, 6),
    "shared": (12, 6), "shared2": (6, 6),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    random = np.random.default_rng(1)
    arrays = {name: random.normal(size=shape).astype(np.float32) / 2 for name, shape in SHAPES.items()}
    net = with_arrays(onnx.parser.parse_model(NET), arrays)
    for node in net.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return closed(opened(net))


@pytest.fixture(scope="module")
def products(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, PrunedProduct]]:
    weights = prunable_weights(model, (), "any").weights
    assert set(weights) == {"full", "grouped", "wide", "last", "scaled", "shared", "shared2"}
    ready, made = pruned_products(model, weights.values())
    assert [product.node for product in made] == ["Conv_a", "Conv_b", "Gemm_f", "MatMul_g", "MatMul_i"]
    return ready, {product.node: product for product in made}


@pytest.fixture(scope="module")
def values(model: onnx.ModelProto) -> Mapping[str, AnyArray]:
    random = np.random.default_rng(3)
    x = np.einsum("nchw,cd->ndhw", random.normal(size=(40, 3, 6, 6)), random.normal(size=(3, 8)))
    x = (x + 0.5 * random.normal(size=x.shape) + 1).astype(np.float32)
    watched = watch_tensors(model, ("a", "b", "e", "f", "g", "y", "i"))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return {"x": x, **dict(zip(names, session.run(None, {"x": x})))}


def test_what_can_make_good_has_a_bias_of_its_own_where_there_is_a_place(
    products: tuple[onnx.ModelProto, dict[str, PrunedProduct]],
) -> None:
    """What another node reads too, and what is scaled, is left out."""
    ready, made = products
    biases = {name: product.bias for name, product in made.items()}
    assert biases == {
        "Conv_a": "Conv_a_bias", "Conv_b": "grouped_bias", "Gemm_f": "wide_bias", "MatMul_g": "last_bias",
        "MatMul_i": "",
    }  # fmt: skip
    assert "Conv_a_bias" in {tensor.name for tensor in ready.graph.initializer}


@pytest.mark.parametrize(
    ("node", "output"), [("Conv_a", "a"), ("Conv_b", "b"), ("Gemm_f", "f"), ("MatMul_g", "y"), ("MatMul_i", "i")]
)
def test_sums_are_nearer_than_with_zeros_alone(
    products: tuple[onnx.ModelProto, dict[str, PrunedProduct]], values: Mapping[str, AnyArray], node: str, output: str
) -> None:
    """On data that something before has changed: the mean too comes back, where there is a bias."""
    ready, product = products[0], products[1][node]
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in ready.graph.initializer}
    before = np.asarray(values[product.window.tensor], np.float32)
    now = (before * np.float32(0.8) + np.float32(0.3)).astype(np.float32)
    moments = PairedMoments(product.window)
    for row in range(len(before)):
        moments.add(before[row : row + 1], now[row : row + 1])
    pairs = moments.made(centred=bool(product.bias))
    assert pairs is not None
    changed = product.pruned(arrays, pairs, (0.5, "any"))
    assert set(changed) == {product.weight, product.bias} - {""}
    made = changed[product.weight]
    assert made.shape == arrays[product.weight].shape
    assert float((made == 0).mean()) == pytest.approx(0.5, abs=0.02)
    alone = np.where(made == 0, 0, arrays[product.weight]).astype(np.float32)
    errors = [
        float(np.square(run(ready, product, each, now, output) - np.asarray(values[output], np.float32)).mean())
        for each in (changed, {product.weight: alone})
    ]
    assert errors[0] < errors[1] / 2


def run(
    model: onnx.ModelProto, product: PrunedProduct, changed: Mapping[str, AnyArray], data: AnyArray, output: str
) -> npt.NDArray[np.float32]:
    """The product alone, on this data."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    for tensor in part.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(changed[tensor.name]), tensor.name))
    cut = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(part)).extract_model([product.window.tensor], [output])
    session = onnxruntime.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {product.window.tensor: data})[0], np.float32)


def test_data_that_is_not_finite_has_no_moments() -> None:
    moments = PairedMoments(SumWindow("x"))
    moments.add(np.ones((1, 4), np.float32), np.ones((1, 4), np.float32))
    assert moments.made(centred=False) is not None
    moments.add(np.ones((1, 4), np.float32), np.full((1, 4), np.nan, np.float32))
    assert moments.made(centred=False) is None
    assert PairedMoments(SumWindow("x")).made(centred=True) is None


def test_paired_moments_are_those_of_numpy() -> None:
    random = np.random.default_rng(1)
    before, now = (random.normal(size=(9, 5, 4)).astype(np.float32) for _ in range(2))
    moments = PairedMoments(SumWindow("x"))
    for row in range(9):
        moments.add(before[row : row + 1], now[row : row + 1])
    pairs = moments.made(centred=True)
    assert pairs is not None
    x, y = now.reshape(-1, 4).astype(np.float64), before.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(pairs.second[0], np.cov(x.T, bias=True), atol=1e-5)
    np.testing.assert_allclose(pairs.cross[0], (y - y.mean(0)).T @ (x - x.mean(0)) / 45, atol=1e-5)
    np.testing.assert_allclose(pairs.mean[0], x.mean(0), atol=1e-6)
    np.testing.assert_allclose(pairs.mean_before[0], y.mean(0), atol=1e-6)
