"""A backend that shares a model among providers, through every verb: one of the CPU's alone, in a copy of the program.

Its engines are folders, as those of `onnxruntime_tensorrt` are: built, run, validated, gated and kept as one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.backends import onnxruntime
from tests.test_extension import program_in, trtforge

if onnxruntime.why_not_build():
    pytest.skip(onnxruntime.why_not_build(), allow_module_level=True)

BACKEND = '''"""A made-up backend: ONNX Runtime with the CPU's provider, as one that shares."""

from engines.backends.onnxruntime import ask, refuse, versions, why_not_ask, why_not_build, why_not_run
from engines.contract import LayerTimes
from engines.ort import sharing
from engines.ort.session import CPU

NAME = "shared_cpu"
TAKES, PLACEMENT, CAN_BUILD, GPU, STREAMS, NEEDS_RANGES = "onnx", "tensorrt", True, False, False, False
REFUSES_NODES, HAS_LISTS, OBEYS = False, False, frozenset()
SUFFIX, DESCRIPTION, INSTALL = ".session", sharing.DESCRIPTION, "pip install onnxruntime"
SHARING = sharing.Sharing(NAME, (CPU,), "the first", False, False, versions)


def build(model, engine, options):
    refuse(options)
    return sharing.build(SHARING, model, engine, options)


def load(engine, *, num_threads):
    return sharing.SharedRunner(SHARING, engine, num_threads)


def providers_of(engine):
    return sharing.description_of(engine).shares


def layer_times(engine, feed, num_runs):
    return LayerTimes()
