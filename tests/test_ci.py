"""The CI recipes and the script before a deployment are run, as a runner would run their lines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.conftest import plan_in, tiny_in

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "examples" / "ci"

GATE = """
[gate]
budgets = ["size_mib <= 1", "p50_ms <= 10000", "p50_ms <= 99 x baseline"]
max_other_load = 1.0
max_other_load_relative = 1.0
max_drift = inf
html = false
pays = false

[gate.pairing]
max_seconds = 600.0
reload = false

[validate.int8]
max_metric_drop = 1.0
min_cosine = 0.0
"""


def runner_in(folder: Path) -> dict[str, str]:
    """The environment of a runner that has the command `trtforge`, in a folder with a plan that can be gated."""
    plan = folder / "plan.toml"
    plan.write_text(plan.read_text() + GATE)
    command = folder / "bin" / "trtforge"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return os.environ | paths | {"TRTFORGE": str(command)}


@pytest.fixture
def runner(plan: Path) -> dict[str, str]:
    return runner_in(plan.parent)


@pytest.fixture(scope="module")
def first_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is done once, by hand: gate without a baseline, and take it as the first."""
    folder = tmp_path_factory.mktemp("first")
    tiny_in(folder)
    plan_in(folder)
    environment = runner_in(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first = shell("trtforge gate plan.toml --baseline last-good -o trtforge-gate", environment)
        assert first.returncode == 6, first.stderr
        assert shell("trtforge baseline set last-good trtforge-gate --first", environment).returncode == 0
    return folder / ".trtforge"


def github_lines() -> list[str]:
    """What each step runs, in order."""
    text = (RECIPES / "github-actions.yml").read_text()
    blocks = re.findall(r"^        run: \|\n((?:          .*\n)+)", text, re.MULTILINE)
    return [re.sub(r"^ {10}", "", block, flags=re.MULTILINE) for block in blocks]


def gitlab_lines() -> list[str]:
    """The lines of `script`."""
    block = re.search(r"^  script:\n((?:    - .*\n)+)", (RECIPES / "gitlab-ci.yml").read_text(), re.MULTILINE)
    assert block is not None
    return [line.removeprefix("    - ") for line in block[1].splitlines()]


def shell(text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As both runners do: stop at the first error."""
    return subprocess.run(["bash", "-e", "-c", text], env=environment, capture_output=True, text=True, check=False)


def test_github_actions(runner: dict[str, str], tiny: Path, first_store: Path) -> None:
    gate, summary, keep = github_lines()
    shutil.copytree(first_store, tiny / ".trtforge", symlinks=True)
    environment = runner | {"GITHUB_STEP_SUMMARY": str(tiny / "summary.md")}
    done = shell(gate, environment)
    assert done.returncode == 0, done.stderr
    assert shell(summary, environment).returncode == 0
    assert (tiny / "summary.md").read_text().startswith("### ✅ int8@onnxruntime may ship")
    assert shell(keep, environment).stdout == ".trtforge/baselines/last-good\n"

    # The workspace is not cleaned between jobs: what a gate that could not run leaves is not the summary of the last.
    (tiny / "plan.toml").write_text("[gate]\n")
    assert shell(gate, environment).returncode == 2
    assert shell(summary, environment).returncode == 0
    assert (tiny / "summary.md").read_text().count("###") == 1
    assert not (tiny / "trtforge-gate").exists()


def test_gitlab(runner: dict[str, str], tiny: Path, first_store: Path) -> None:
    shutil.copytree(first_store, tiny / ".trtforge", symlinks=True)
    on_main = runner | {"CI_COMMIT_BRANCH": "main", "CI_DEFAULT_BRANCH": "main"}
    done = shell("\n".join(gitlab_lines()), on_main)
    assert done.returncode == 0, done.stderr
    text = (RECIPES / "gitlab-ci.yml").read_text()
    report = re.search(r"junit: (\S+)", text)
    assert report is not None
    root = ET.parse(tiny / report[1]).getroot()
    assert root.get("failures") == root.get("errors") == "0"
    assert ".trtforge" in text.partition("GIT_CLEAN_FLAGS:")[2].splitlines()[0], "the baseline outlives the job"


def predeploy(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "predeploy"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_predeploy_prints_what_may_ship(runner: dict[str, str], plan: Path) -> None:
    first = predeploy(runner, "plan.toml")
    assert first.returncode == 0, first.stderr
    engine = Path(first.stdout.splitlines()[-1])
    assert engine.is_file()
    assert engine.parent.parent == Path(".trtforge/baselines/last-good")

    plan.write_text(plan.read_text().replace("size_mib <= 1", "size_mib <= 0.000001"))
    second = predeploy(runner, "plan.toml")
    assert second.returncode == 5
    assert second.stdout == ""
    assert "must not ship: int8@onnxruntime: size_mib is " in second.stderr
    kept = json.loads((plan.parent / ".trtforge/baselines/last-good/baseline.json").read_text())
    assert all(check["outcome"] != "fail" for check in kept["checks"]), "what failed is not what was good"


def test_predeploy_is_told_what_it_needs(runner: dict[str, str]) -> None:
    assert predeploy(runner).returncode == 2
    missing = predeploy(runner, "none.toml")
    assert (missing.returncode, missing.stderr) == (2, "predeploy: none.toml: does not exist; give a plan\n")
