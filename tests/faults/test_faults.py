"""Kills, full disks, two writers, broken inputs: a part of each always, all of them where there is time (`-m long`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.broken_files import FILES, KINDS, all_broken
from tests.faults.scenarios import SCENARIOS
from tests.faults.shim import Shim, built, why_not

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is one")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder to work in, with the library that injects faults."""
    built(tmp_path)
    return tmp_path


def lines_of(module: str, work: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a run of one of the drivers prints."""
    environment = Shim(work).environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", str(work), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def only(*names: str) -> list[str]:
    return [part for name in names for part in ("--only", name)]


def wrong(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["faults"]]


def test_kills_leave_the_old_or_the_new(work: Path) -> None:
    lines = lines_of("injection", work, "--every", "12", *only("build again", "calibrate again", "validate", "export"))
    assert len(lines) >= 8
    assert wrong(lines) == []


def test_kills_in_a_run(work: Path) -> None:
    lines = lines_of("injection", work, "--every", "110", *only("run"))
    assert len(lines) >= 4
    assert wrong(lines) == []


def test_kills_in_a_night(work: Path) -> None:
    lines = lines_of("injection", work, "--every", "100", *only("nightly"))
    assert len(lines) >= 4
    assert wrong(lines) == []


def test_kills_leave_a_baseline_its_generations_and_whole_results(work: Path) -> None:
    lines = lines_of("injection", work, "--every", "9", *only("baseline set", "baseline rollback", "store gc"))
    assert len(lines) >= 12
    assert wrong(lines) == []


def test_a_full_disk_is_a_sentence_and_leaves_nothing(work: Path) -> None:
    names = only("build again", "lint", "ranges convert", "calibrate")
    lines = lines_of("injection", work, "--kind", "full disk", "--every", "12", *names)
    assert len(lines) >= 6
    assert wrong(lines) == []
    assert {line["status"] for line in lines} <= {0, 3}


def test_two_writers_are_both_right(work: Path) -> None:
    names = only("build again", "export", "calibrate", "run")
    lines = lines_of("injection", work, "--kind", "two writers", "--every", "8", *names)
    assert len(lines) >= 4
    assert wrong(lines) == []


def test_broken_inputs_are_sentences(work: Path) -> None:
    lines = lines_of("feeding", work, "--every", "16", "--quick")
    assert len(lines) >= 30
    assert wrong(lines) == []
    names = [broken.name for broken in all_broken(work / "template")]
    assert len(names) == len(set(names)) >= 300
    assert len(FILES) + len(KINDS) > 30


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["kill", "full disk", "two writers"])
def test_every_call_of_every_scenario(kind: str, work: Path) -> None:
    lines = lines_of("injection", work, "--kind", kind, "--every", "2" if kind == "kill" else "4")
    assert {line["scenario"] for line in lines} == set(SCENARIOS)
    assert wrong(lines) == []


@pytest.mark.slow
@pytest.mark.long
def test_every_broken_input(work: Path) -> None:
    lines = lines_of("feeding", work)
    assert len(lines) >= 300
    assert wrong(lines) == []


@pytest.mark.slow
@pytest.mark.long
def test_broken_inputs_to_real_processes(work: Path) -> None:
    lines = lines_of("feeding", work, "--every", "25", "--processes", "--quick")
    assert wrong(lines) == []
