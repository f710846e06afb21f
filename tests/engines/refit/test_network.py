"""Whether two networks differ in weights alone, and if not, where: on real files, with weights inside and beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from engines.errors import EngineError
from engines.refit.network import NetworkGraph, first_difference, graph_from_record, names_text, network_graph

NETWORK = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[M, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {0.5, -0.5}, int64[2] shape = {-1, 2}, float scale = {0.5},
int8 zero = {0}>
{
    [fc] a = MatMul(x, w)  [bias] c = Add(a, b)  [two] t = Constant <value_float = 2.0> ()  [twice] d = Mul(c, t)
    [quantize] e = QuantizeLinear(d, scale, zero)  [restore] f = DequantizeLinear(e, scale, zero)
    [soft] s = LeakyRelu <alpha = 0.25> (f)  [reshape] y = Reshape(s, shape)
}"""
BRANCHES = """<ir_version: 8, opset_import: ["" : 17]> net (bool c, float[2] x) => (float[2] y)
<float[2] w = {1, 2}>
{
    [choose] y = If (c) <
        then_branch = yes () => (float[2] p) <float[2] w2 = {3, 4}> { [inner] p = Mul(x, w2) },
        else_branch = no () => (float[2] q) <float[2] w = {5, 6}> { [other] q = Mul(x, w) }
    >
}"""
Graph = Callable[[str], NetworkGraph]


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """The network that a text describes."""

    def read(text: str) -> NetworkGraph:
        onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
        return network_graph(tmp_path / "net.onnx")

    return read


def test_a_network_taken_apart(graph: Graph) -> None:
    net = graph(NETWORK)
    assert [(name, operator) for name, operator, _ in net.nodes] == [
        ("", "opset ai.onnx 17"), ("x", "input"), ("fc", "MatMul"), ("bias", "Add"), ("two", "Constant"),
        ("twice", "Mul"), ("quantize", "QuantizeLinear"), ("restore", "DequantizeLinear"), ("soft", "LeakyRelu"),
        ("reshape", "Reshape"), ("y", "output"),
    ]  # fmt: skip
    assert {name: weight.text() for name, weight in net.weights.items()} == {
        "w": "float32 (4, 2)", "b": "float32 (2)", "scale": "float32 ()", "t": "float32 ()",
    }, "what a node computes with decides what is built: a shape, a zero point"  # fmt: skip
    assert net.readers["scale"] == (("quantize", "QuantizeLinear"), ("restore", "DequantizeLinear"))
    assert net.readers["t"] == (("twice", "Mul"),)