'''
NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {0.5, -0.5}>
{ [fc] xw = MatMul(x, w) [bias] y = Add(xw, b) }
"""
PLAN = """
[model]
source = "model.onnx"
[data]
calibration = { path = "data.npz", inputs = { x = "calibration" } }
evaluation = { path = "data.npz", inputs = { x = "evaluation" } }
[variants]
precisions = ["fp32", "int8"]
backends = ["shared_cpu"]
[lint]
allow = ["range", "classes"]
[validate.int8]
min_cosine = 0.9
derived = false
[benchmark.protocol]
min_seconds = 0.05
[gate]
candidate = "int8@shared_cpu"
baseline = "fp32@shared_cpu"
budgets = ["num_fallback_nodes <= 0", "size_mib <= 1"]
sampled = false
"""
TWO = {
    "provider": "CPUExecutionProvider",
    "nodes": ["fc", "bias"],
    "operators": {"MatMul": 1, "Add": 1},
    "segments": [],
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = program_in(tmp_path_factory.mktemp("program"))
    (root / "engines/backends/shared_cpu.py").write_text(BACKEND)
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(5)
    calibration, evaluation = (random.standard_normal((80, 4)).astype(np.float32) for _ in range(2))
    np.savez(folder / "data.npz", calibration=calibration, evaluation=evaluation, x=evaluation)
    onnx.save(onnx.parser.parse_model(NETWORK), folder / "model.onnx")
    (folder / "plan.toml").write_text(PLAN)
    return folder


@pytest.fixture(scope="module")
def engine(program: Path, work: Path) -> Path:
    done = trtforge(program, work, "build", "model.onnx", "--backend", "shared_cpu", "-o", "own.session")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 nodes run on the first." in done.stderr
    return work / "own.session"


def test_a_plan_says_which_node_ran_where_and_what_was_expected(program: Path, work: Path) -> None:
    done = trtforge(program, work, "run", "plan.toml")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 nodes run on the first." in done.stdout
    report = json.loads((work / "trtforge-report" / "report.json").read_text())
    full, int8 = report["variants"]
    assert full["providers"] == [TWO]
    assert (full["num_fallback_nodes"], full["num_fallback_predicted"]) == (0, 0)
    assert full["notes"][-1].startswith("onnxruntime 1.")
    assert full["notes"][-1].endswith(" let expect none to run elsewhere, in 1 segment.")
    assert len(int8["providers"][0]["nodes"]) > 2
    assert int8["num_int8"] == -1, "nobody tells"
    page = (work / "trtforge-report" / "report.html").read_text()
    assert "nodes run on the first" in page
    assert ", 0 nodes run elsewhere</td>" in page


def test_a_budget_holds_what_runs_elsewhere(program: Path, work: Path) -> None:
    done = trtforge(program, work, "gate", "plan.toml")
    gate = json.loads((work / "trtforge-gate" / "gate.json").read_text())
    check = next(check for check in gate["checks"] if check["quantity"] == "num_fallback_nodes")
    assert (check["outcome"], check["estimate"], check["sentence"]) == (
        "pass", 0, "num_fallback_nodes is 0, within <= 0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_folder_is_run_validated_and_replaced_as_one(program: Path, work: Path, engine: Path) -> None:
    data = ("--backend", "shared_cpu", "--data", "data.npz")
    assert trtforge(program, work, "infer", "own.session", *data, "-o", "outputs.json").returncode == 0
    done = trtforge(program, work, "validate", "model.onnx", "own.session", *data)
    assert done.returncode == 0, done.stderr
    again = trtforge(program, work, "build", "model.onnx", "--backend", "shared_cpu", "-o", "own.session")
    assert again.returncode == 0, again.stderr
    assert json.loads((work / "own.session.json").read_text())["providers"] == [TWO]
    (work / "other").mkdir(exist_ok=True)
    (work / "other" / "mine.txt").touch()
    done = trtforge(program, work, "build", "model.onnx", "--backend", "shared_cpu", "-o", "other")
    assert (done.returncode, "other: is a folder with other files in it; give a new path" in done.stderr) == (2, True)
    done = trtforge(program, work, "infer", "other", *data, "-o", "outputs.json")
    assert (done.returncode, "other: is a folder; give an engine" in done.stderr) == (2, True)
    done = trtforge(program, work, "infer", "own.session", "--data", "data.npz", "-o", "outputs.json")
    assert (done.returncode, "own.session: is a folder; give an engine" in done.stderr) == (2, True)


def test_a_gate_of_files_and_a_baseline_kept_of_it(program: Path, work: Path, engine: Path) -> None:
    files = ("--candidate", "own.session", "--backend", "shared_cpu", "--data", "data.npz", "--no-html")
    anyhow = ("--num-threads", "1", "--max-other-load", "1", "-o", "own-gate")
    held = ("--budget", "num_fallback_nodes <= 0", "--budget", "size_mib <= 1")
    done = trtforge(program, work, "gate", *files, *anyhow, *held)
    assert done.returncode == 0, done.stderr
    done = trtforge(program, work, "baseline", "set", "shared", "own-gate")
    assert done.returncode == 0, done.stderr
    stored = work / ".trtforge" / "baselines" / "shared" / "engine" / "own.session"
    assert sorted(file.name for file in stored.iterdir() if file.is_file()) == ["model.onnx", "session.json"]
    done = trtforge(
        program, work, "gate", *files, *anyhow, "--baseline", "shared", "--budget", "size_mib <= 1.01 x baseline"
    )
    assert done.returncode == 0, done.stderr
    (stored / "session.json").write_text("{}")
    done = trtforge(
        program, work, "gate", *files, *anyhow, "--baseline", "shared", "--budget", "size_mib <= 1.1 x baseline"
    )
    assert (done.returncode, "session.json is not what was set" in done.stderr) == (2, True), done.stderr


def test_more_nodes_elsewhere_than_the_budget_allows(program: Path, work: Path, engine: Path) -> None:
    copied = work / "elsewhere.session"
    shutil.copytree(engine, copied)
    description = json.loads((copied / "session.json").read_text())
    description["shares"] = [
        {"provider": "TensorrtExecutionProvider", "nodes": ["fc"], "operators": {"MatMul": 1}, "segments": [1]},
        {"provider": "CPUExecutionProvider", "nodes": ["bias"], "operators": {"Add": 1}, "segments": []},
    ]
    (copied / "session.json").write_text(json.dumps(description))
    files = ("--candidate", copied.name, "--backend", "shared_cpu", "--data", "data.npz", "--no-html", "-o", "bad-gate")
    done = trtforge(program, work, "gate", *files, "--budget", "num_fallback_nodes <= 0")
    assert (done.returncode, "num_fallback_nodes is 1, above 0" in done.stderr) == (5, True), done.stderr


def test_a_budget_of_an_engine_that_nobody_shares(program: Path, work: Path) -> None:
    files = ("--candidate", "model.onnx", "--data", "data.npz", "--no-html", "-o", "no-gate")
    done = trtforge(program, work, "gate", *files, "--budget", "num_fallback_nodes <= 3")
    assert done.returncode == 2
    assert (
        "'num_fallback_nodes <= 3': onnxruntime runs all nodes of model.onnx itself; leave the budget out"
        in done.stderr
    )
