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


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert user_cache() == Path(tempfile.gettempdir()) / f"trtforge-{os.getuid()}"
