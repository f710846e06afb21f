"""A model that a backend does not take ends a run before anything is made for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from engines.backends import onnxruntime_tensorrt, tensorrt, tensorrt_rtx
from pipeline.errors import ConfigError, EngineError
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.stages.support import answer_from
from pipeline.store import Store

WITH_DET = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 3] x) => (float[N, 1] y)
<int64[1] axes = {1}> { [first] a = Relu(x) [norm] d = Det(a) [last] y = Unsqueeze(d, axes) }"""
PLAN = """
[model]
source = "det.onnx"
inputs.x = { min = [1, 3, 3], opt = [4, 3, 3], max = [8, 3, 3] }
[data]
calibration = "data.npz"
evaluation = "more.npz"
[variants]
precisions = ["fp32", "int8"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(WITH_DET), tmp_path / "det.onnx")
    for seed, name in enumerate(("data.npz", "more.npz")):
        np.savez(tmp_path / name, x=np.random.default_rng(seed).normal(size=(20, 3, 3)).astype(np.float32))
    return tmp_path


def stages_until(folder: Path, text: str, until: str) -> tuple[list[str], str]:
    """The stages that made something, and the error that ended the run; empty without one."""
    (folder / "plan.toml").write_text(PLAN + text)
    store = Store(folder / "store")
    try:
        run(read_plan(folder / "plan.toml"), store, until)
    except EngineError as error:
        return [entry.stage for entry in store.account if not entry.served], str(error)
    return [entry.stage for entry in store.account if not entry.served], ""


def test_a_parser_that_is_here_is_asked_before_anything_is_calibrated(folder: Path) -> None:
    if tensorrt_rtx.why_not_ask():
        pytest.skip(tensorrt_rtx.why_not_ask())
    stages, error = stages_until(folder, 'backends = ["onnxruntime", "tensorrt_rtx"]', "build")
    assert stages == ["export", "support"]
    assert "tensorrt_rtx cannot take the model: node 'norm', Det: TensorRT has no such operator; replace it" in error
    stages, error = stages_until(folder, 'backends = ["onnxruntime", "tensorrt_rtx"]', "build")
    assert (stages, bool(error)) == ([], True), "served"


def test_for_a_bundle_the_list_of_the_device_is_asked(folder: Path) -> None:
    if not tensorrt.why_not_ask():
        pytest.skip("TensorRT and a GPU are here, whose parser has the last word")
    stages, error = stages_until(folder, 'backends = ["tensorrt"]\n[support]\ngeneration = "8.6"', "quantize")
    assert stages == ["export", "support"]
    assert "tensorrt cannot take the model: node 'norm', Det: TensorRT 8.6 does not read this operator" in error


def test_what_the_rest_of_runs_elsewhere_is_expected_and_not_refused(folder: Path) -> None:
    if not onnxruntime_tensorrt.why_not_ask():
        pytest.skip("onnxruntime-gpu, TensorRT and a GPU are here, whose own version is asked")
    plan = 'backends = ["onnxruntime_tensorrt"]\n[support]\ngeneration = "10.3"'
    stages, error = stages_until(folder, plan, "calibrate")
    assert (stages[:2], "calibrate" in stages, error) == (["export", "support"], True, "")
    made = run(read_plan(folder / "plan.toml"), Store(folder / "store"), "calibrate")
    answer = answer_from(made.support["onnxruntime_tensorrt"])
    assert [answer.nodes[index].operator for index in answer.partition.outside] == ["Det"]
    assert len(answer.partition.segments) == 2


def test_without_a_list_nothing_is_asked_where_no_engines_are_built(folder: Path) -> None:
    stages, error = stages_until(folder, 'backends = ["tensorrt"]', "export")
    assert ("support" in stages, error) == (False, "")


def test_a_version_that_is_not_listed_is_a_mistake_in_the_plan(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"generation: TensorRT '7\.2': the operators of 8\.5"):
        stages_until(folder, '[support]\ngeneration = "7.2"', "export")
