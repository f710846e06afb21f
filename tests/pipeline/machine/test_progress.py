"""Progress: a line on a terminal once patience is over, and nothing at all anywhere else."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.machine import progress
from pipeline.machine.progress import Bar, Phases, track, waiting
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


def test_track_gives_all_items_and_ends_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Bar, "close", lambda _self: closed.append(True))
    assert list(track(iter("abc"), 3, "x")) == ["a", "b", "c"]
    assert closed == [True]


def test_a_bar_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Bar, "close", lambda _self: closed.append(True))
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
    bar._timer.join(300)
    assert threading.active_count() == before


def test_a_bar_that_comes_too_late_is_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("x", 3)
    bar.close()
    bar._show()  # The timer's thread was past `cancel` already.
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
