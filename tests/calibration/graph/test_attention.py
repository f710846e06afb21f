"""Attention is recognized with any mask, and its scale goes to the query without changing the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array
from onnx.reference import ReferenceEvaluator

from calibration.graph.attention import attentions, scale_queries
from calibration.graph.editing import opened
from calibration.graph.fold import fold_batch_norm
from tests.calibration.graph.nets import answer_to

STEPS, HEAD = 5, 16
MASKS = {
    "none": ("", "scaled"),
    "added": ("masked = Add (scaled, mask)", "masked"),
    "where": ("there = Greater (mask, zero) masked = Where (there, scaled, lowest)", "masked"),
    "by parts": (
        "first = Add (mask, scaled) whole = Reshape (first, flat) apart = Reshape (whole, four) "
        "masked = Sub (apart, mask)",
        "masked",
    ),
}
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "zero": np.zeros((), np.float32),
    "lowest": np.array(-np.inf, np.float32),
    "heads": np.array([0, STEPS, 2, HEAD], np.int64),
    "flat": np.array([0, 2, STEPS * STEPS], np.int64),
    "four": np.array([0, 2, STEPS, STEPS], np.int64),
    "factor": np.array(0.25, np.float32),
    "divisor": np.array([3.0], np.float32),
    "each": np.linspace(0.5, 1.5, STEPS, dtype=np.float32),
}


def attention(scale: str, mask: str = "none", nan_guard: bool = False) -> onnx.ModelProto:
    """Of two heads, with a projected query; ``scale`` is what stands behind the product of query and key."""
    masking, scores = MASKS[mask]
    guard = "bad = IsNaN (weights) safe = Where (bad, zero, weights)" if nan_guard else "safe = Identity (weights)"
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, {STEPS}, 32] x, float[N, 1, 1, {STEPS}] mask, float[N, 2, {HEAD}, {STEPS}] key,
             float[N, 2, {STEPS}, {HEAD}] value) => (float[N, 2, {STEPS}, {HEAD}] y)
        {{ product = MatMul (x, w)  projected = Add (product, b)  apart_heads = Reshape (projected, heads)
           query = Transpose <perm = [0, 2, 1, 3]> (apart_heads)
           raw = MatMul (query, key)  scaled = {scale}  {masking}
           weights = Softmax <axis = -1> ({scores})  {guard}  y = MatMul (safe, value) }}"""
    )
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(32, 2 * HEAD)), "b": rng.normal(size=2 * HEAD)}
    arrays = ARRAYS | {name: array.astype(np.float32) for name, array in weights.items()}
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items() if name in read)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def answer(model: onnx.ModelProto) -> np.ndarray[Any, np.dtype[np.float32]]:
    """On fixed numbers; the mask leaves two steps out."""
    rng = np.random.default_rng(1)
    shapes = {"x": (3, STEPS, 32), "key": (3, 2, HEAD, STEPS), "value": (3, 2, STEPS, HEAD)}
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    feed["mask"] = np.tile(np.array([1, 1, 1, -1, -1], np.float32), (3, 1, 1, 1))
    answers: Any = ReferenceEvaluator(model).run(None, {each.name: feed[each.name] for each in model.graph.input})
    return np.asarray(answers[0], np.float32)


@pytest.mark.parametrize("nan_guard", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_recognized(mask: str, nan_guard: bool) -> None:
    model = opened(attention("Mul (raw, factor)", mask, nan_guard))
    (one,) = attentions(model.graph)
    assert (one.scores.outputs[0].name, one.mixed.outputs[0].name) == ("raw", "y")
    assert (one.head_size, one.lengths) == (HEAD, (STEPS, STEPS))


@pytest.mark.parametrize("scale", ["Mul (raw, factor)", "Mul (factor, raw)", "Div (raw, divisor)"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_scale_goes_into_the_query_s_weights(scale: str, mask: str) -> None:
    model = attention(scale, mask)
    made, num_moved = scale_queries(model)
    folded, num_folded = fold_batch_norm(made)
    assert (num_moved, num_folded) == (1, 1)
    assert not {"Mul", "Div"} & {node.op_type for node in folded.graph.node}
    for each in (made, folded):
        np.testing.assert_allclose(answer(each), answer(model), rtol=1e-4, atol=1e-5)


def test_a_query_that_others_read_is_scaled_for_the_product_alone() -> None:
    model = attention("Mul (raw, factor)")
    model.graph.output.append(onnx.helper.make_tensor_value_info("query", onnx.TensorProto.FLOAT, None))
    made, num_moved = scale_queries(onnx.shape_inference.infer_shapes(model))
    assert num_moved == 1
    answers: Any = [
        ReferenceEvaluator(each).run(
            ["query"],
            {
                "x": np.ones((1, STEPS, 32), np.float32),
                "mask": np.ones((1, 1, 1, STEPS), np.float32),
                "key": np.ones((1, 2, HEAD, STEPS), np.float32),
                "value": np.ones((1, 2, STEPS, HEAD), np.float32),
            },
        )
        for each in (model, made)
    ]
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_allclose(answer(made), answer(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "scale", ["Mul (raw, raw)", "Mul (raw, each)", "Div (factor, raw)", "Add (raw, factor)", "Mul (raw, mask)"]
)
def test_what_is_no_constant_for_all_scores_stays(scale: str) -> None:
    model = attention(scale)
    made, num_moved = scale_queries(model)
    assert num_moved == 0
    assert made is model


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("operator", ["Add", "Identity"])
def test_a_long_way_before_a_softmax_is_walked_once(operator: str, scored: bool) -> None:
    """A sum of a value with itself doubles the number of ways at each step."""
    first = "s0 = MatMul (query, key)" if scored else "s0 = Relu (query)"
    inputs = ["{0}, {0}" if operator == "Add" else "{0}"] * 2000
    steps = " ".join(f"s{at + 1} = {operator} ({each.format(f's{at}')})" for at, each in enumerate(inputs))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4, 4] query, float[N, 4, 4] key) => (float[N, 4, 4] y)
        {{ {first} {steps} w = Softmax (s2000) y = MatMul (w, key) }}"""
    )
    assert len(list(attentions(opened(model).graph))) == scored


def test_roots_of_the_scale_on_query_and_key_become_one_factor_of_the_query(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N,2,4,8] x) => (float[N,2,4,8] y) '
        "<float root = {0.5}, float[1] other = {0.25}> { q = Mul (x, root) t = Transpose <perm=[0,1,3,2]> (x) "
        "k = Mul (other, t) s = MatMul (q, k) p = Softmax <axis=-1> (s) y = MatMul (p, x) }"
    )
    scaled, num = scale_queries(model)
    assert num == 1
    assert [node.op_type for node in scaled.graph.node].count("Mul") == 1
    (factor,) = (tensor for tensor in scaled.graph.initializer if tensor.name.endswith("attention_scale"))
    assert onnx.numpy_helper.to_array(factor).tolist() == 0.125
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 8)).astype(np.float32)
    np.testing.assert_allclose(answer_to(x, scaled, tmp_path), answer_to(x, model, tmp_path), rtol=1e-5)
