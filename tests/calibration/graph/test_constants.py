"""What follows from constants is a constant, with the value that the runtime gives it; the rest stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from calibration.arrays import AnyArray
from calibration.graph.constants import fold_constants

X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
W = np.random.default_rng(2).standard_normal((5, 4)).astype(np.float32)
WAYS = {
    "Transpose": "v = Transpose <perm = [1, 0]> (w)",
    "Reshape": "shape = Constant <value = int64[2] {4, 5}> () v = Reshape (w, shape)",
    "Cast": "v = Cast <to = 1> (wide) ",
    "weight norm": "squares = Mul (w, w) total = ReduceSum <keepdims = 1> (squares) norm = Sqrt (total)"
    " unit = Div (w, norm) v = Transpose <perm = [1, 0]> (unit)",
    "Concat": "t = Transpose <perm = [1, 0]> (w) v = Concat <axis = 1> (t, t)",
}


def with_weights(body: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, M] y) {{ {body} y = MatMul (x, v) }}'
    )
    arrays: dict[str, AnyArray] = {"w": W, "wide": W.T.astype(np.float64).copy()}
    for name, array in arrays.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def answers(model: onnx.ModelProto, x: AnyArray) -> dict[str, AnyArray]:
    names = [value.name for value in model.graph.output]
    results: Any = ReferenceEvaluator(model).run(None, {"x": x})
    return dict(zip(names, results))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_is_computed_becomes_one(way: str) -> None:
    model = with_weights(WAYS[way])
    folded, num = fold_constants(model)
    assert operators(folded) == ["MatMul"]
    assert num >= 1
    (weight,) = folded.graph.initializer
    assert weight.data_type == onnx.TensorProto.FLOAT
    assert np.array_equal(answers(folded, X)["y"], answers(model, X)["y"])


def test_what_depends_on_inputs_on_chance_or_on_a_written_precision_stays() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y, float[2, 2] r, float[2] d)'
        "<int8[2] q = {1, 2}, float scale = {0.5}> {"
        " y = Relu (x) r = RandomNormal <shape = [2, 2]> () d = DequantizeLinear (q, scale) }"
    )
    folded, num = fold_constants(model)
    assert (num, folded) == (0, model)


def test_a_filled_shape_that_is_computed_itself() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y)
        <int64[1] size = {4}, float[4] w = {1, 2, 3, 4}>
        { same = Identity (size)  more = Identity (same)  zeros = ConstantOfShape (more)  v = Add (w, zeros)
          y = Add (x, v) }"""
    )
    folded, number = fold_constants(model)
    assert (number, [node.op_type for node in folded.graph.node]) == (4, ["Add"])


def test_what_only_repeats_values_stays_a_node() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[K] y)'
        "<int64[1] size = {40000000}, float[1] one = {1}> { large = Expand (one, size) y = Mul (x, large) }"
    )
    assert operators(fold_constants(model)[0]) == ["Expand", "Mul"]


def test_an_output_of_the_model_keeps_its_name() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y, float[2] fixed)'
        "<float[2] w = {1, 4}> { fixed = Sqrt (w) y = Relu (x) }"
    )
    folded, num = fold_constants(model)
    assert num == 1
    assert [value.name for value in folded.graph.output] == ["y", "fixed"]
    assert answers(folded, X[0])["fixed"].tolist() == [1, 2]
