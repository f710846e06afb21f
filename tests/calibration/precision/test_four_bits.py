"""Weights of 4 bits: which products have them for a target, how they are rounded, written and computed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.analysis.sqnr import sqnr_db_of
from calibration.arrays import AnyArray
from calibration.errors import ModelError
from calibration.graph.editing import opened
from calibration.precision.dynamic import dynamic_from_onnx
from calibration.precision.place import place, placement_words
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.precision.qdq import qdq_from_onnx
from calibration.precision.scale import (
    clipped_to_4_bits,
    quantized,
    scales_of_4_bits,
    spread_scales,
    weight_groups,
)
from calibration.ranges.span import Span
from engines.backends import onnxruntime
from engines.contract import BuildOptions
from engines.onnx_model import facts
from pipeline.engine_runner import load_simulation
from tests.calibration.graph.nets import with_arrays

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 6, 6] x) => (float[N, 10] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, first, first_bias)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 32> (b, depthwise)
    d = Relu (c)
    e = GlobalAveragePool (d)
    f = Flatten (e)
    g = Gemm <transB = 1> (f, wide, wide_bias)
    h = Relu (g)
    i = MatMul (h, odd)
    j = Relu (i)
    y = MatMul (j, last)
}
"""
SHAPES = {
    "first": (32, 16, 3, 3), "first_bias": (32,), "depthwise": (32, 1, 3, 3), "wide": (64, 32), "wide_bias": (64,),
    "odd": (64, 50), "last": (50, 10),
}  # fmt: skip


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    random = np.random.default_rng(3)
    arrays = {name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in SHAPES.items()}
    return with_arrays(onnx.parser.parse_model(NET), arrays)


@pytest.fixture(scope="module")
def data() -> AnyArray:
    return np.random.default_rng(5).normal(size=(32, 16, 6, 6)).astype(np.float32)


def run(model: onnx.ModelProto, data: AnyArray, folder: Path) -> AnyArray:
    """As the nodes stand."""
    onnx.save(model, folder / "run.onnx")
    with load_simulation(folder / "run.onnx", 1) as runner:
        return runner.infer({"x": data})["y"]


@pytest.fixture(scope="module")
def spans(net: onnx.ModelProto, data: AnyArray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Span]:
    from calibration.graph.watched_outputs import watch_tensors

    names = [*"abcdefghij", "y"]
    path = tmp_path_factory.mktemp("spans") / "watched.onnx"
    onnx.save(watch_tensors(net, names), path)
    with load_simulation(path, 1) as runner:
        values = {"x": data, **runner.infer({"x": data})}
    return {
        name: Span(
            float(np.abs(array).max()),
            float(array.min()),
            float(array.max()),
            channel_means=tuple(np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).mean(axis=1).tolist()),
        )
        for name, array in values.items()
    }


def bits_of_weights(model: onnx.ModelProto) -> Counter[str]:
    kinds = {onnx.TensorProto.INT4: "4", onnx.TensorProto.UINT4: "u4", onnx.TensorProto.INT8: "8"}
    return Counter(
        kinds[tensor.data_type]
        for tensor in model.graph.initializer
        if tensor.data_type in kinds and len(tensor.dims) > 1
    )


def test_onnxruntime_has_them_in_all_but_depthwise_convolutions(
    net: onnx.ModelProto, spans: dict[str, Span], data: AnyArray, tmp_path: Path
) -> None:
    exact, sizes = run(net, data, tmp_path), {}
    ratios = []
    for bits in (8, 4):
        options = PlacementOptions("onnxruntime", arithmetic="u8s8", weight_bits=bits)
        written = qdq_from_onnx(net, spans, options)
        ratios.append(sqnr_db_of(exact, run(written.model, data, tmp_path)))
        path = tmp_path / f"of_{bits}.onnx"
        onnx.save(written.model, path)
        sizes[bits] = path.stat().st_size
        record = onnxruntime.build(path, tmp_path / f"engine_{bits}.onnx", BuildOptions("int8"))
        assert record.num_quantizable == record.num_int8 == 5, "integer kernels compute all of them"
        assert record.num_4_bits == (4 if bits == 4 else 0)
    assert ratios[0] > 30
    assert 14 < ratios[1] < ratios[0] - 6
    assert sizes[4] < 0.75 * sizes[8]
    assert Counter(node.op_type for node in written.model.graph.node)["MatMulNBits"] == 3
    assert bits_of_weights(written.model) == {"4": 1, "8": 1}
    assert written.placement.notes[-1] == (
        "weights of 4 bits: 4 of 5 convolutions and matrix products, 10,356 weights (97% of them), in blocks of 32 "
        "where they are matrices; others keep 8 bits: 1 (a depthwise convolution)"
    )
    with onnxruntime.load(tmp_path / "engine_4.onnx", num_threads=1) as runner:
        assert sqnr_db_of(exact, runner.infer({"x": data})["y"]) == pytest.approx(ratios[1], abs=1)


