"""The recipe of the nightly job: it is YAML, and its lines are run as a runner would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.nightly.report import OWN
from pipeline.source_files import ROOT
from tests.pipeline.nightly.fleets import UNGATED, change, fleet_of

RECIPE = ROOT / "examples/ci/nightly.yml"


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (extra fleet brings it)")
    return dict(yaml.safe_load(RECIPE.read_text()))


def steps(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    (job,) = recipe["jobs"].values()
    return list(job["steps"])


def runner_in(folder: Path) -> dict[str, str]:
    """The environment of a runner whose checkout is that folder."""
    command = folder / "bin/trtforge"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}


def run_steps(recipe: dict[str, Any], folder: Path, environment: dict[str, str]) -> list[int]:
    """Exit status of each step that runs lines; after one that failed only what runs always does."""
    statuses: list[int] = []
    for step in steps(recipe):
        if "run" in step and (not any(statuses) or step.get("if") == "always()"):
            done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=folder, env=environment, check=False)
            statuses.append(done.returncode)
    return statuses


@pytest.mark.slow
def test_a_night_and_the_next_one(recipe: dict[str, Any], plan: Path) -> None:
    fleet = fleet_of(plan, "a", text=UNGATED)
    environment = runner_in(fleet.parent)
    assert run_steps(recipe, fleet.parent, environment) == [0, 0, 0]
    assert "Night 1: 1 line, 1 made" in (fleet.parent / "summary.md").read_text()
    assert {path.name for path in (fleet.parent / "nightly").iterdir()} <= OWN, "what is uploaded is the report"
    change(fleet.parent / "a/plan.toml", "tiny.onnx", "none.onnx")
    assert run_steps(recipe, fleet.parent, environment) == [0, 2, 0]
    assert "Night 2: 1 line, 0 made, 0 unchanged; 1 to look at" in (fleet.parent / "summary.md").read_text()
    night = json.loads((fleet.parent / "nightly/nightly.json").read_text())
    assert night["exit_status"] == 2


def test_what_outlives_the_job_is_not_cleaned(recipe: dict[str, Any]) -> None:
    (checkout,) = [step for step in steps(recipe) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"] == {"clean": False}
    assert recipe["concurrency"] == "nightly"
    (upload,) = [step for step in steps(recipe) if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert (upload["if"], upload["with"]["path"]) == ("always()", "nightly")
