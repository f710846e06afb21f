"""A reader of stdout that goes, as `head` does, changes no exit status."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.page.until_closed import UntilClosed, until_closed
from pipeline.source_files import ROOT

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

PROGRAM = f"{shlex.quote(sys.executable)} -m pipeline"


def statuses(line: str) -> tuple[list[int], str]:
    """Of each program of a pipe, and what it says."""
    program = ["bash", "-c", f'{line}; echo "${{PIPESTATUS[@]}}"']
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    return [int(status) for status in done.stdout.splitlines()[-1].split()], done.stderr


@pytest.mark.parametrize(("budget", "status"), [("size_mib <= 0.00001", 5), ("size_mib <= 10", 0)])
def test_a_gate_ends_as_it_decided(tiny: Path, budget: str, status: int) -> None:
    gate = f"{PROGRAM} gate --candidate tiny.onnx --data data.npz --budget '{budget}' --html"
    assert statuses(f"{gate} | true")[0] == [status, 0]
    assert (tiny / "trtforge-gate" / "gate.json").is_file()
    assert statuses(f"{gate} 2>&1 | true")[0] == [status, 0]


def test_an_error_is_one_still(tiny: Path) -> None:
    assert statuses(f"{PROGRAM} ranges show nowhere | true") == ([2, 0], statuses(f"{PROGRAM} ranges show nowhere")[1])


def test_what_comes_after_is_dropped_and_the_descriptor_is_whole() -> None:
    reading, writing = os.pipe()
    with UntilClosed(writing, "w") as file:
        assert file.write(b"one\n") == 4
        assert os.read(reading, 100) == b"one\n"
        os.close(reading)
        assert file.write(b"two\n") == 4
        assert file.write(memoryview(b"three\n")) == 6
        assert os.write(writing, b"of a child\n") == 11


def test_a_full_disk_is_an_error() -> None:
    with UntilClosed(os.open("/dev/full", os.O_WRONLY), "w") as file, pytest.raises(OSError, match="No space left"):
        file.write(b"one\n")


def test_what_is_no_descriptor_of_the_process_stays() -> None:
    stream = io.StringIO()
    assert until_closed(stream) is stream
