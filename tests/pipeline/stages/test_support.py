"""The stage `support`: who is asked, what is written, and what is said where nobody can be."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from engines import backend
from engines.backends import onnxruntime, reference, tensorrt, tensorrt_rtx
from engines.contract import ShapeRange
from engines.support.answers import NodeAnswer, Partition, SupportAnswer
from pipeline.artifact import OnnxModel
from pipeline.errors import ConfigError, ProcessDied, Unavailable
from pipeline.stages.support import Support, Whom, answer_from, askable

SHAPES = {"x": ShapeRange((1, 3), (4, 3), (8, 3))}
LINEAR = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y)
<float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { [product] xw = MatMul(x, w) [active] y = Relu(xw) }"""


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    onnx.save(onnx.parser.parse_model(LINEAR), tmp_path / "model.onnx")
    return OnnxModel(tmp_path / "model.onnx")


def test_a_parser_that_can_be_asked_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "why_not_ask", lambda: "")
    assert Support("8.6").whom("tensorrt", SHAPES) == Whom("tensorrt", "", {"x": (4, 3)})


def test_where_there_is_none_the_list_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "why_not_ask", lambda: "tensorrt: is not installed; install it")
    assert Support("8.6").whom("tensorrt", {}) == Whom("", "8.6", {})
    with pytest.raises(Unavailable, match=r"is not installed; install it; --generation 8\.6, say, asks the list"):
        Support().whom("tensorrt", {})


def test_what_has_no_lists_is_not_asked_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "why_not_ask", lambda: "tensorrt_rtx: is not installed; install it")
    with pytest.raises(Unavailable, match=r"^tensorrt_rtx: is not installed; install it$"):
        Support("8.6").whom("tensorrt_rtx", {})


def test_what_cannot_be_asked_says_so() -> None:
    with pytest.raises(Unavailable, match="reference: cannot be asked what it takes; build for it, which tells"):
        askable(reference)
    assert askable(backend("onnxruntime")) is onnxruntime


@pytest.mark.parametrize("version", ["7.2", "11.0", "latest"])
def test_a_version_without_a_list_is_a_mistake_in_the_plan(version: str) -> None:
    with pytest.raises(ConfigError, match=f"generation: TensorRT '{version}': the operators of"):
        Support(version)


def test_what_is_written_is_read_again(model: OnnxModel, tmp_path: Path) -> None:
    table = Support()(tmp_path, model, Whom("", "10.3", {"x": (4, 3)}))
    assert table.path.name == "support.json"
    assert answer_from(table) == SupportAnswer(
        "NVIDIA's list of the operators of TensorRT 10.3",
        (NodeAnswer("product", "MatMul", "runs", flops=2 * 4 * 3 * 3), NodeAnswer("active", "Relu", "runs", flops=12)),
        Partition(((0, 1),), (), 0, 1.0),
        notes=(
            "Plugins and what depends on shapes are not in the list: the parser of that version has the last word.",
        ),
    )
    assert set(json.loads(table.path.read_text())) == {"source", "nodes", "partition", "refusals", "notes"}


def test_the_recipe_knows_who_was_asked(model: OnnxModel) -> None:
    by_list = Support().versions(model, Whom("", "8.6"))
    by_runtime = Support().versions(model, Whom("onnxruntime"))
    assert set(by_list) == {"onnx"}
    assert by_runtime["onnxruntime"] == onnxruntime.versions()["onnxruntime"]
    assert Support().modules(model, Whom("", "8.6")) == ()
    assert Support().modules(model, Whom("onnxruntime")) == ("engines.backends.onnxruntime",)


def _die(_model: Path, _shapes: object) -> SupportAnswer:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("it is dead")


def test_a_parser_that_crashes_is_one_error(model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.support._ask", crash)
    with pytest.raises(ProcessDied, match="ask onnxruntime: the process was ended by SIGSEGV"):
        Support()(tmp_path, model, Whom("onnxruntime"))


def crash(_name: str, model: Path, shapes: object) -> SupportAnswer:
    return _die(model, shapes)


@pytest.mark.parametrize("whom", [Whom("", "8.6"), Whom("onnxruntime"), Whom("tensorrt_rtx")])
def test_weights_in_files_beside_the_model_are_left_there(tmp_path: Path, whom: Whom) -> None:
    if whom.backend and (reason := askable(backend(whom.backend)).why_not_ask()):
        pytest.skip(reason)
    model = onnx.parser.parse_model(LINEAR.replace("<float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>", ""))
    weights = np.ones((3, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer[0].data_location == (
        TensorProto.EXTERNAL
    )
    answer = answer_from(Support()(tmp_path, OnnxModel(tmp_path / "model.onnx"), whom))
    assert answer.is_whole
    assert [node.flops for node in answer.nodes] == [18, 3]