def test_a_record_of_it_is_json_and_says_the_same(graph: Graph) -> None:
    net = graph(NETWORK)
    record = json.loads(json.dumps(net.record()))
    assert graph_from_record(record) == net
    assert record["digest"] == net.digest
    with pytest.raises(KeyError):
        graph_from_record({})


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("{1, 2, 3", "{9, 2, 3", ("w",)),
        ("{0.5, -0.5}", "{0.5, 0.25}", ("b",)),
        ("value_float = 2.0", "value_float = 3.0", ("t",)),
        ("scale = {0.5}", "scale = {0.75}", ("scale",)),
        ("float[N, 4] x", "float[batch, 4] x", ()),
        ("net (", "other_name (", ()),
    ],
)
def test_only_weights_changed(graph: Graph, old: str, new: str, changed: tuple[str, ...]) -> None:
    before, after = graph(NETWORK), graph(NETWORK.replace(old, new))
    assert first_difference(before, after) == ""
    assert after.digest == before.digest
    assert after.changed_from(before) == changed


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("= Add(a, b)", "= Sub(a, b)", "node 'bias' (Sub) stands where the engine has node 'bias' (Add)"),
        ("[soft] s", "[hard] s", "node 'hard' (LeakyRelu) stands where the engine has node 'soft' (LeakyRelu)"),
        ("alpha = 0.25", "alpha = 0.5", "node 'soft' (LeakyRelu) differs in its attributes, names or constants"),
        (
            "shape = {-1, 2}",
            "shape = {2, -1}",
            "node 'reshape' (Reshape) differs in its attributes, names or constants",
        ),
        ("zero = {0}", "zero = {1}", "node 'quantize' (QuantizeLinear) differs in its attributes, names or constants"),
        ("a = MatMul(x, w)", "a = MatMul(x, b)", "node 'fc' (MatMul) differs in its attributes, names or constants"),
        ('"" : 17', '"" : 16', "opset ai.onnx 16 stands where the engine has opset ai.onnx 17"),
        ("float[N, 4] x", "float[2, 4] x", "input 'x' differs in its attributes, names or constants"),
        ("float[M, 2] y", "float[M, 3] y", "output 'y' differs in its attributes, names or constants"),
        (
            "[reshape] y = Reshape(s, shape)",
            "[reshape] z = Reshape(s, shape) [last] y = Relu(z)",
            "node 'reshape' (Resh",
        ),
        ("float[2] b = {0.5, -0.5}", "float b = {0.5}", "weight 'b' is float32 (), the engine has float32 (2)"),
        ("float[2] b = {0.5, -0.5}", "float16[2] b = {1, 2}", "weight 'b' is float16 (2), the engine has float32 (2)"),
        ("scale = {0.5}", "scale = {0.5}, float unread = {1}", "weights 'unread' are not in the engine"),
    ],
)
def test_the_first_difference_is_named(graph: Graph, old: str, new: str, words: str) -> None:
    assert NETWORK.count(old) == 1
    before, after = graph(NETWORK), graph(NETWORK.replace(old, new))
    assert first_difference(before, after).startswith(words)
    assert after.digest != before.digest


def test_nodes_and_weights_that_are_not_there(graph: Graph) -> None:
    longer = graph(
        NETWORK.replace("[reshape] y = Reshape(s, shape)", "[reshape] y = Reshape(s, shape) [end] u = Relu(y)")
    )
    shorter = graph(NETWORK)
    assert first_difference(shorter, longer).startswith("node 'end' (Relu) stands where the engine has output 'y'")
    unread = graph(NETWORK.replace("scale = {0.5}", "scale = {0.5}, float unread = {1}"))
    assert first_difference(unread, shorter) == "weights 'unread' are missing"
    fewer = NetworkGraph(shorter.nodes[:-1], shorter.weights, shorter.readers)
    assert first_difference(shorter, fewer) == "output 'y' is missing"
    assert first_difference(fewer, shorter) == "output 'y' is not in the engine"
    assert names_text(list("abcde")) == "'a', 'b', 'c' and 2 more"


def test_weights_in_branches(graph: Graph) -> None:
    before = graph(BRANCHES)
    assert set(before.weights) == {"w", "w2", "choose/w"}, "the one inside is another than the one outside"
    assert before.readers["w2"] == (("choose", "Mul"),)
    after = graph(BRANCHES.replace("w = {5, 6}", "w = {5, 7}"))
    assert (first_difference(before, after), after.changed_from(before)) == ("", ("choose/w",))
    other = graph(BRANCHES.replace("[inner] p = Mul", "[inner] p = Add"))
    assert first_difference(before, other) == "node 'choose' (If) differs in its attributes, names or constants"


def test_how_a_file_keeps_its_weights_makes_no_difference(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(NETWORK)
    onnx.save(model, tmp_path / "typed.onnx")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "raw.onnx")
    onnx.save(model, tmp_path / "beside.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    graphs = [network_graph(tmp_path / f"{name}.onnx") for name in ("typed", "raw", "beside")]
    assert graphs[0] == graphs[1] == graphs[2]
    (tmp_path / "w.data").write_bytes(b"")
    with pytest.raises(EngineError, match=r"beside.onnx: its weights cannot be read .*; export it again"):
        network_graph(tmp_path / "beside.onnx")
