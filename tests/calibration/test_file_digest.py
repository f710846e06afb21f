"""A file's digest: read once while the file stays as it is, and again as soon as it does not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from calibration import file_digest as module
from calibration.file_digest import file_digest, of_content, remember_in, remembered_in


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that was really read."""
    seen: list[Path] = []
    digest = module.digest_now

    def counted(path: Path) -> str:
        seen.append(path)
        return digest(path)

    monkeypatch.setattr(module, "digest_now", counted)
    return seen


def test_it_is_sha_256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"abc" * 1_000_000).digest()


def test_a_young_file_is_read_each_time(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "f"
    for content in ("abc", "abd", "abe"):
        file.write_text(content)
        assert file_digest(file) == hashlib.sha256(content.encode()).digest()
    assert len(reads) == 3


def test_a_settled_file_is_read_once_until_it_changes(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", -(10**18))  # Every file counts as settled.
    file = tmp_path / "f"
    file.write_text("abc")
    assert file_digest(file) == file_digest(file)
    assert len(reads) == 1
    file.write_text("abcd")
    assert file_digest(file) == hashlib.sha256(b"abcd").digest()
    assert len(reads) == 2


def test_a_replaced_file_of_equal_size_and_time_is_read_again(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", -(10**18))
    file, other = tmp_path / "f", tmp_path / "other"
    file.write_text("abc")
    other.write_text("xyz")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    file_digest(file)
    other.replace(file)
    assert file_digest(file) == hashlib.sha256(b"xyz").digest()
    assert reads == [file, file]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "f")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A table of one's own, in which every file counts as settled."""
    monkeypatch.setattr(module, "SETTLED_NS", -(10**18))
    monkeypatch.setattr(module._Memory, "table", {})
    table: dict[str, str] = {}
    remember_in(table)
    assert remembered_in() is table
    return table


def test_a_table_handed_in_is_filled_and_asked(tmp_path: Path, reads: list[Path], table: dict[str, str]) -> None:
    (tmp_path / "f").write_text("abc")
    digest = file_digest(tmp_path / "f")
    assert list(table.values()) == [digest.hex()]
    remember_in(dict(table))  # As another process would be handed it.
    assert file_digest(tmp_path / "f") == digest
    assert len(reads) == 1


def test_young_files_are_in_no_table(tmp_path: Path, table: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 2_000_000_000)
    (tmp_path / "f").write_text("abc")
    file_digest(tmp_path / "f")
    assert table == {}


def test_what_else_the_content_tells_is_kept_apart(tmp_path: Path, table: dict[str, str]) -> None:
    file = tmp_path / "f"
    file.write_text("abc")
    assert of_content(file, "size", lambda path: str(len(path.read_bytes()))) == "3"
    assert of_content(file, "size", lambda path: "not asked again") == "3"
    assert file_digest(file) == hashlib.sha256(b"abc").digest()
    file.write_text("abcd")
    assert of_content(file, "size", lambda path: str(len(path.read_bytes()))) == "4"
