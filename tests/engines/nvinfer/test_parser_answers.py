"""What TensorRT for RTX's real parser answers, node by node; and the same parser in the form that it had up to 10.0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.backends import tensorrt, tensorrt_rtx
from engines.contract import BuildOptions
from engines.errors import EngineError, Unavailable
from engines.nvinfer.parser_answers import answer_by_parser
from engines.support.answers import SupportAnswer

if tensorrt_rtx.why_not_build():
    pytest.skip(tensorrt_rtx.why_not_build(), allow_module_level=True)

SaveModel = Callable[[str], Path]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
WITH_DET = f"""{HEAD} g (float[N, 8, 4, 4] x, float[8, 8, 1, 1] w) => (float[N, 8] y, float[N, 8, 4, 4] z)
<int64[2] axes = {{2, 3}}>
{{
    [conv] c = Conv(x, w)  [norm] d = Det(c)  [wide] u = Unsqueeze(d, axes)  [join] s = Add(c, u)
    [again] e = Det(s)  [last] y = Relu(e)  [side] z = Celu(c)
}}"""
NOT_READ = (
    "TensorRT has no such operator; replace it in the network, or build for a backend that has it (Det is not "
    "supported in TensorRT)"
)


def asked(model: Path) -> SupportAnswer:
    return tensorrt_rtx.ask(model, {})


def test_all_that_a_model_has_and_the_parser_has_not(save_model: SaveModel) -> None:
    answer = asked(save_model(WITH_DET))
    assert answer.source.startswith("the parser of tensorrt_rtx 1.")
    assert [(node.name, node.reason) for node in answer.unsupported] == [("norm", NOT_READ), ("again", NOT_READ)]
    assert answer.partition.segments == ((0, 6), (2, 3), (5,))
    assert answer.partition.outside == (1, 4)
    assert answer.partition.num_crossings == 5
    assert answer.notes == ()
    assert answer.sentence() == f"node 'norm', Det: {NOT_READ} (and 1 more: `trtforge support` lists them)"


def test_a_whole_model(save_model: SaveModel) -> None:
    answer = asked(save_model(f"{HEAD} g (float[N, 3] x) => (int64[N, 1] y) {{ y = ArgMax<axis = 1>(x) }}"))
    assert (answer.is_whole, answer.sentence()) == (True, "")
    assert answer.partition.segments == ((0,),)
    later = '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
    assert asked(save_model(later)).is_whole


def test_of_what_it_cannot_import_it_tells_one_at_a_time_and_is_asked_again(save_model: SaveModel) -> None:
    answer = asked(
        save_model(
            f"""{HEAD} g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y) <float s = {{0.5}}, uint8 o = {{3}}>
            {{
                [first] q = QuantizeLinear(x, s, o)  [back] d = DequantizeLinear(q, s, o)
                [second] r = QuantizeLinear(z, s, o)  [too] e = DequantizeLinear(r, s, o)  [sum] y = Add(d, e)
            }}"""
        )
    )
    assert [node.name for node in answer.unsupported] == ["first", "back", "second", "too"]
    assert answer.unsupported[0].reason.startswith("it is quantized with a zero point other than 0")
    assert answer.partition.segments == ((4,),)


def test_what_is_read_and_has_nothing_that_runs_it_is_refused_before_a_build(save_model: SaveModel) -> None:
    model = save_model(
        f"""{HEAD} g (float[1, 20, 4] boxes, float[1, 3, 20] scores) => (int64[n, 3] chosen)
        <int64[1] most = {{5}}>
        {{ [relu] r = Relu(scores)  [nms] chosen = NonMaxSuppression(boxes, r, most) }}"""
    )
    answer = asked(model)
    assert [(node.name, node.reason) for node in answer.unsupported] == [
        ("nms", tensorrt_rtx.NOT_BUILT["NonMaxSuppression"])
    ]
    assert answer.partition.segments == ((0,),)
    with pytest.raises(EngineError, match="has no runners that implement it"):
        tensorrt_rtx.build(model, model.with_suffix(".plan"), BuildOptions())


def test_bodies_are_named(save_model: SaveModel) -> None:
    branch = (
        "then_branch = t () => (float[2] a) { [inner] a = Det(x) }, else_branch = e () => (float[2] b) { b = Relu(z) }"
    )
    model = save_model(
        f"{HEAD} g (bool c, float[2, 3, 3] x, float[2] z) => (float[2] y) {{ [if] y = If<{branch}>(c) }}"
    )
    (node,) = asked(model).unsupported
    assert (node.name, node.reason) == ("if", f"in its body, at 'inner': {NOT_READ}")


def test_what_follows_an_unknown_shape_is_judged_by_its_operator(save_model: SaveModel) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'
    answer = asked(save_model(f"{head} g (float[2] x) => (float[2] y) {{ [odd] a = own.Twice(x) [end] y = Relu(a) }}"))
    assert [node.name for node in answer.unsupported] == ["odd"]
    assert answer.unsupported[0].operator == "own.Twice"
    assert answer.notes == (
        "1 nodes, 'end' the first, were judged by their operator alone: they follow a node whose output has no known "
        "shape.",
    )


def test_an_input_that_it_has_no_type_for_stops_what_reads_it(save_model: SaveModel) -> None:
    answer = asked(save_model(f"{HEAD} g (string[2] x, float[2] z) => (string[2] y, float[2] w) "
                              "{ y = Identity(x) w = Relu(z) }"))  # fmt: skip
    assert [node.name for node in answer.unsupported] == ["y"]


def test_a_refusal_that_names_no_node_is_traced_to_it(save_model: SaveModel) -> None:
    """Of ScatterElements with such a reduction the parser's plugin alone has something to say."""
    answer = asked(
        save_model(
            f"""{HEAD} g (float[3, 3] x, int64[2, 3] i, float[2, 3] u) => (float[3, 3] y, float[3, 3] z)
            {{
                [before] a = Relu(x)  [scatter] b = ScatterElements<reduction = "mul">(a, i, u)
                [after] y = Neg(b)  [beside] z = Relu(a)
            }}"""
        )
    )
    assert [node.name for node in answer.unsupported] == ["scatter"]
    assert answer.partition.segments == ((0, 3), (2,))


