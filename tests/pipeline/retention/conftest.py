"""A store of the test's own, in a folder made the current one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.retention.made_store import MadeStore


@pytest.fixture
def made_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeStore:
    monkeypatch.chdir(tmp_path)
    return MadeStore(monkeypatch)
