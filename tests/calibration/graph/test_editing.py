"""Every node gets a name, and the same one each time; a wrong name is answered with the nearest right one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from calibration.errors import ModelError
from calibration.graph.editing import (
    check_inference,
    closed,
    constant,
    from_constants,
    named,
    opened,
    unique,
    without_sparse,
    without_weight_inputs,
)
from calibration.graph.watched_outputs import watchable


def _model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


TWO_RELUS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2] x) => (float[2] y) { a = Relu (x)  y = Relu (a) }
"""


def test_named_gives_each_node_a_name_and_changes_no_argument() -> None:
    model = _model(TWO_RELUS)
    result = named(model)
    assert [node.name for node in result.graph.node] == ["Relu_a", "Relu_y"]
    assert [node.name for node in model.graph.node] == ["", ""]
    assert named(result) == result


def test_named_parts_what_shares_a_name() -> None:
    model = _model(TWO_RELUS)
    model.graph.node[0].name = model.graph.node[1].name = "relu"
    assert [node.name for node in named(model).graph.node] == ["relu", "relu_1"]


def test_named_does_not_take_a_name_that_comes_later() -> None:
    model = _model(TWO_RELUS)
    model.graph.node[1].name = "Relu_a"
    assert [node.name for node in named(model).graph.node] == ["Relu_a_1", "Relu_a"]


def test_named_reaches_into_subgraphs() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2] x, bool p) => (float[2] y)
    {
      y = If (p) <then_branch = a () => (float[2] u) { u = Neg (x) },
                  else_branch = b () => (float[2] v) { v = Abs (x) }>
    }
    """)
    branches = [attribute.g for attribute in named(model).graph.node[0].attribute]
    assert [branch.node[0].name for branch in branches] == ["Neg_u", "Abs_v"]


def test_closed_sorts_and_drops_what_nothing_reads() -> None:
    model = _model(TWO_RELUS.replace("{ a", "<float[2] unused = {1, 2}> { d = Neg (x) a"))
    unsorted = onnx.ModelProto()
    unsorted.CopyFrom(model)
    unsorted.graph.node.reverse()
    result = closed(opened(unsorted))
    assert [node.output[0] for node in result.graph.node] == ["a", "y"]
    assert not result.graph.initializer


def test_closed_refuses_what_the_checker_refuses() -> None:
    graph = opened(_model(TWO_RELUS))
    next(iter(graph.graph)).op_type = "Reluu"
    with pytest.raises(ModelError, match=r"net: onnx's checker refuses .*Reluu"):
        closed(graph)


def test_sparse_initializers_are_refused() -> None:
    model = _model('<ir_version: 8, opset_import: ["" : 17]> net (float[2] x) => (float[2] y) { y = Add (x, s) }')
    values, indices = (onnx.numpy_helper.from_array(np.ones(1, dtype), "s") for dtype in (np.float32, np.int64))
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2]))
    onnx.checker.check_model(model)
    with pytest.raises(ModelError, match="net: constant 's' is sparse, dense ones are expected; `trtforge export`"):
        opened(model)


@pytest.mark.parametrize(("places", "shape"), [([1, 5], (2,)), ([[0, 1], [1, 2]], (2, 2))])
def test_sparse_constants_are_written_out(places: list[Any], shape: tuple[int, ...]) -> None:
    values = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [2], [3.0, 4.0])
    indices = onnx.numpy_helper.from_array(np.array(places, np.int64), "s_places")
    assert tuple(indices.dims) == shape
    sparse = onnx.helper.make_sparse_tensor(values, indices, [2, 3])
    expected = [[0.0, 3.0, 0.0], [0.0, 0.0, 4.0]]
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[2, 3] x) => (float[2, 3] y) '
    initializer, node = _model(text + "{ y = Add (x, s) }"), _model(text + "{ y = Add (x, s) }")
    initializer.graph.sparse_initializer.append(sparse)
    node.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    for model in (initializer, node):
        onnx.checker.check_model(model)
        with pytest.raises(ModelError, match="constant 's' is sparse"):
            opened(model)
        dense = without_sparse(model)
        onnx.checker.check_model(dense, full_check=True)
        written = constant(next(iter(opened(dense).graph)).inputs[1])
        assert written is not None
        assert written.tolist() == expected
        assert without_sparse(dense) is dense


def test_a_sparse_constant_of_terabytes_is_not_written_out() -> None:
    values = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [3.0])
    sparse = onnx.helper.make_sparse_tensor(values, onnx.helper.make_tensor("i", 7, [1], [5]), [1 << 20, 1 << 20])
    model = _model('<ir_version: 8, opset_import: ["" : 17]> net (float[2] x) => (float[2] y) { y = Neg (x) }')
    model.graph.sparse_initializer.append(sparse)
    with pytest.raises(ModelError, match="sparse constant 's' has 4194304 MiB where it is written out, at most 2047"):
        without_sparse(model)


LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2] x) => (float[N, 2] y)
<int64 three = {3}, bool yes = {1}, float[2, 2] w = {1, 2, 3, 4}>
{
  v = Loop (three, yes, w) <body = b (int64 i, bool go, float[2, 2] s) => (bool on, float[2, 2] t)
    { on = Identity (go)  r = STEP  t = Add (s, r) }>
  y = MatMul (x, v)
}
"""


