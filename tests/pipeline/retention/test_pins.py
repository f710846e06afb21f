"""Pins: what a job used is held for so many generations, whatever its name, and is never half written."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.retention.pins import pin, pinned, pins_in, unpin


def test_the_newest_generations_are_held(tmp_path: Path) -> None:
    for night in ("a", "b", "c", "d"):
        pin(tmp_path, "net@orin", [night, "same"], keep=3)
    pin(tmp_path, "other", ["x"])
    assert pinned(tmp_path) == {"b", "c", "d", "same", "x"}
    assert pinned(tmp_path, newest=1) == {"d", "same", "x"}
    (_, generations), _ = pins_in(tmp_path)
    assert [generation.digests for generation in generations] == [("b", "same"), ("c", "same"), ("d", "same")]
    assert sorted(path.name for path in (tmp_path / "pins").iterdir()) == [".lock", "net@orin.json", "other.json"]


def test_nothing_changed_writes_nothing(tmp_path: Path) -> None:
    pin(tmp_path, "net", ["b", "a"])
    before = (tmp_path / "pins/net.json").stat()
    pin(tmp_path, "net", ["a", "b", "a"])
    after = (tmp_path / "pins/net.json").stat()  # Reading it may set the time of the last access.
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)
    pin(tmp_path, "net", ["c"])
    pin(tmp_path, "net", ["c"], keep=1)
    assert pinned(tmp_path) == {"c"}, "fewer generations than before are written all the same"


def test_nothing_is_pinned(tmp_path: Path) -> None:
    assert pinned(tmp_path) == set()
    pin(tmp_path, "net", ["a"])
    unpin(tmp_path, "net")
    unpin(tmp_path, "net")
    assert pinned(tmp_path) == set()


@pytest.mark.parametrize("name", ["a/b", "..", ".lock", "100 %", "réseau", "int8@onnxruntime", "a.json"])
def test_any_name(tmp_path: Path, name: str) -> None:
    pin(tmp_path / "s", name, ["a"])
    assert [found for found, _ in pins_in(tmp_path / "s")] == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_no_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a name is empty"):
        pin(tmp_path, "", ["a"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 2}', '{"schema_version": 1, "generations": 3}'])
def test_a_damaged_file_is_said_and_mended_by_the_next_pin(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    pin(tmp_path, "net", ["a"])
    (tmp_path / "pins/net.json").write_text(text)
    with pytest.raises(DataError, match=r"net\.json.*; delete it, or run again the job that pins its results"):
        pinned(tmp_path)
    pin(tmp_path, "net", ["b"])
    assert pinned(tmp_path) == {"b"}
    assert "delete it, or run again" in caplog.text


def _pin_some(folder: str, digest: str) -> None:
    for number in range(10):
        pin(Path(folder), "net", [f"{digest}{number}"], keep=100)


def test_several_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_pin_some, args=(str(tmp_path), digest)) for digest in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert pinned(tmp_path) == {f"{digest}{number}" for digest in "abc" for number in range(10)}


def test_a_group_can_share_them(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o2775)
    before = os.umask(0o077)
    try:
        pin(tmp_path / "s", "net", ["a"])
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "s").rglob("*")}
    assert modes == {"pins": "0o2775", ".lock": "0o664", "net.json": "0o664"}


def test_what_stands_in_the_file(tmp_path: Path) -> None:
    pin(tmp_path, "net", ["a"])
    record = json.loads((tmp_path / "pins/net.json").read_text())
    assert record["schema_version"] == 1
    assert record["generations"][0]["digests"] == ["a"]
    assert record["generations"][0]["pinned_on"].endswith("+00:00")
