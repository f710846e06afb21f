"""The table of digests: kept from process to process, and never in the way."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from pipeline.machine import digest_table as module
from pipeline.machine.digest_table import DigestTable, digest_table


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "digests.sqlite"


def saved(file: Path, **texts: str) -> None:
    table = DigestTable(file)
    for key, text in texts.items():
        table[key] = text
    table.save()


def test_what_was_saved_is_there_for_the_next(file: Path) -> None:
    table = DigestTable(file)
    assert table.get("a") is None
    table["a"] = "é\n1"
    assert table.get("a") == "é\n1"
    assert DigestTable(file).get("a") is None, "it is not written yet"
    table.save()
    assert DigestTable(file).get("a") == "é\n1"
    assert DigestTable(file).get("b") is None


def test_nothing_new_writes_nothing(file: Path) -> None:
    DigestTable(file).save()
    assert not file.exists()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_as_if_it_were_not_there_and_mended(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    table = DigestTable(file)
    assert table.get("a") is None
    table["a"] = "1"
    assert table.get("a") == "1"
    table.save()
    assert DigestTable(file).get("a") == "1"


def test_a_file_that_is_damaged_amid_is_as_if_it_were_not_there(file: Path) -> None:
    saved(file, **{f"key{index}": "1" * 500 for index in range(500)})
    data = bytearray(file.read_bytes())
    data[8192:] = b"\xa5" * len(data[8192:])
    file.write_bytes(data)
    table = DigestTable(file)
    assert {table.get(f"key{index}") for index in range(500)} <= {None, "1" * 500}


def test_a_damaged_row_is_as_if_it_were_not_there(file: Path) -> None:
    saved(file, a="1", b="2")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE texts SET text = CAST(x'ff' AS TEXT) WHERE key = 'a'")
    assert DigestTable(file).get("a") is None
    assert DigestTable(file).get("b") == "2"


def test_another_table_in_its_place(file: Path) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE texts (other TEXT)")
    table = DigestTable(file)
    assert table.get("a") is None
    table["a"] = "1"
    table.save()
    assert table.get("a") == "1"


def test_a_locked_file_is_not_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(file, a="1")
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    other = sqlite3.connect(file)
    other.execute("BEGIN EXCLUSIVE")
    table = DigestTable(file)
    assert table.get("a") is None
    table["b"] = "2"
    table.save()
    assert table.get("b") == "2"
    other.rollback()
    other.close()
    assert DigestTable(file).get("a") == "1", "it is left as it was"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = DigestTable(tmp_path / "file" / "digests.sqlite")
    table["a"] = "1"
    table.save()
    assert table.get("a") == "1"


def test_a_full_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own limit stands for the disk's: both come as `database or disk is full`."""
    saved(file, a="1")
    connect = sqlite3.connect

    def small(*args: object, **kwargs: object) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)  # type: ignore[call-overload]
        connection.execute("PRAGMA max_page_count = 3")
        return connection  # type: ignore[no-any-return]

    monkeypatch.setattr(sqlite3, "connect", small)
    saved(file, b="2" * 100_000)
    monkeypatch.setattr(sqlite3, "connect", connect)
    assert DigestTable(file).get("b") is None
    assert DigestTable(file).get("a") == "1"


def test_the_oldest_go_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    for key in "abcad":
        saved(file, **{key: key})
    assert [key for key in "abcd" if DigestTable(file).get(key)] == ["a", "d"]


def _save(file: str, name: str) -> None:
    for index in range(20):
        saved(Path(file), **{f"{name}{index}": name})


def test_several_processes_write_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 30.0)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_save, args=(str(file), name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [DigestTable(file).get(f"{name}19") for name in "abc"] == ["a", "b", "c"]


def _ask(table: DigestTable, answers: multiprocessing.SimpleQueue[str | None]) -> None:
    table["c"] = "3"
    table.save()
    answers.put(table.get("a"))
    answers.put(table.get("b"))


def test_a_forked_process_does_not_use_its_parents_connection(file: Path) -> None:
    saved(file, a="1", b="2")
    table = DigestTable(file)
    assert table.get("a") == "1"
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[str | None] = context.SimpleQueue()
    child = context.Process(target=_ask, args=(table, answers))
    child.start()
    assert (answers.get(), answers.get()) == ("1", None)
    child.join()
    assert DigestTable(file).get("c") is None


def test_one_table_for_a_file(file: Path) -> None:
    assert digest_table(file) is digest_table(file)
