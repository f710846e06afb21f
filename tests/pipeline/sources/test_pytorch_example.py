"""The example of PyTorch runs: a network is trained, exported, calibrated, built, and held to what torch answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.store import Store
from tests.made import QUICK_PROTOCOL

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "pytorch"


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("digits_model.py", "plan.toml"):
        shutil.copy(EXAMPLE / name, tmp_path)
    monkeypatch.chdir(tmp_path)  # Where the function looks for its weights.
    subprocess.run([sys.executable, "digits_model.py"], env=os.environ | {"EPOCHS": "2"}, check=True)
    plan_file = tmp_path / "plan.toml"
    plan_file.write_text(plan_file.read_text() + QUICK_PROTOCOL)
    made = run(read_plan(plan_file), Store(tmp_path / "store"), until="benchmark")
    assert made.source_verdict is not None
    verdict = made.source_verdict.read()
    assert verdict["passed"], "ONNX answers as torch"
    assert {variant.name: made.verdicts[variant].read()["passed"] for variant in made.models} == {
        "fp32@onnxruntime": True,
        "fp16@onnxruntime": True,
        "int8@onnxruntime": True,
    }
    assert json.loads(made.fp32.beside("notes.json").read_text())[0].endswith("are written as GlobalAveragePool: 1")
