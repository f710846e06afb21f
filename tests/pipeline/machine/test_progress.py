"""Progress: a line on a terminal once patience is over, and nothing at all anywhere else."""

from __future__ import annotations

import logging
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.machine import progress
from pipeline.machine.progress import Bar, Phases, counting, track, waiting, working
from tests.terminal import read_until_closed

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import sys
from pipeline.machine import progress
progress.PATIENCE_SECONDS = {patience}
for step in progress.track(range(4), 4, "calibrate"):
    if step == 2:
        sys.stdin.readline()
with progress.waiting("build int8"):
    sys.stdin.readline()
print("result")
"""
"""It goes on when it is told that its line was seen."""


def run_on_a_terminal(patience: float, *expected: str) -> tuple[str, str]:
    """stdout, a pipe, and stderr, a terminal, of the script above, each of whose lines is waited for."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT.format(patience=patience)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as running:
        os.close(theirs)
        assert running.stdin is not None
        assert running.stdout is not None
        seen = b""
        for pattern in expected or ("", ""):
            while not re.search(pattern, without_codes(seen)):
                assert select.select([ours], [], [], 300)[0], f"no {pattern}"
                seen += os.read(ours, 4096)
            running.stdin.write(b"\n")
            running.stdin.flush()
        seen += read_until_closed(ours)
        out = running.stdout.read().decode()
    os.close(ours)
    assert running.returncode == 0
    return out, seen.decode()


def without_codes(seen: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))


def test_a_terminal_sees_a_bar_and_a_clock() -> None:
    out, err = run_on_a_terminal(0.05, r"calibrate .*[1-3]/4", r"build int8 +0:\d\d:\d\d")
    assert out == "result\n"
    assert err.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h")), "the line is taken away, the cursor is back"


def test_a_terminal_sees_nothing_of_what_is_quick() -> None:
    assert run_on_a_terminal(1000.0) == ("result\n", "")


def test_a_pipe_sees_nothing() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT.format(patience=0.0)]
    done = subprocess.run(command, input="\n\n", env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\n", "")


def test_patience_is_two_seconds() -> None:
    assert progress.PATIENCE_SECONDS == 2.0


def closings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    closed: list[bool] = []
    close = Bar.close

    def noted(bar: Bar) -> None:
        closed.append(True)
        close(bar)

    monkeypatch.setattr(Bar, "close", noted)
    return closed


def test_track_gives_all_items_and_ends_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = closings(monkeypatch)
    assert list(track(iter("abc"), 3, "x")) == ["a", "b", "c"]
    assert closed == [True]


def test_a_bar_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = closings(monkeypatch)
    with pytest.raises(ZeroDivisionError), waiting("x"):
        raise ZeroDivisionError
    assert closed == [True]


def test_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    before = threading.active_count()
    bar = Bar("x", 3)
    assert threading.active_count() == before + 1
    bar.to(2)
    bar.close()
    bar.close()
    deadline = time.monotonic() + 300
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_bar_that_comes_too_late_is_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("x", 3)
    bar.close()
    progress._AT_WORK._show(bar)  # The timer's thread was past `cancel` already.
    progress._AT_WORK._say(bar)
    bar.to(3)
    assert capsys.readouterr() == ("", "")


def test_phases_follow_each_other_and_never_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[tuple[str, int, list[int]]] = []

    class Seen(Bar):
        def __init__(self, what: str, total: int) -> None:
            super().__init__(what, total)
            bars.append((what, total, []))

        def to(self, done: int) -> None:
            bars[-1][2].append(done)

    monkeypatch.setattr(progress, "Bar", Seen)
    with Phases("build") as phases:
        for told in (("Building", 0, 6), ("Building", 2, 6), ("Building", 1, 6), ("Serializing", 1, 1)):
            phases.update(told)
    assert bars == [
        ("build", 0, []),
        ("build: Building", 6, [0, 2, 2]),
        ("build: Serializing", 1, [1]),
    ]


PLAIN_SCRIPT = """
import sys
from pipeline.machine import progress
progress.PATIENCE_SECONDS = progress.PLAIN_SECONDS = 0.02
with progress.working("tolerate int8@onnxruntime"), progress.counting("draws", 8) as on_draw:
    on_draw(3)
    sys.stdin.readline()
print("result")
"""


def test_a_pipe_is_told_of_a_stage_again_and_again() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PLAIN_SCRIPT]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        lines = [running.stderr.readline() for _ in range(2)]
        out, _ = running.communicate("\n", timeout=300)
    assert out == "result\n"
    assert all(
        re.fullmatch(r"trtforge: tolerate int8@onnxruntime: draws( 3/8)?(, \d+ s)? ...\n", line) for line in lines
    )


STAGE_SCRIPT = """
import sys
from pipeline.machine import progress
progress.PATIENCE_SECONDS = 0.05
with progress.working("infer int8@tensorrt"):
    with progress.counting("infer model.onnx with tensorrt", 7) as on_sample:
        on_sample(5)
        sys.stdin.readline()
    sys.stdin.readline()
print("result")
"""


def test_a_terminal_sees_one_line_for_a_stage_and_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", STAGE_SCRIPT.replace("0.05", "{patience}"))
    out, err = run_on_a_terminal(0.05, r"infer int8@tensorrt .*5/7", r"infer int8@tensorrt +0:\d\d:\d\d")
    assert out == "result\n"
    assert "model.onnx" not in err


def test_verbose_tells_stages_and_steps_when_they_begin(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pipeline.machine.progress")
    with working("tolerate int8@onnxruntime"):
        with waiting("ranges on each half of the samples"):
            pass
        with counting("draws", 64) as on_draw:
            on_draw(12)
    assert [record.getMessage() for record in caplog.records] == [
        "tolerate int8@onnxruntime",
        "tolerate int8@onnxruntime: ranges on each half of the samples",
        "tolerate int8@onnxruntime: draws",
    ]


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_a_stage_works_where_nothing_can_be_told(stderr: str) -> None:
    script = """
import time
from pipeline.machine import progress
progress.PATIENCE_SECONDS = 0.0
with progress.working("infer int8@onnxruntime"), progress.waiting("samples"):
    time.sleep(0.5)
print("result")
"""
    command = ["sh", "-c", f'exec "$0" -c "$1" {stderr}', sys.executable, script]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "result\n"
