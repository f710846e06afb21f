"""A small file is written whole, also where several write it, and what a killed process left is no litter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.whole_file import write_whole


def test_it_is_written_and_replaced(tmp_path: Path) -> None:
    for data in (b"one", b"another one", b"2"):
        write_whole(tmp_path / "new" / "x.cache", data)
        assert [(path.name, path.read_bytes()) for path in (tmp_path / "new").iterdir()] == [("x.cache", data)]


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".x.cache.part").write_bytes(b"a half that is longer than the whole")
    write_whole(tmp_path / "x.cache", b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.cache", b"whole")]


def test_several_at_once_are_all_right(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_whole(tmp_path / "x", bytes([number]) * 10_000), range(200)))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    data = (tmp_path / "x").read_bytes()
    assert len(data) == 10_000
    assert len(set(data)) == 1


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "x", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