@pytest.mark.parametrize(
    ("step", "is_fixed"),
    [("Mul (s, w)", True), ("RandomNormalLike (s)", False), ("ReduceSum <keepdims = 1> (x)", False)],
)
def test_what_a_loop_makes_of_constants_is_one_for_whoever_watches_too(step: str, is_fixed: bool) -> None:
    """Who places scales wanted a range of it, which calibration, that asked otherwise, did not have."""
    model = _model(LOOP.replace("STEP", step))
    assert ("v" in from_constants(opened(model).graph)) is is_fixed
    assert ("v" in watchable(model)) is not is_fixed


def test_unique_counts_up() -> None:
    assert unique("a", {"b"}) == "a"
    assert unique("a", {"a", "a_1"}) == "a_2"


def test_weights_among_the_inputs_are_constants() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 13]> g (float[N, 2] x, float[2, 2] w) => (float[N, 2] y)'
        " { y = MatMul (x, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "w"))
    without, num = without_weight_inputs(model)
    assert num == 1
    assert [value.name for value in without.graph.input] == ["x"]
    onnx.checker.check_model(without, full_check=True)
    assert constant(next(iter(opened(model).graph)).inputs[1]) is not None
    assert without_weight_inputs(without) == (without, 0)


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("y, m, v = BatchNormalization <training_mode = 1> (x, s, s, s, s)", "BatchNormalization_y"),
        ("y = Dropout (x, ratio, yes)", "Dropout_y"),
        (
            "y = If (yes) <then_branch = t () => (z)"
            " { z, m, v = BatchNormalization <training_mode = 1> (x, s, s, s, s) },"
            " else_branch = e () => (z) { z = Relu (x) }>",
            "BatchNormalization_z",
        ),
    ],
)
def test_a_network_that_trains_is_refused(node: str, name: str) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y)'
        f"<float[2] s = {{1, 1}}, float ratio = {{0.5}}, bool yes = {{1}}> {{ {node} }}"
    )
    with pytest.raises(ModelError, match=rf"node '{name}' .* is in training mode.*export the network in evaluation"):
        opened(model)


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (6, "y = BatchNormalization <is_test = 0> (x, s, s, s, s)"),
        (9, "y, m, v, saved_m, saved_v = BatchNormalization (x, s, s, s, s)"),
        (6, "y = Dropout <is_test = 0> (x)"),
    ],
)
def test_a_network_that_trains_in_an_old_opset_is_refused(opset: int, node: str) -> None:
    """Before onnx's converter, which fails on some of them and says an assertion of its own."""
    text = (
        f'<ir_version: 3, opset_import: ["" : {opset}]> g (float[2, 2] x, float[2] s) => (float[2, 2] y) {{ {node} }}'
    )
    with pytest.raises(ModelError, match=r"old\.onnx: node 'y' \(.*\) is in training mode.*in evaluation mode"):
        check_inference(_model(text), "old.onnx")
    evaluating = node.replace("is_test = 0", "is_test = 1").replace(", m, v, saved_m, saved_v", "")
    check_inference(_model(text.replace(node, evaluating)), "old.onnx")
