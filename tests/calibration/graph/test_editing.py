"""Every node gets a name, and the same one each time; a wrong name is answered with the nearest right one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.errors import ModelError
from calibration.graph.editing import (
    closed,
    constant,
    named,
    opened,
    unique,
    without_weight_inputs,
)


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
    with pytest.raises(ModelError, match="net: initializer 's' is sparse, dense ones are expected; export it so"):
        opened(model)


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
    ],
)
def test_a_network_that_trains_is_refused(node: str, name: str) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y)'
        f"<float[2] s = {{1, 1}}, float ratio = {{0.5}}, bool yes = {{1}}> {{ {node} }}"
    )
    with pytest.raises(ModelError, match=rf"node '{name}' .* is in training mode.*export the network in evaluation"):
        opened(model)
