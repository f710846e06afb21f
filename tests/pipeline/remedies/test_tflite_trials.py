"""Where INT8 of LiteRT is out of bounds, a run tries what would hold of it, and says so with its cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.artifact import Ranges
from pipeline.flow import run
from pipeline.plan import read_plan, tomllib
from pipeline.remedies.search import find_remedies
from pipeline.remedies.tflite_trials import TfliteTrial, tflite_trials
from pipeline.results import Results, variant_named
from pipeline.store import Store
from tests.made import QUICK_PROTOCOL
from tests.tflite_files import TfliteWriter

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")
pytest.importorskip("tensorflow", reason="TensorFlow is not installed, whose tf2onnx reads the file")

PLAN = """
[model]
source = "net.tflite"
[data]
calibration = { path = "data.npz", inputs = { x = "calibration" } }
evaluation = { path = "data.npz", inputs = { x = "evaluation" } }
[variants]
precisions = ["fp32", "int8"]
backends = ["litert"]
[lint]
allow = ["range"]
[validate.int8]
min_sqnr_db = 20
[report]
html = false
[tolerate]
num_draws = 3
"""
OPTIONS = '[calibrate]\nmethod = "minmax"\n[ptq]\nper_channel = false\n'


def save_spoilt(path: Path) -> Path:
    """Three dense layers; in the second one weight of each row is so large that the others lose their bits.

    What it multiplies is always 0.
    """
    random = np.random.default_rng(0)
    writer = TfliteWriter()
    names = ("x", "first", "spoilt", "y")
    for name, size in zip(names, (8, 16, 16, 3)):
        writer.tensor(name, (1, size))
    weights = [random.normal(size=shape).astype(np.float32) for shape in ((16, 8), (16, 16), (3, 16))]
    weights[0][0], weights[1][:, 0] = 0.0, 400.0
    for data, name, weight in zip(names, names[1:], weights):
        w = writer.constant(f"{name}_w", weight)
        b = writer.constant(f"{name}_b", np.zeros(len(weight), np.float32))
        writer.operator("FULLY_CONNECTED", [data, w, b], [name], "FullyConnectedOptions")
    return writer.save(path, ["x"], ["y"])


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file, data and the plan."""
    folder = tmp_path_factory.mktemp("spoilt")
    save_spoilt(folder / "net.tflite")
    calibration, evaluation = np.random.default_rng(3).normal(size=(2, 66, 8)).astype(np.float32)
    np.savez(folder / "data.npz", calibration=calibration, evaluation=evaluation)
    (folder / "plan.toml").write_text(PLAN + OPTIONS + QUICK_PROTOCOL)
    return folder


@pytest.fixture(scope="module")
def made(spoilt: Path) -> Results:
    return run(read_plan(spoilt / "plan.toml"), Store(spoilt / "store"), "validate")


@pytest.mark.slow
def test_what_costs_least_is_tried_first_and_what_holds_is_told(made: Results, spoilt: Path) -> None:
    plan = read_plan(spoilt / "plan.toml")
    find_remedies(plan, Store(spoilt / "store"), made)
    (remedy,) = made.remedies.values()
    assert remedy.holds
    assert [trial.split(": output ")[0] for trial in remedy.tried] == [
        '[calibrate] method = "auto"',
        '[calibrate] method = "auto" and [ptq] per_channel = true',
    ]
    all_three = '[calibrate] method = "auto" and [ptq] per_channel = true and 1 operator left in FP32'
    assert remedy.sentence.startswith(f"int8@litert would hold with {all_three}: output 'y' has an SQNR of ")
    assert remedy.sentence.endswith(
        "; INT8 then computes 2 of the convolutions and matrix products, 3 now. Write into the plan:"
    )
    keys = {"per_channel": True, "exclude": ["spoilt"]}
    assert tomllib.loads(remedy.toml) == {"calibrate": {"method": "auto"}, "ptq": keys}


@pytest.mark.slow
def test_with_what_holds_the_plan_passes(made: Results, spoilt: Path, command: Command) -> None:
    find_remedies(read_plan(spoilt / "plan.toml"), Store(spoilt / "store"), made)
    (remedy,) = made.remedies.values()
    (spoilt / "better.toml").write_text(PLAN + remedy.toml + QUICK_PROTOCOL)
    passed = command("run", spoilt / "better.toml", "--store", spoilt / "store")
    assert passed.status == 0, passed.err
    assert "1 of 7 operators compute in FP32, as [ptq] exclude has it: FULLY_CONNECTED 'spoilt'." in (
        " ".join(passed.out.split())
    )


@pytest.mark.slow
def test_the_edge_tpu_takes_no_operators_in_float(made: Results, spoilt: Path) -> None:
    plan = read_plan(spoilt / "plan.toml", ["build.edgetpu=true"])
    trials = list(tflite_trials(plan, Store(spoilt / "store"), made, variant_named("int8@litert")))
    assert [trial.changes for trial in trials] == [(), ("per_channel",)]


def test_what_is_to_be_written_is_one_table(tmp_path: Path) -> None:
    trial = TfliteTrial(Ranges(tmp_path), True, ("per_channel", "weight_bits"), ("head", "SOFTMAX"), 1)
    keys = {"per_channel": True, "weight_bits": 8, "exclude": ["head", "SOFTMAX"]}
    assert tomllib.loads(trial.toml()) == {"calibrate": {"method": "auto"}, "ptq": keys}
    assert trial.words() == (
        '[calibrate] method = "auto" and [ptq] per_channel = true and [ptq] weight_bits = 8 and 1 operator left in FP32'
    )
    assert TfliteTrial(Ranges(tmp_path), False).toml() == ""
