"""What ONNX Runtime answers, node by node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.backends import onnxruntime

if onnxruntime.why_not_build():
    pytest.skip(onnxruntime.why_not_build(), allow_module_level=True)

SaveModel = Callable[[str], Path]
HEAD = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'


def test_a_model_that_it_loads_runs_whole(save_model: SaveModel) -> None:
    text = f"{HEAD} g (float[N, 3, 3] x) => (float[N] y) <float[1] w = {{2}}> {{ v = Neg(w) d = Det(x) y = Mul(d, v) }}"
    answer = onnxruntime.ask(save_model(text), {"x": (4, 3, 3)})
    assert [(node.state, node.flops) for node in answer.nodes] == [("folded", 1), ("runs", 4), ("runs", 4)]
    assert answer.is_whole
    assert answer.source.startswith("onnxruntime 1.")


def test_of_one_that_it_does_not_load_each_node_is_asked(save_model: SaveModel) -> None:
    text = f"""{HEAD} g (float[2] x, bool c) => (float[2] y, float[2] z)
    {{
        [fine] a = Relu(x)  [odd] b = own.Twice(a)  [after] y = Neg(b)
        [branch] z = If<then_branch = t () => (float[2] u) {{ u = Neg(a) }}, else_branch = e () => (float[2] v)
        {{ v = Relu(a) }}>(c)
    }}"""
    answer = onnxruntime.ask(save_model(text), {})
    assert [node.name for node in answer.unsupported] == ["odd"]
    assert "own:Twice(-1) is not a registered function/op" in answer.unsupported[0].reason
    assert answer.unsupported[0].reason.endswith("; replace it in the network, or take another backend")
    assert answer.notes == ("1 nodes were not asked, 'after' the first: the types that they read are not known.",)
    assert answer.partition.segments == ((0, 3), (2,))


def test_what_is_refused_as_a_whole_says_so(save_model: SaveModel) -> None:
    answer = onnxruntime.ask(save_model(f"{HEAD} g (float[2] x) => (float[3] y) {{ a = Relu(x) y = Neg(a) }}"), {})
    assert (answer.is_whole, answer.unsupported) in ((True, ()), (False, ()))
    double = save_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ a = Relu(x) a = Neg(x) y = Add(a, x) }}")
    refused = onnxruntime.ask(double, {})
    assert refused.unsupported == ()
    assert refused.sentence().startswith("is refused as a whole (")
