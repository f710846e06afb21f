"""What a worker does for a request: one process, JSON in and out, and an answer whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.remote.device_files import DEVICE_LOCK, is_taken
from pipeline.source_files import ROOT
from pipeline.workers import task
from pipeline.workers.device import HOME, program_digest
from pipeline.workers.task import asked, run_request, stopped
from tests.pipeline.workers.cluster import wait_for


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".trtforge/worker"


def answer(**request: Any) -> dict[str, Any]:
    return dict(json.loads(run_request(json.dumps(request))))


def test_who_it_is(home: Path) -> None:
    assert Path(HOME).expanduser() == home
    said = dict(json.loads(asyncio.run(asked('{"ask": "census"}'))))
    assert (said["status"], said["trtforge"], said["source"]) == (0, "0.1.0", program_digest())
    assert said["free_mib"] > 0
    assert home.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("home")
def test_two_hubs_may_ask_the_same_at_once() -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(run_request, '{"ask": "census"}') for _ in range(2))
        assert [json.loads(each.result())["status"] for each in (first, second)] == [0, 0]


def test_a_request_whose_end_was_asked_for_before_it_came_is_not_begun(home: Path) -> None:
    """A cancelled line may reach a worker after the word that it is to end what it does."""
    request = json.dumps({"ask": "census", "hub": "interrupted"})
    asyncio.run(stopped([request]))
    assert json.loads(run_request(request)) == {"status": 4, "sentence": "was stopped before it began"}
    assert not home.exists()
    assert answer(ask="census", hub="the next")["status"] == 0


def test_another_source_is_refused_before_anything_is_fetched(home: Path) -> None:
    said = answer(ask="work", source="0" * 64, depot="file:///none", task="task")
    assert said == {
        "status": 3,
        "sentence": "trtforge 0.1.0 there is another version than on the hub; install the same one there",
    }
    assert not home.exists()


def test_a_depot_that_is_away_is_an_answer(home: Path) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra fleet)")
    said = answer(ask="work", source=program_digest(), depot="file:///none/depot", task="task", retries=2)
    assert said["status"] == 3
    assert said["sentence"] == "file:///none/depot: the depot is not there; mount it, or make that folder"


def test_a_bundle_that_is_damaged_is_an_answer(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra fleet)")
    (tmp_path / "depot/bundles").mkdir(parents=True)
    (tmp_path / f"depot/bundles/{'a' * 64}.tar").write_bytes(b"something else")
    request = {
        "ask": "work",
        "source": program_digest(),
        "depot": f"file://{tmp_path}/depot",
        "task": "t",
        "retries": 0,
    }
    request |= {"bundle": [14, "a" * 64], "baseline": {"name": "net.orin", "files": {}}}
    said = answer(**request)
    assert said["status"] == 2
    assert f"bundles/{'a' * 64}.tar: is not what was put there (SHA-256 differs)" in said["sentence"]
    assert (tmp_path / "depot/tasks/t/begun-0").read_text() == "net.orin"
    assert list(home.iterdir()) == [], "no work is left"
    assert [path.name for path in home.parent.iterdir() if path != home] == [DEVICE_LOCK]
    # It has begun as often as it may.
    again = answer(**request)
    assert (again["status"], "at attempt 1 of 1" in again["sentence"]) == (4, True)


def test_it_waits_for_a_run_by_ssh_on_this_machine(home: Path, tmp_path: Path) -> None:
    """Else each would disturb what the other times."""
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra fleet)")
    (tmp_path / "depot").mkdir()
    home.parent.mkdir()
    request: dict[str, Any] = {"ask": "work", "source": program_digest(), "task": "t", "retries": 0}
    request |= {"depot": f"file://{tmp_path}/depot", "bundle": [1, "a" * 64]}
    request |= {"baseline": {"name": "net.orin", "files": {}}}
    with ThreadPoolExecutor(1) as executor, (home.parent / DEVICE_LOCK).open("a") as lock:
        assert not is_taken(lock)
        inode = f":{os.fstat(lock.fileno()).st_ino} "
        said = executor.submit(run_request, json.dumps(request))
        waiting = re.compile(rf"-> FLOCK .*{inode}")
        wait_for("it waits", lambda: said.done() or waiting.search(Path("/proc/locks").read_text()))
        assert not (tmp_path / "depot/tasks").exists(), "nothing was begun"
        lock.close()
        assert json.loads(said.result())["status"] == 3, "there is no such bundle"
    assert (tmp_path / "depot/tasks/t/begun-0").exists()


@pytest.mark.parametrize(
    ("start", "status", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", 4, "the task's process was ended by SIGKILL: "),
        ("import sys; sys.exit('no module named so')", 4, "ended with status 1: no module named so"),
    ],
)
def test_a_process_that_dies_is_an_answer(start: str, status: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that crashes natively is not tried again, as an error would be."""
    monkeypatch.setattr(task, "START", start)
    said = answer(ask="census")
    assert said["status"] == status
    assert words in said["sentence"]


def test_what_a_worker_loads_is_little() -> None:
    """It lives for weeks, and what it has loaded gets old."""
    import subprocess
    import sys

    code = "import sys, pipeline.workers.task; print(sorted(n for n in sys.modules if n.startswith('pipeline')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pipeline', 'pipeline.source_files', 'pipeline.workers', 'pipeline.workers.task']"
