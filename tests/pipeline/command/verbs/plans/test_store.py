"""`trtforge store`: what takes room, what would go and the command that does it, what is damaged."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.retention.made_store import MadeStore

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def made_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeStore:
    monkeypatch.chdir(tmp_path)
    return MadeStore(monkeypatch)


def test_size(made_store: MadeStore, command: Command) -> None:
    made_store.made("A", days_ago=40)
    made_store.made("B")
    (made_store.folder / "theirs/notes").mkdir(parents=True)
    (made_store.folder / "theirs/notes/text").write_text("x" * 4096)
    said = command("store", "size")
    assert said.status == 0
    lines = [line.split() for line in said.out.splitlines()]
    assert [line[0] for line in lines] == ["stage", "join", "not", "total", "`trtforge"]
    assert lines[1][1] == "2"
    assert lines[2] == ["not", "ours", "4.0", "KiB"]
    assert "would free" in said.out
    assert ": 1 result\n" in said.out


def test_gc_removes_nothing_until_it_is_told_to_and_says_how(made_store: MadeStore, command: Command) -> None:
    old = made_store.made("A", days_ago=40).path.parent
    made_store.made("B")
    said = command("store", "gc", "--keep-days", 20, "--list")
    assert said.status == 0
    lines = said.out.splitlines()
    assert lines[0] == str(old)
    assert lines[1].startswith("would remove 1 result, ")
    assert lines[1].endswith(" (join 1)")
    assert lines[2] == ("the rest stays: 1 used within 20 days, 0 older that these, baselines or pins need")
    assert said.err.startswith("trtforge: nothing was removed; to remove them: trtforge store gc --keep-days=20 ")
    assert made_store.there() == "A B"
    told = shlex.split(said.err.partition("to remove them: trtforge ")[2])
    said = command(*told)
    assert said.out.startswith("removed 1 result, ")
    assert said.err == ""
    assert made_store.there() == "B"


def test_what_does_not_fit_is_said(made_store: MadeStore, command: Command) -> None:
    made_store.made("A", times=1 << 20)
    said = command("store", "gc", "--max-gib", 0.0001)
    assert said.status == 0
    assert "1.0 MiB stay, more than --max-gib; lower --keep-days or --keep-last" in said.err


def test_verify(made_store: MadeStore, command: Command) -> None:
    engine = made_store.made("A")
    said = command("store", "verify")
    assert (said.status, said.err) == (0, "")
    assert said.out == "all of 1 results and 0 generations of baselines are as they were published\n"
    engine.path.write_text("x")
    said = command("store", "verify")
    assert said.status == 5
    assert f"its bytes are not those that were published; it is in {made_store.folder}/damaged/join/" in said.out
    assert said.err.startswith("trtforge: .trtforge: 1 damaged, of 1 results and 0 generations of baselines; damaged ")
    assert command("store", "verify").status == 0


@pytest.mark.parametrize("verb", ["size", "gc", "verify"])
def test_there_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, verb: str) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("store", verb)
    assert (said.status, said.err) == (
        2, "trtforge: .trtforge: there is no store; run a plan first, or name its store with --store\n",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
