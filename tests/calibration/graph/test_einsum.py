"""An Einsum that is one product is a MatMul, with the same answers; any other stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array
from onnx.reference import ReferenceEvaluator

from calibration.graph.constants import fold_constants
from calibration.graph.einsum import products_from_einsums

SIZES = dict(zip("abcdefg", (2, 3, 4, 5, 6, 7, 8)))
PRODUCTS = [
    "ab,bc->ac",
    "ab,cb->ac",
    "ba,bc->ca",
    "abc,bcd->ad",
    "abc,bd->adc",
    "abc,cde->abde",
    "abcd,cde->abe",
    "aecd,abcd->acbe",
    "acbe,aecd->abcd",
    "abc,abd->cad",
    "abc,abc->a",
    "abc,acd->abd",
    "abcd,abce->ade",
    "ab,abc->ac",
    "abcd,acef->abdef",
    "a,ab->b",
    "ab,b->a",
    "a,a->",
    " ab , bc -> ca ",
]
OTHERS = ["ab,ab->ab", "ab,cd->abcd", "aa,ab->b", "ab,bc->c", "ab,bc", "...b,bc->...c", "ab->ba", "ab,bc,cd->ad"]


def einsum(
    equation: str, unknown: str = "", weight: int | None = None
) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """The model and a feed; letters of ``unknown`` have no size in the model, the operand ``weight`` is a constant."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    rng = np.random.default_rng(0)
    letters = [term.replace("...", "g") for term in terms]
    arrays = [rng.normal(size=[SIZES[each] for each in term]).astype(np.float32) for term in letters]
    names = [f"x{index}" for index in range(len(terms))]
    shapes = [[each if each in unknown else SIZES[each] for each in term] for term in letters]
    node = onnx.helper.make_node("Einsum", names, ["y"], "einsum", equation=equation)
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for index, (name, shape) in enumerate(zip(names, shapes))
        if index != weight
    ]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    kept = [from_array(arrays[weight], names[weight])] if weight is not None else []
    graph = onnx.helper.make_graph([node], "net", inputs, [output], kept)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return model, {name: array for index, (name, array) in enumerate(zip(names, arrays)) if index != weight}


def answer(model: onnx.ModelProto, feed: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    answers: Any = ReferenceEvaluator(model).run(None, feed)
    return np.asarray(answers[0])


@pytest.mark.parametrize("weight", [None, 0, 1])
@pytest.mark.parametrize("equation", PRODUCTS)
def test_a_product_is_a_matmul(equation: str, weight: int | None) -> None:
    model, feed = einsum(equation, weight=weight)
    made, num = products_from_einsums(model)
    operators = [node.op_type for node in made.graph.node]
    assert (num, operators.count("MatMul"), operators.count("Einsum")) == (1, 1, 0)
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(answer(made, feed), answer(model, feed), rtol=1e-4, atol=1e-5)
    if weight is not None:
        (product,) = (node for node in fold_constants(made)[0].graph.node if node.op_type == "MatMul")
        assert product.input[1] in {tensor.name for tensor in fold_constants(made)[0].graph.initializer}


@pytest.mark.parametrize("equation", OTHERS)
def test_any_other_stays(equation: str) -> None:
    model, _ = einsum(equation)
    made, num = products_from_einsums(model)
    assert num == 0
    assert made is model


@pytest.mark.parametrize(
    ("equation", "unknown", "is_written"),
    [
        ("aecd,abcd->acbe", "abe", True),
        ("abc,cde->abde", "ab", True),
        ("abcd,cde->abe", "ab", True),
        ("abc,cde->abde", "d", True),
        ("abc,cde->abde", "de", False),
        ("abc,abd->cad", "a", True),
        ("abc,bcd->ad", "abc", True),
    ],
)
def test_sizes_that_are_not_known(equation: str, unknown: str, is_written: bool) -> None:
    model, feed = einsum(equation, unknown)
    made, num = products_from_einsums(model)
    assert num == is_written
    np.testing.assert_allclose(answer(made, feed), answer(model, feed), rtol=1e-4, atol=1e-5)


def test_a_size_of_one_that_stands_for_more_stays() -> None:
    model, feed = einsum("ab,bc->ac", "b")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    assert products_from_einsums(model)[1] == 0
    assert feed
