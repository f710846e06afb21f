"""A model in parts: run one after another they compute what the whole does."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from calibration.arrays import AnyArray
from calibration.weights.segments import Segments
from tests.calibration.graph.nets import with_arrays

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x, bool flag) => (float[N, 4] y)
{
    a = MatMul (x, first)
    b = Relu (a)
    c = MatMul (b, second)
    d = Add (c, a)
    e = If (flag) <
        then_branch = yes () => (float[N, 4] kept) { kept = Mul (d, b) },
        else_branch = no () => (float[N, 4] other) { other = Identity (d) }
    >
    y = MatMul (e, last)
}
"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    random = np.random.default_rng(1)
    arrays = {name: random.normal(size=(4, 4)).astype(np.float32) for name in ("first", "second", "last")}
    net = with_arrays(onnx.parser.parse_model(NET), arrays)
    for node in net.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return net


FEED: dict[str, AnyArray] = {
    "x": np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32), "flag": np.asarray(True),
}  # fmt: skip


def run(model: onnx.ModelProto, feed: dict[str, AnyArray]) -> dict[str, AnyArray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feed)))


def test_what_is_alive_between_two_nodes(model: onnx.ModelProto) -> None:
    segments = Segments(model)
    assert segments.inputs == ("x", "flag")
    assert segments.alive(0) == ("x", "flag")
    assert segments.alive(segments.index_of("MatMul_c")) == ("flag", "a", "b")
    assert segments.alive(segments.index_of("If_e")) == ("flag", "b", "d"), "what a branch reads is read there"
    assert segments.alive(segments.index_of("MatMul_y")) == ("e",)


def test_parts_compute_what_the_whole_does(model: onnx.ModelProto) -> None:
    segments, held = Segments(model), dict(FEED)
    begin: tuple[str, ...] = ("x", "flag")
    for node in ("MatMul_c", "If_e", "MatMul_y"):
        alive = segments.alive(segments.index_of(node))
        assert alive is not None
        part = segments.between(begin, alive, ())
        made = run(part, {value.name: held[value.name] for value in part.graph.input})
        held = {name: made[name] if name in made else held[name] for name in alive}
        begin = alive
    ends = [run(segments.between(begin, ("y",), ()), held)["y"], run(model, FEED)["y"]]
    first, second = (np.asarray(end, np.float64) for end in ends)
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_a_part_has_what_it_needs_alone_and_other_values_for_what_changed(model: onnx.ModelProto) -> None:
    changed = numpy_helper.from_array(np.zeros((4, 4), np.float32), "second")
    part = Segments(model).between(("a", "b", "flag"), ("d",), (changed,))
    assert [node.name for node in part.graph.node] == ["MatMul_c", "Add_d"]
    assert [tensor.name for tensor in part.graph.initializer] == ["second"]
    a, b = (np.ones((2, 4), np.float32) * each for each in (2, 3))
    np.testing.assert_array_equal(run(part, {"a": a, "b": b})["d"], a)


def test_where_a_type_is_not_known_nothing_is_held(model: onnx.ModelProto) -> None:
    strange = onnx.ModelProto()
    strange.CopyFrom(model)
    strange.opset_import.append(onnx.helper.make_opsetid("own", 1))
    strange.graph.node[1].domain = "own"
    segments = Segments(strange)
    assert segments.alive(segments.index_of("MatMul_c")) is None
    assert segments.alive(segments.index_of("Relu_b")) == ("flag", "a")
