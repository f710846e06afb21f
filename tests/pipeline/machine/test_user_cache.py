"""Where the caches are: as the user's system says, also where the user has no home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from pipeline.machine.user_cache import user_cache


def test_as_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/trtforge")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert user_cache() == Path("/home/somebody/.cache/trtforge")


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without one; the folder for temporary files."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_a_home(no_home: Path) -> None:
    assert user_cache() == no_home / f"trtforge-{os.getuid()}"
    assert user_cache().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["open to all", "a link", "a file"])
def test_a_folder_of_that_name_that_anybody_made_is_not_taken(no_home: Path, kind: str) -> None:
    expected = no_home / f"trtforge-{os.getuid()}"
    if kind == "open to all":
        expected.mkdir()
        expected.chmod(0o777)
    elif kind == "a link":
        (no_home / "theirs").mkdir()
        expected.symlink_to(no_home / "theirs")
    else:
        expected.touch()
    assert user_cache() != expected
    assert user_cache().parent == no_home