def test_tensorrt_has_them_in_matrices_of_whole_blocks(
    net: onnx.ModelProto, spans: dict[str, Span], data: AnyArray, tmp_path: Path
) -> None:
    written = qdq_from_onnx(net, spans, PlacementOptions("tensorrt", small_products="int8", weight_bits=4))
    nodes = {node.name: node for node in written.model.graph.node}
    dequantize = next(
        node for node in nodes.values() if node.op_type == "DequantizeLinear" and node.input[0] == "odd_quantized"
    )
    assert {each.name: each.i for each in dequantize.attribute} == {"axis": 0, "block_size": 64}
    assert len(dequantize.input) == 2, "it is symmetric"
    assert written.placement.notes[-1].endswith(
        "others keep 8 bits: 2 (a convolution), 1 (its sums of 32 are no whole number of blocks of 64), 1 (its sums of "
        "50 are no whole number of blocks of 64)"
    )
    (product,) = (node for node in nodes.values() if dequantize.output[0] in node.input)
    assert (product.op_type, product.input[0]) == ("MatMul", "h"), "its data is not rounded"
    assert sqnr_db_of(run(net, data, tmp_path), run(written.model, data, tmp_path)) > 20
    assert facts(tmp_path / "run.onnx").num_4_bits == 1
    wide = qdq_from_onnx(net, spans, PlacementOptions("tensorrt", exclude=("Conv",), weight_bits=4, block_size=64))
    assert wide.placement.nodes[-1:] == ("MatMul_i",)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_where_nothing_can_have_them_it_is_refused(target: PlacementTarget) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 8, 8] x) => (float[1, 3, 6, 6] y)
    { y = Conv <group = 3> (x, w) }"""
    model = with_arrays(onnx.parser.parse_model(text), {"w": np.ones((3, 1, 3, 3), np.float32)})
    spans = {"x": Span(1.0, -1.0, 1.0), "y": Span(9.0, -9.0, 9.0)}
    with pytest.raises(
        ModelError, match=f"weight_bits is 4, for which {target} has nothing to multiply by in this net"
    ):
        qdq_from_onnx(model, spans, PlacementOptions(target, weight_bits=4))


def test_a_gemm_becomes_a_product_and_a_sum_of_the_same_names(net: onnx.ModelProto, spans: dict[str, Span]) -> None:
    graph = opened(net).graph
    placement = place(graph, spans, PlacementOptions("onnxruntime", weight_bits=4, exclude=("MatMul_i",)))
    assert [node.op_type for node in graph] == [
        "Conv", "Relu", "Conv", "Relu", "GlobalAveragePool", "Flatten", "MatMul", "Add", "Relu", "MatMul", "Relu",
        "MatMul",
    ]  # fmt: skip
    assert {value.name for node in graph for value in node.outputs} >= set("abcdefghij") | {"y"}
    assert [weight.block for weight in placement.weights] == [0, 0, 32, 32]


def test_scales_are_of_blocks_and_the_largest_are_cut_where_it_pays() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(70, 3)).astype(np.float32)
    assert weight_groups(weight, 1, 32).shape == (3, 3, 32)
    scales = scales_of_4_bits(weight, 1, 32)
    np.testing.assert_allclose(scales[2], np.abs(weight[64:]).max(axis=0) / 7, rtol=1e-6)
    spread = spread_scales(scales, weight.shape, 1, 32)
    np.testing.assert_array_equal(spread[[0, 31, 32, 69]], scales[[0, 0, 1, 2]])

    def error(array: AnyArray) -> float:
        scales = scales_of_4_bits(array, 1, 32)
        codes = quantized(array, scales, 1, 32, 7)
        assert np.abs(codes).max() == 7
        return float(np.square(codes * spread_scales(scales, weight.shape, 1, 32) - weight).sum())

    cut = clipped_to_4_bits(weight, 1, 32)
    assert error(cut) < error(weight)
    assert (np.abs(cut) >= 0.8 * np.abs(weight) - 1e-6).all()
    levels = (np.arange(-7, 8) / 7).astype(np.float32)
    np.testing.assert_array_equal(clipped_to_4_bits(levels, None, 0), levels)
    assert scales_of_4_bits(np.zeros((4, 2), np.float32), 1, 0).tolist() == [1, 1]


def test_dynamic_matrices_need_no_ranges(net: onnx.ModelProto, data: AnyArray, tmp_path: Path) -> None:
    written = dynamic_from_onnx(net, (), "u8s8", block=32)
    assert len(written.in_integers) == 3
    onnx.save(written.model, tmp_path / "dynamic.onnx")
    record = onnxruntime.build(tmp_path / "dynamic.onnx", tmp_path / "engine.onnx", BuildOptions("dynamic"))
    assert (record.num_4_bits, record.num_int8) == (3, 3)
    with onnxruntime.load(tmp_path / "engine.onnx", num_threads=1) as runner:
        assert sqnr_db_of(run(net, data, tmp_path), runner.infer({"x": data})["y"]) > 14


def test_what_is_trained_for_them_says_so() -> None:
    assert placement_words(PlacementOptions("tensorrt")) == "tensorrt"
    assert placement_words(PlacementOptions("tensorrt", weight_bits=4)) == (
        "tensorrt with weights of 4 bits in blocks of 64"
    )
