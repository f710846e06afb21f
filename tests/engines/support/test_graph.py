"""What an ONNX model's nodes are to whoever is asked about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from engines.errors import EngineError
from engines.support.graph import asked_about, name_of, operator_of, reads

SaveModel = Callable[[str], Path]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def folded(save_model: SaveModel, text: str) -> list[str]:
    """The names of the nodes that are."""
    answer = asked_about(save_model(f"{HEAD} g {text}"), {}).answer("somebody", {})
    return [node.name for node in answer.nodes if node.state == "folded"]


def test_what_depends_on_constants_alone_is_folded(save_model: SaveModel) -> None:
    text = """(float[2] x) => (float[2] y) <float[2] w = {1, 2}>
    { [k] k = Constant<value = float[2] {3, 4}>() [sum] s = Add(w, k) [twice] t = Add(s, s) [last] y = Add(x, t) }"""
    assert folded(save_model, text) == ["k", "sum", "twice"]


def test_a_shape_that_does_not_vary_is_folded_and_one_that_does_is_not(save_model: SaveModel) -> None:
    text = """(float[2, 3] x, float[N, 3] z) => (int64[2] y, int64[2] v)
    { [fixed] y = Shape(x) [varies] v = Shape(z) }"""
    assert folded(save_model, text) == ["fixed"]


def test_weights_that_are_inputs_too_are_no_constants(save_model: SaveModel) -> None:
    text = "(float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { [neg] n = Neg(w) [sum] y = Add(x, n) }"
    assert folded(save_model, text) == []


def test_what_is_random_or_has_bodies_is_never_folded(save_model: SaveModel) -> None:
    text = """(float[2] x) => (float[2] y) <bool c = {1}>
    {
        [noise] r = RandomNormal<shape = [2]>()
        [if] b = If<then_branch = t () => (float[2] u) { u = Neg(x) }, else_branch = e () => (float[2] v)
        { v = Relu(x) }>(c)
        [sum] y = Add(r, b)
    }"""
    assert folded(save_model, text) == []


def test_what_bodies_read_from_around_them_is_read(save_model: SaveModel) -> None:
    text = f"""{HEAD} g (bool c, float[2] x, float[2] z) => (float[2] y)
    {{
        y = If<then_branch = t () => (float[2] u)
        {{ a = Neg(x) u = Add(a, z) }}, else_branch = e () => (float[2] v)
        {{ v = If<then_branch = tt () => (float[2] p) {{ p = Relu(w) }}, else_branch = ee () => (float[2] q)
        {{ q = Neg(x) }}>(c) }}>(c)
    }}"""
    (node,) = onnx.parser.parse_model(text).graph.node
    assert sorted(set(reads(node))) == ["c", "w", "x", "z"]


def test_names_of_what_has_none() -> None:
    assert name_of(helper.make_node("Relu", ["x"], ["y"])) == "y"
    assert name_of(helper.make_node("Relu", ["x"], ["y"], name="active")) == "active"
    assert name_of(helper.make_node("TopK", ["x", "k"], ["", "i"])) == "i"
    assert name_of(helper.make_node("Sink", ["x"], [])) == "Sink"
    assert operator_of(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")) == "Relu"
    assert operator_of(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")) == "com.microsoft.Gelu"


def test_a_shape_that_does_not_fit_is_for_others_to_say(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        f"{HEAD} g (float[2, 3] x) => (float[2, 4] y) <float[5, 4] w> {{ y = MatMul(x, w) }}"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((5, 4), np.float32), "w"))
    onnx.save(model, tmp_path / "model.onnx")
    answer = asked_about(tmp_path / "model.onnx", {}).answer("somebody", {})
    assert [node.state for node in answer.nodes] == ["runs"]


def test_weights_whose_bytes_do_not_fit_are_for_others_to_say(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        f"{HEAD} g (float[2] x) => (float[2] y) <float[2] w = {{1, 2}}> {{ y = Add(x, w) }}"
    )
    model.graph.initializer[0].ClearField("float_data")
    model.graph.initializer[0].raw_data = b"\0" * 3
    onnx.save(model, tmp_path / "model.onnx")
    assert asked_about(tmp_path / "model.onnx", {}).answer("somebody", {}).is_whole


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read as an ONNX model"):
        asked_about(tmp_path / "missing.onnx", {})
