"""Attention for TensorRT: its products in float, or in INT8 as the user wants; and a Softmax's range by definition."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array
from onnx.reference import ReferenceEvaluator

from calibration.analysis.scale_check import scale_mismatches
from calibration.precision.placement import AttentionChoice, PlacementOptions, QdqPlacement
from calibration.precision.qdq import Quantized, qdq_from_onnx
from calibration.precision.scale import NUM_LEVELS
from calibration.ranges.span import Span


def attention(head: int = 32, steps: int | str = 64) -> onnx.ModelProto:
    """Of two heads and so many steps, with a projection behind it."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 19]>
        net (float[N, 2, {steps}, {head}] query, float[N, 2, {head}, {steps}] key, float[N, 2, {steps}, {head}] value)
            => (float[N, 2, {steps}, 16] y)
        {{ raw = MatMul (query, key)  weights = Softmax <axis = -1> (raw)
           mixed = MatMul (weights, value)  y = MatMul (mixed, w) }}"""
    )
    weight = np.random.default_rng(0).normal(size=(head, 16)).astype(np.float32)
    model.graph.initializer.append(from_array(weight, "w"))
    return model


SPANS = {name: Span(2.0, -2.0, 2.0) for name in ("query", "key", "value", "raw", "mixed", "y")}
SPANS["weights"] = Span(0.25, 0.0, 0.75)  # As entropy reads it: a third of what was seen.


def quantized(model: onnx.ModelProto, choice: AttentionChoice = "rest", exclude: tuple[str, ...] = ()) -> Quantized:
    for node in model.graph.node:
        node.name = node.output[0]
    return qdq_from_onnx(model, SPANS, PlacementOptions("tensorrt", exclude, attention=choice))


def products(placement: QdqPlacement) -> set[str]:
    return set(placement.nodes)


@pytest.mark.parametrize("choice", get_args(AttentionChoice))
def test_the_user_chooses_and_the_projection_is_int8_in_any_case(choice: AttentionChoice) -> None:
    placement = quantized(attention(), choice).placement
    assert products(placement) == ({"y"} if choice == "rest" else {"raw", "mixed", "y"})
    assert [note for note in placement.notes if "attention" in note] == [
        f"node '{name}' (MatMul) stays FP32: a product of attention, by which INT8 loses more than it saves; "
        "attention = int8 takes it too"
        for name in ("raw", "mixed")
    ] * (choice == "rest")


@pytest.mark.parametrize(
    ("head", "steps", "reason"),
    [(16, 512, ""), (64, "S", ""), (24, 64, "heads of 24"), (128, 64, "heads of 128"), (32, 513, "over 513 steps")],
)
def test_fused_is_int8_where_tensorrt_has_a_fused_kernel(head: int, steps: int | str, reason: str) -> None:
    placement = quantized(attention(head, steps), "fused").placement
    assert products(placement) == ({"y"} if reason else {"raw", "mixed", "y"})
    assert sum(reason in note for note in placement.notes) == (2 if reason else 0)
    assert products(quantized(attention(head, steps), "int8").placement) == {"raw", "mixed", "y"}


def test_fused_wants_int8_behind_attention() -> None:
    """Else TensorRT runs the two products and the Softmax one by one."""
    placement = quantized(attention(), "fused", exclude=("y",)).placement
    assert products(placement) == set()
    assert sum("want a product in INT8 behind it" in note for note in placement.notes) == 2
    model = attention()
    model.graph.node.append(onnx.helper.make_node("Shape", ["mixed"], ["shape"]))
    assert products(quantized(model, "fused").placement) == {"raw", "mixed", "y"}, "its size alone is read as well"
    model = attention()
    model.graph.output.append(onnx.ValueInfoProto(name="mixed"))
    assert products(quantized(onnx.shape_inference.infer_shapes(model), "fused").placement) == {"y"}


def test_attention_alone_is_int8_and_small_products_beside_it_are() -> None:
    """INT8 was asked for; but what the user excludes does not bring attention into it."""
    alone = attention()
    del alone.graph.node[3], alone.graph.initializer[:]
    alone.graph.output[0].name = "mixed"
    alone.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 32
    assert products(quantized(alone).placement) == {"raw", "mixed"}
    assert products(quantized(attention(), exclude=("y",)).placement) == set()
    small = attention()
    small.graph.initializer[0].CopyFrom(from_array(np.ones((32, 4), np.float32), "w"))
    small.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 4
    assert products(quantized(small).placement) == {"y"}


def test_attention_that_is_spread_is_nearer_to_fp32_in_float() -> None:
    """Of 64 steps each weighs 2 of a Softmax's 127 levels."""
    model, random = attention(), np.random.default_rng(1)
    feeds = {}
    for value in model.graph.input:
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = random.uniform(-1, 1, shape).astype(np.float32)
    models = (model, *(quantized(attention(), choice).model for choice in get_args(AttentionChoice)))
    runs: list[Any] = [ReferenceEvaluator(each).run(None, feeds) for each in models]
    rest, fused, int8 = (float(np.square(answer - runs[0][0]).mean()) for (answer,) in runs[1:])
    assert fused == int8 > 4 * rest > 0


def test_the_softmax_has_its_range_by_definition_and_that_scale_is_right() -> None:
    made = quantized(attention(), "int8")
    scales = {tensor.tensor: tensor.quantization.scale for tensor in made.placement.tensors}
    assert scales["weights"] == pytest.approx(1 / NUM_LEVELS)
    assert scales["query"] == pytest.approx(2 / NUM_LEVELS)
    assert not list(scale_mismatches(made.model, SPANS))
    (scale,) = (tensor for tensor in made.model.graph.initializer if tensor.name == "weights_scale")
    scale.CopyFrom(from_array(np.array(0.25 / NUM_LEVELS, np.float32), "weights_scale"))
    assert [mismatch.tensor for mismatch in scale_mismatches(made.model, SPANS)] == ["weights"]


def test_a_range_that_the_user_set_counts() -> None:
    spans = SPANS | {"weights": Span(0.5, 0.0, 0.5, is_set=True)}
    made = qdq_from_onnx(attention(), spans, PlacementOptions("tensorrt", attention="int8"))
    scales = {tensor.tensor: tensor.quantization.scale for tensor in made.placement.tensors}
    assert scales["weights"] == pytest.approx(0.5 / NUM_LEVELS)
    assert not list(scale_mismatches(made.model, spans))


def test_no_calibration_is_asked_for_what_has_its_range_by_definition() -> None:
    options = PlacementOptions("tensorrt", attention="int8")
    spans = {name: span for name, span in SPANS.items() if name != "weights"}
    assert qdq_from_onnx(attention(), spans, options).model == qdq_from_onnx(attention(), SPANS, options).model
