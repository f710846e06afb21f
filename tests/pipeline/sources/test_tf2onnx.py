"""What tf2onnx says, as one sentence, and what it leaves to chance, made reproducible."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx.parser
import pytest

from engines.backends import tensorflow
from pipeline.errors import StageError, Unavailable
from pipeline.machine import child_process
from pipeline.sources import tf2onnx
from pipeline.sources.contract import Conversion

ADD_SLOT = "AttributeError: '_UserObject' object has no attribute 'add_slot'"


NOT_CONVERTED = """
ERROR - Failed to convert node 'net/FakeQuant' (fct=<bound method X.version_10 of <class 'X'>>)
'OP=FakeQuantWithMinMaxVars\\nName=net/FakeQuant\\nInputs:\\n\\tx=Placeholder, [-1, 2], 1'
Traceback (most recent call last):
ValueError: make_sure failure: Unable to convert node FakeQuantWithMinMaxVars with narrow_range=1
"""


def test_an_optimizer_in_the_savedmodel_asks_for_tf_keras() -> None:
    error = tf2onnx._refused_by_tf2onnx("net", f"Traceback\n{ADD_SLOT}\n", ADD_SLOT)
    assert isinstance(error, Unavailable)
    assert str(error).startswith("net: was saved by Keras 2 together with its optimizer, reading it takes tf_keras")
    assert "pip install 'trtforge[tensorflow]'" in str(error)


def test_a_node_that_could_not_be_converted_is_named_once() -> None:
    error = tf2onnx._refused_by_tf2onnx("net", NOT_CONVERTED * 2, "ValueError: make_sure failure")
    assert str(error).count("FakeQuantWithMinMaxVars (node 'net/FakeQuant')") == 1


def test_many_unknown_operators_are_cut_short() -> None:
    said = "".join(f"Tensorflow op [node{i}: Op{i}] is not supported\n" for i in range(7))
    error = tf2onnx._refused_by_tf2onnx("net", said, "")
    assert "Op4 (node 'node4') and 2 more" in str(error)
    assert "Op5" not in str(error)


def test_a_model_beyond_two_gib_is_said() -> None:
    trouble = "ValueError: Message onnx.ModelProto exceeds maximum protobuf size of 2GB: 2400000000"
    assert "writes at most 2047 MiB, and the model has more; take a smaller model, or give it as an ONNX" in str(
        tf2onnx._refused_by_tf2onnx("net", "", trouble)
    )


def test_any_other_failure_quotes_the_error() -> None:
    error = tf2onnx._refused_by_tf2onnx("net", "", "KeyError: 'x'")
    assert isinstance(error, StageError)
    assert "net: tf2onnx failed (KeyError: 'x')" in str(error)


def test_a_well_ended_conversion_is_not_refused() -> None:
    assert tf2onnx._refused_by_tf2onnx("net", "Successfully converted TensorFlow model", "") is None


NUMBERED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2] x) => (float[N, 2] y)
<INITIALIZERS>
{ [a] hidden__7 = Mul (x, FIRST) [b] y = Add (hidden__7, SECOND) }
"""


def test_the_numbers_that_tf2onnx_gives_constants_do_not_matter() -> None:
    """They change from run to run, and the order of the constants with them."""
    runs = []
    for first, second in (("fold__24", "fold__25"), ("fold__25", "fold__24")):
        weights = sorted([f"float {first} = {{2.0}}", f"float {second} = {{3.0}}"])
        text = NUMBERED.replace("INITIALIZERS", ", ".join(weights))
        graph = onnx.parser.parse_model(text.replace("FIRST", first).replace("SECOND", second)).graph
        graph.doc_string = f"converted from /somewhere/{first}"
        tf2onnx._make_reproducible(graph)
        runs.append(graph)
    assert runs[0].SerializeToString() == runs[1].SerializeToString()
    assert list(runs[0].node[0].input) == ["x", "fold__c0"]
    assert runs[0].node[0].output[0] == "hidden__7", "activations keep the names that users see"


SHARED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2] x) => (float[N, 2] y)
<float CONSTANT = {6.0}>
{ [a] first = Min (x, CONSTANT) [b] y = Mul (first, CONSTANT) }
"""


def test_it_does_not_matter_which_name_a_shared_constant_kept() -> None:
    """TensorFlow's optimizer keeps equal constants once, under any of the names that they had."""
    runs = []
    for kept in ("relu_1__7", "relu_2__9"):
        graph = onnx.parser.parse_model(SHARED.replace("CONSTANT", kept)).graph
        tf2onnx._make_reproducible(graph)
        runs.append(graph)
    assert runs[0].SerializeToString() == runs[1].SerializeToString()
    assert [tensor.name for tensor in runs[0].initializer] == ["first__c0"]


@pytest.mark.parametrize("before", [None, "7"])
def test_the_converter_meets_the_same_order_of_sets_each_time(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def call(
        _log: Path, _what: str, _function: object, _path: Path, _signature: str, out: Path, *_rest: object
    ) -> list[str]:
        seeds.append(os.environ["PYTHONHASHSEED"])
        onnx.save(onnx.parser.parse_model(SHARED.replace("CONSTANT", "six__1")), tmp_path / "converted.onnx")
        return []

    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONHASHSEED", before)
    monkeypatch.setattr(tensorflow, "why_not_run", lambda: "")
    monkeypatch.setattr(tf2onnx, "find_spec", lambda _name: object())
    monkeypatch.setattr(child_process, "call", call)
    tf2onnx.convert(tmp_path, "serving_default", tmp_path, Conversion(17))
    assert seeds == ["0"]
    assert os.environ.get("PYTHONHASHSEED") == before
