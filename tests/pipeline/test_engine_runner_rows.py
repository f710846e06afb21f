"""Inputs without a batch axis are fed row by row, through all stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.batches import DataSource, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError
from engines import backend
from pipeline.accuracy.comparison import read_outputs
from pipeline.engine_runner import as_model_takes, load_model
from tests.made import QUICK_PROTOCOL, model_with_weights
from tests.pipeline.bundles import packed, unpacked

if TYPE_CHECKING:
    from tests.conftest import Command

DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
vad (float[BATCH, 64] input, float[2, STATES, 16] state, int64 sr) => (float[BATCH, 1] speech, float[2, M, 16] next)
<float[64, 16] slow, float[64, 16] fast, float[16, 16] recurrent, float[16, 1] head, int64 rate = {16000},
 int64 first = {0}, int64 second = {1}, int64[1] axis = {0}>
{
    is_fast = Equal (sr, rate)
    x = If (is_fast) <then_branch = yes () => (float[N, 16] a) { a = MatMul (input, fast) },
                      else_branch = no () => (float[N, 16] b) { b = MatMul (input, slow) }>
    hidden = Gather <axis = 0> (state, first)
    cell = Gather <axis = 0> (state, second)
    carried = MatMul (hidden, recurrent)
    sum = Add (x, carried)
    active = Tanh (sum)
    gate = Sigmoid (sum)
    kept = Mul (cell, gate)
    new_cell = Add (kept, active)
    logit = MatMul (active, head)
    speech = Sigmoid (logit)
    one = Unsqueeze (active, axis)
    two = Unsqueeze (new_cell, axis)
    next = Concat <axis = 0> (one, two)
}
"""
"""In the manner of a speech detector: the batch of the state is its second axis, and the sample rate is a number."""

PLAN = (
    """
[model]
source = "vad.onnx"
[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
[variants]
precisions = ["fp32", "fp16", "int8"]
[report]
html = false
"""
    + QUICK_PROTOCOL
)


def rows(num: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "input": random.normal(size=(num, 64)).astype(np.float32),
        "state": random.normal(size=(num, 2, 1, 16)).astype(np.float32),
        "sr": np.where(np.arange(num) % 2, 8000, 16000),
    }


@pytest.fixture(params=["N", "1"])
def detector(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `vad.onnx`, whose batch is dynamic or one, two data sets and `plan.toml`."""
    text = DETECTOR.replace("BATCH", request.param).replace("STATES", "1" if request.param == "1" else "M")
    model = model_with_weights(text, 1, slow=(64, 16), fast=(64, 16), recurrent=(16, 16), head=(16, 1))
    onnx.save(model, tmp_path / "vad.onnx")
    np.savez(tmp_path / "calibration.npz", **rows(32, 2))  # type: ignore[arg-type]
    np.savez(tmp_path / "evaluation.npz", **rows(64, 3))  # type: ignore[arg-type]
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_row_is_what_the_model_takes() -> None:
    feed = {"a": np.ones((1, 3)), "b": np.ones((1, 2, 5)), "c": np.array([7])}
    taken = as_model_takes(feed, {"a": 2, "b": 2, "c": 0})
    assert {name: array.shape for name, array in taken.items()} == {"a": (1, 3), "b": (2, 5), "c": ()}
    assert all(isinstance(array, np.ndarray) for array in taken.values())


def test_a_runner_of_batches_stands_alone(tiny: Path) -> None:
    """Nothing is between a query and the engine where nothing is needed, for the benchmark's sake."""
    with (
        load_model(tiny / "tiny.onnx", "onnxruntime", 1) as runner,
        backend("onnxruntime").load(tiny / "tiny.onnx", num_threads=1) as plain,
    ):
        assert type(runner) is type(plain)


def test_every_row_is_answered_as_by_the_model_itself(detector: Path, command: Command) -> None:
    said = command("infer", "vad.onnx", "--data", "evaluation.npz", "-o", "answers.json")
    assert said.status == 0, said.err
    answers, data = read_outputs(Path("answers.json")), rows(64, 3)
    assert {name: array.shape for name, array in answers.items()} == {"speech": (64, 1), "next": (64, 2, 1, 16)}
    with backend("reference").load(detector / "vad.onnx", num_threads=1) as runner:
        for row in (0, 1, 63):
            feed = {"input": data["input"][row : row + 1], "state": data["state"][row], "sr": data["sr"][row, ...]}
            expected = runner.infer({name: np.asarray(array) for name, array in feed.items()})
            assert answers["next"][row] == pytest.approx(expected["next"], abs=1e-5)
            assert answers["speech"][row] == pytest.approx(expected["speech"][0], abs=1e-5)


def test_a_whole_run_and_its_bundle(detector: Path, command: Command) -> None:
    said = command("run", "plan.toml")
    assert said.status == 0, said.err
    report = json.loads((detector / "trtforge-report/report.json").read_text())
    assert [row["name"] for row in report["variants"]] == ["fp32@onnxruntime", "fp16@onnxruntime", "int8@onnxruntime"]
    assert not [row["failures"] for row in report["variants"] if row["failures"]]
    assert [row["num_int8"] > 0 for row in report["variants"]] == [False, False, True]
    plan = detector / "plan.toml"
    plan.write_text(PLAN + '[pack]\nbackends = ["onnxruntime"]\n')
    device = unpacked(packed(command, plan))
    said = command("run", device / "plan.toml", "--store", device / "store")
    assert said.status == 0, said.err


def test_the_verbs_on_files_take_rows_too(detector: Path, command: Command) -> None:
    data = ("--data", "calibration.npz", "--allow", "few")
    assert command("quantize", "vad.onnx", *data, "--target", "onnxruntime", "-o", "int8.onnx").status == 0
    assert command("bisect", "vad.onnx", "int8.onnx", "--data", "evaluation.npz").status == 0
    said = command("validate", "vad.onnx", "int8.onnx", "--precision", "int8", "--data", "evaluation.npz")
    assert said.status == 0, said.err
    said = command("benchmark", "vad.onnx", "--data", "evaluation.npz", "--batch-sizes", 2)
    assert said.status == 2
    assert "[benchmark] batch_sizes has 2, but the model's batch is fixed at 1" in said.err


def test_what_does_not_fit_says_what_is_expected_of_a_row(detector: Path) -> None:
    specs = input_specs_from_onnx(detector / "vad.onnx")
    assert [spec.is_whole for spec in specs] == [False, True, True]
    flat = rows(8, 0) | {"state": np.zeros((8, 2, 16), np.float32)}
    np.savez(detector / "flat.npz", **flat)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"input 'state' is float32 \(1, 2, 16\), the model takes \(N, 2, [1?], 16\)"):
        open_samples(DataSource("flat.npz"), specs, Preprocess())
    samples = open_samples(DataSource("evaluation.npz"), specs, Preprocess())
    with pytest.raises(DataError, match=r"input '(input|state)' .*(one sample at a time|only); set batch_size = 1"):
        next(samples.batches(4))
