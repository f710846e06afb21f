"""NVIDIA's list of TensorRT 10.15 and the real parser of TensorRT for RTX, on onnx's own tests of every operator.

They are two generations, so that they differ in places; each of them is named here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from engines.backends import tensorrt_rtx
from engines.onnx_model import opset_of
from engines.support.answers import SupportAnswer
from engines.support.by_list import answer_by_list
from engines.support.operator_lists import generation_named

if tensorrt_rtx.why_not_ask():
    pytest.skip(tensorrt_rtx.why_not_ask(), allow_module_level=True)

NEWEST = generation_named("10.15")
PLUGINS = {"DeformConv", "NonZero", "RoiAlign"}
"""The parser makes plugins of them, which TensorRT for RTX has none of."""
NOT_LISTED_SO = {
    "Attention": "ranks, sizes of heads, and inputs that are left out",
    "Clip": "INT8",
    "Identity": "an optional value",
    "LpPool": "other norms than the first two",
    "MatMul": "one dimension by three",
    "Resize": "sizes that are computed",
    "ScatterElements": "reductions other than a sum",
    "TensorScatter": "circular writing",
    "Upsample": "scales that are computed",
}
"""What the parser refuses of operators that the list has without that restriction."""
READ_SINCE = {"Equal", "GRU", "GridSample", "LSTM", "RNN", "Resize", "Swish"}
"""Of them TensorRT 11's parser, which that for RTX shares, reads more: UINT8, layouts, three dimensions, cubic."""


def single_nodes() -> Iterator[onnx.ModelProto]:
    """The models of one node, in opsets that the list is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of numpy, about the infinities of some of them.
        cases = load_model_tests(kind="node")
    for case in cases:
        model = case.model
        assert isinstance(model, onnx.ModelProto)
        if len(model.graph.node) == 1 and opset_of(model) <= NEWEST.largest_opset:
            yield model


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[onnx.NodeProto, SupportAnswer, SupportAnswer]]:
    """Of each of these nodes: what the list says, and what the parser says."""
    path = tmp_path_factory.mktemp("nodes") / "model.onnx"
    found = []
    for model in single_nodes():
        onnx.save(model, path)
        found.append((model.graph.node[0], answer_by_list(path, NEWEST, {}), tensorrt_rtx.ask(path, {})))
    return found


Answers = list[tuple[onnx.NodeProto, SupportAnswer, SupportAnswer]]


def test_there_are_enough_of_them(answers: Answers) -> None:
    kinds = {node.op_type for node, _, _ in answers}
    assert len(answers) > 700
    assert len(kinds & NEWEST.operators) > 120


def test_what_the_list_takes_the_parser_takes(answers: Answers) -> None:
    differ = {node.op_type for node, listed, parsed in answers if listed.is_whole and not parsed.is_whole}
    assert differ <= PLUGINS | set(NOT_LISTED_SO) | set(tensorrt_rtx.NOT_BUILT)


def test_what_the_list_does_not_take_the_parser_does_not(answers: Answers) -> None:
    differ = {node.op_type for node, listed, parsed in answers if parsed.is_whole and not listed.is_whole}
    assert differ <= READ_SINCE


def test_every_refusal_has_one_reason_that_says_what_to_do(answers: Answers) -> None:
    for _, listed, parsed in answers:
        for answer in (listed, parsed):
            assert "\n" not in answer.sentence()
            assert "\0" not in answer.sentence()
            assert bool(answer.sentence()) != answer.is_whole
        assert all("; " in node.reason for node in listed.unsupported)


def test_both_count_the_same_work(answers: Answers) -> None:
    assert all([n.flops for n in a.nodes] == [n.flops for n in b.nodes] for _, a, b in answers)
    kinds = {node.op_type for node, listed, _ in answers if listed.nodes[0].flops}
    assert {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Softmax", "Add"} <= kinds
    assert not kinds & {"Reshape", "Transpose", "Concat", "Gather", "Slice", "Pad", "Identity"}


@pytest.mark.parametrize("name", ["uint8", "int16", "uint32"])
def test_types_that_neither_computes_in(tmp_path: Path, name: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({name}[2] x, {name}[2] z) => ({name}[2] y) {{ y = Add(x, z) }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    listed = answer_by_list(tmp_path / "model.onnx", NEWEST, {})
    parsed = tensorrt_rtx.ask(tmp_path / "model.onnx", {})
    assert [node.name for node in listed.unsupported] == [node.name for node in parsed.unsupported] == ["y"]
