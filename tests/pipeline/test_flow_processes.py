"""Several runs of one plan at once, and runs that are killed: each result is whole, and the next run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.plan_folder import change

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 300
"""How long a process may take on a machine that has much else to do."""


def command(folder: Path, **environment: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "pipeline", "validate", str(folder / "plan.toml")]
    return subprocess.Popen(
        [*arguments, "--store", str(folder / "store")],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def whole(store: Path) -> bool:
    """Nobody's leavings, and every result complete."""
    entries = [path for path in store.glob("*/*") if path.parent.name != "tmp"]
    return not list((store / "tmp").iterdir()) and all((entry / "result.json").is_file() for entry in entries)


@pytest.mark.slow
def test_two_runs_of_one_plan_at_once_are_both_right(folder: Path) -> None:
    both = [command(folder) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE_SECONDS) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(said[0][0].splitlines()) == 3
    assert said[0][0] == said[1][0], "the same results, by path"
    assert whole(folder / "store")


STUCK = '''
import os, pathlib, sys, time
import numpy as np

HERE = pathlib.Path(__file__).parent

def batches():
    """Hangs in the process that a stage starts, and tells its number."""
    if sys.argv[0] == "-c" and not (HERE / "go").exists():
        (HERE / "number.tmp").write_text(str(os.getpid()))
        (HERE / "number.tmp").rename(HERE / "number")
        time.sleep(1000)
    yield np.random.default_rng(3).normal(size=(12, 4, 8, 8)).astype(np.float32), np.arange(12) % 3
'''


def wait_for(what: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def is_alive(number: int) -> bool:
    """Whether the process is there and not a zombie that nobody has collected yet."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def stuck(folder: Path) -> Path:
    """A plan whose first `infer` hangs as long as there is no file `go`."""
    (folder / "stuck_data_of_test_flow_processes.py").write_text(STUCK)
    change(folder, '{ path = "data.npz", inputs = { image = "x_evaluation" }, labels = "y_evaluation" }',
           '"stuck_data_of_test_flow_processes:batches"')  # fmt: skip
    change(folder, 'metric = "top1"', 'metric = ""')
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a child that dies with its parent is Linux's")
def test_a_killed_run_takes_its_processes_with_it_and_the_next_one_goes_on(stuck: Path) -> None:
    process = command(stuck)
    assert wait_for((stuck / "number").exists), "it did not come so far"
    child = int((stuck / "number").read_text())
    assert is_alive(child)

    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_SECONDS)

    assert wait_for(lambda: not is_alive(child)), "it works on for nobody"
    assert list((stuck / "store" / "tmp").iterdir()), "a killed run cannot clean up"
    (stuck / "go").touch()
    again = command(stuck)
    _, said = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, said
    assert "export" in said
    assert next(line for line in said.splitlines() if " export " in line).endswith("served"), "it goes on from there"
    assert whole(stuck / "store")


@pytest.mark.slow
def test_an_interrupted_run_ends_its_process_and_cleans_up(stuck: Path) -> None:
    process = command(stuck)
    assert wait_for((stuck / "number").exists), "it did not come so far"
    child = int((stuck / "number").read_text())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert wait_for(lambda: not is_alive(child))
    assert whole(stuck / "store")