def test_an_empty_graph_is_taken(save_model: SaveModel) -> None:
    answer = asked(save_model(f"{HEAD} g (float[2] x) => (float[2] x) {{ }}"))
    assert (answer.nodes, answer.is_whole, answer.partition.segments) == ((), True, ())


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(EngineError, match="is not an ONNX model with outputs"):
        asked(tmp_path / "model.onnx")


class OldParser:
    """The real parser as it was up to 10.0: it tells the first error alone, with a number and words."""

    def __init__(self, network: Any, log: Any) -> None:
        self._parser = tensorrt_rtx._import().OnnxParser(network, log)
        self.num_errors = 0

    def supports_model(self, data: bytes, path: str) -> tuple[bool, list[tuple[list[int], bool]]]:
        takes_all = self._parser.supports_model_v2(data, path)
        parts = [self._parser.get_subgraph_nodes(index) for index in range(self._parser.num_subgraphs)]
        if takes_all:
            return True, [(nodes, True) for nodes in parts]
        self.num_errors, first = 1, self._parser.get_error(0).node()
        nodes = sorted({number for part in parts for number in part} | self._others(first))
        return False, [(nodes, False)]

    def _others(self, first: int) -> set[int]:
        """The later nodes that it would refuse, had it come so far."""
        errors = (self._parser.get_error(index).node() for index in range(self._parser.num_errors))
        return {number for number in errors if number != first}

    def get_error(self, index: int) -> SimpleNamespace:
        error = self._parser.get_error(index)
        return SimpleNamespace(node=error.node, desc=error.desc)


class OldModule:
    """The real module with that parser."""

    OnnxParser = OldParser

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx._import(), name)


def test_a_parser_that_stops_at_the_first_error_is_asked_again(save_model: SaveModel) -> None:
    answer = answer_by_parser(OldModule(), save_model(WITH_DET), {})
    assert [node.name for node in answer.unsupported] == ["norm", "again"]
    assert answer.partition.segments == ((0, 6), (2, 3), (5,))


def test_without_tensorrt_the_way_to_its_list_is_said(linear: Path) -> None:
    if not tensorrt.why_not_ask():
        pytest.skip("TensorRT and a GPU are here")
    with pytest.raises(Unavailable, match="the list of a version is asked with --generation"):
        tensorrt.ask(linear, {})
