"""What CONTRIBUTING promises of a new backend, precision, kind of source, stage and verb: a file or a record each.

Each made-up one is put into a copy of the program, which then runs a whole plan with all of them, as a user would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "calibration", "engines")

BACKEND = '''"""A made-up runtime: onnx's evaluator under another name."""

from dataclasses import replace

from engines.backends import reference
from engines.backends.reference import (
    CAN_BUILD, GPU, INSTALL, NEEDS_RANGES, OBEYS, PLACEMENT, STREAMS, SUFFIX, TAKES, layer_times, load, refuse,
    versions, why_not_build, why_not_run,
)

NAME = "abacus"


def build(model, engine, options):
    return replace(reference.build(model, engine, options), backend=NAME)
'''

PRECISION = """
PRECISIONS["fp16x"] = Precision("fp16x", weight_bits=16, activation_bits=16, order=30, needs_ranges=True)
"""

SOURCE = '''"""A made-up kind of source: ONNX written as text."""

import onnx.parser

from pipeline.artifact import Engine, Source
from pipeline.sources.contract import Converted

WHAT = ".net"


class TextNetwork(Source):
    """A network in ONNX's own syntax."""

    KIND = "text"


def recognises(path):
    return path.suffix == ".net"


def source(path, _signature):
    return TextNetwork(path)


def to_onnx(source, out, how):
    return Converted(onnx.parser.parse_model(source.path.read_text()))


def trained(source, exported, runner):
    return Engine(exported.path, runner)
'''

STAGE = '''"""Write the made-up precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx

from calibration.graph.external_data import model_from_file
from calibration.precision.fp16 import fp16_from_onnx, named
from pipeline.artifact import OnnxModel, Ranges
from pipeline.option import option
from pipeline.stage import Stage


@dataclass(frozen=True)
class Halve(Stage):
    """Write the made-up precision."""

    WRITES: ClassVar[tuple[str, ...]] = ("fp16x",)
    RESULT: ClassVar[str] = "models"
    gently: bool = option(True, "whether it is done gently")

    def __call__(self, out: Path, model: OnnxModel, ranges: Ranges) -> OnnxModel:
        """Write ``out/model.onnx``."""
        onnx.save(fp16_from_onnx(named(model_from_file(model.path)), keep_fp32=()), out / "model.onnx")
        return OnnxModel(out / "model.onnx")
'''

VERB = '''"""FP32 ONNX -> the made-up precision."""

from pathlib import Path

import click

from pipeline.command.options import STORE
from pipeline.command.plan_run import by_plan


@click.command()
@click.argument("plan", type=Path)
@STORE
def halve(plan: Path, store: Path):
    """Write the made-up precision into PLAN.toml's model."""
    return by_plan(plan, store, "halve")
'''

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {0.5, -0.5}>
{ [fc] xw = MatMul(x, w) [bias] y = Add(xw, b) }
"""

PLAN = """
[model]
source = "model.net"
[model.inputs.x]
min = [1, 4]
opt = [1, 4]
max = [16, 4]
[data]
calibration = { path = "data.npz", inputs = { x = "calibration" } }
evaluation = { path = "data.npz", inputs = { x = "evaluation" } }
[variants]
precisions = ["fp32", "fp16x"]
backends = ["abacus"]
[lint]
allow = ["range", "classes"]
[halve]
gently = false
[validate.fp16x]
min_cosine = 0.99
[calibrate]
runner = "reference"
[benchmark.protocol]
min_seconds = 0.05
[report]
html = false
"""


def changed(file: Path, old: str, new: str) -> None:
    """Replace a text that stands in the file once."""
    source = file.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{file}: '{old}'"
    file.write_text(source.replace(old, new), encoding="utf-8")


def program_in(folder: Path) -> Path:
    """A copy of the program in a folder."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with one made-up thing of each kind."""
    root = program_in(tmp_path_factory.mktemp("program"))
    (root / "engines/backends/abacus.py").write_text(BACKEND)
    (root / "pipeline/sources/text.py").write_text(SOURCE)
    (root / "pipeline/stages/halve.py").write_text(STAGE)
    (root / "pipeline/command/verbs/models/halve.py").write_text(VERB)
    records = root / "engines/precision.py"
    records.write_text(records.read_text() + PRECISION)
    plan = root / "pipeline/plan.py"
    changed(
        plan,
        "    tolerate: Tolerate = Tolerate()\n",
        "    halve: Halve = Halve()\n    tolerate: Tolerate = Tolerate()\n",
    )
    changed(plan, "from pipeline.stages.infer ", "from pipeline.stages.halve import Halve\nfrom pipeline.stages.infer ")
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that asks for all of them."""
    folder = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(5)
    calibration, evaluation = (random.standard_normal((80, 4)).astype(np.float32) for _ in range(2))
    np.savez(folder / "data.npz", calibration=calibration, evaluation=evaluation)
    (folder / "model.net").write_text(NETWORK)
    (folder / "plan.toml").write_text(PLAN)
    return folder


def trtforge(program: Path, work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command of the copy."""
    environment = os.environ | {"PYTHONPATH": str(program), "XDG_CACHE_HOME": str(work / "cache")}
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)


def test_a_plan_runs_with_what_was_added(program: Path, work: Path) -> None:
    done = trtforge(program, work, "run", "plan.toml")
    assert done.returncode == 0, done.stderr
    report = json.loads((work / "trtforge-report" / "report.json").read_text())
    assert [variant["name"] for variant in report["variants"]] == ["fp32@abacus", "fp16x@abacus"]
    assert [variant["precision"] for variant in report["variants"]] == ["fp32", "fp16x"]
    assert report["variants"][1]["failures"] == []
    assert report["variants"][1]["latency_ms"] is not None
    assert "halve" in {stage["stage"] for stage in report["served"]}


def test_the_verb_is_there_and_its_result_is_served(program: Path, work: Path) -> None:
    trtforge(program, work, "run", "plan.toml")
    done = trtforge(program, work, "halve", "plan.toml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fp16x@abacus\t")
    assert [line.split()[-2:] for line in done.stderr.splitlines() if " halve " in line] == [["served", "fp16x@abacus"]]


def test_help_and_refusals_know_them(program: Path, work: Path) -> None:
    assert "  halve      FP32 ONNX -> the made-up precision\n" in trtforge(program, work, "--help").stdout
    assert "[abacus|litert|onnxruntime|" in trtforge(program, work, "infer", "--help").stdout
    assert "[fp32|fp16|int16x8|dynamic|int8|fp16x]" in trtforge(program, work, "build", "--help").stdout
    assert (
        ".onnx, .pt2, module:function (PyTorch), SavedModel folder (with saved_model.pb), .net, .tflite\n"
        in trtforge(program, work, "export", "no.txt").stderr
    )


def test_what_editors_and_file_systems_leave_beside_files_is_no_part_of_the_program(program: Path, work: Path) -> None:
    for room in ("engines/backends", "pipeline/sources", "pipeline/command/verbs/plans", "pipeline/stages"):
        (program / room / "._run.py").write_bytes(b"\x00\x05\x16\x07")
        (program / room / ".#run.py").symlink_to("somebody@somewhere.1")
    done = trtforge(program, work, "halve", "plan.toml")
    assert done.returncode == 0, done.stderr
    assert "._run" not in trtforge(program, work, "--help").stdout
