"""A mean over all positions is a pool, with the same answers; any other mean stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array
from onnx.reference import ReferenceEvaluator

from calibration.graph.pools import pool_means

SHAPES = {3: (2, 3, 5), 4: (2, 3, 5, 4), 5: (2, 3, 5, 4, 2)}


def mean(rank: int, axes: list[int], *, keep: int, opset: int) -> onnx.ModelProto:
    """A ReduceMean, whose axes are an attribute or an input, and what reads it."""
    names = ",".join("NCDHW"[:rank])
    outputs = ",".join("NCDHW"[: rank if keep else rank - len(axes)])
    how = f"<keepdims = {keep}" + (f", axes = {axes}> (x)" if opset < 18 else "> (x, axes)")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> net (float[{names}] x) => (float[{outputs}] y) '
        f"{{ m = ReduceMean {how} y = Relu (m) }}"
    )
    if opset >= 18:
        model.graph.initializer.append(from_array(np.array(axes, np.int64), "axes"))
    return model


def answer(model: onnx.ModelProto, rank: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """On fixed numbers."""
    x = np.random.default_rng(0).normal(size=SHAPES[rank]).astype(np.float32)
    answers: Any = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(answers[0], np.float64)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(("rank", "axes"), [(3, [2]), (4, [2, 3]), (4, [-1, -2]), (5, [2, 3, 4])])
def test_a_global_mean_is_a_pool(rank: int, axes: list[int], keep: int, opset: int) -> None:
    model = mean(rank, axes, keep=keep, opset=opset)
    made, num = pool_means(model)
    operators = [node.op_type for node in made.graph.node]
    assert (num, operators) == (1, ["GlobalAveragePool", *(["Flatten"] if not keep else []), "Relu"])
    np.testing.assert_allclose(answer(made, rank), answer(model, rank), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rank", "axes"), [(4, [1]), (4, [2]), (4, [1, 2, 3]), (4, [0, 2, 3]), (3, [1])])
def test_other_means_stay(rank: int, axes: list[int]) -> None:
    model = mean(rank, axes, keep=1, opset=17)
    made, num = pool_means(model)
    assert num == 0
    assert made is model


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean <axes = [2]> (x) y = Sub (x, m)",
        "s = Mul (x, x) m = ReduceMean <axes = [2]> (s) y = Sqrt (m)",
        "s = Pow (x, two) m = ReduceMean <axes = [2]> (s) y = Sqrt (m)",
        "s = Mul (x, x) n = ReduceMean <axes = [2]> (s) m = ReduceMean <axes = [2]> (x) y = Add (m, n)",
    ],
)
def test_means_of_a_normalization_stay(body: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N,C,L] x) => (float[N,C,M] y) {{ {body} }}'
    )
    if "two" in body:
        model.graph.initializer.append(from_array(np.array(2, np.float32), "two"))
    assert pool_means(model)[1] == 0
