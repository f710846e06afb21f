"""The depot: whole or not at all, held to digests, and a sentence where it is away, full or not of a known kind."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError, Unavailable
from pipeline.workers.depot import Depot

CONTENT = b"an engine" * 1000
EXPECTED = (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra fleet)")
    (tmp_path / "depot").mkdir()
    (tmp_path / "engine").write_bytes(CONTENT)
    return Depot(f"file://{tmp_path}/depot")


def test_what_is_put_is_fetched(depot: Depot, tmp_path: Path) -> None:
    depot.check()
    assert not depot.has("bundles/a.tar", len(CONTENT))
    depot.put(tmp_path / "engine", "bundles/a.tar")
    assert depot.has("bundles/a.tar", len(CONTENT))
    assert not depot.has("bundles/a.tar", 1), "half a file is none"
    depot.get("bundles/a.tar", EXPECTED, tmp_path / "new/a.tar")
    assert (tmp_path / "new/a.tar").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "depot/bundles").iterdir()] == ["a.tar"]
    assert (depot.count("bundles", "a"), depot.count("bundles", "b"), depot.count("none", "")) == (1, 0, 0)
    depot.remove("bundles")
    depot.remove("bundles")
    assert list((tmp_path / "depot").iterdir()) == []


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"!", b"An engine" * 1000, CONTENT * 1000])
def test_what_is_not_what_was_said_is_refused(depot: Depot, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "depot/a").write_bytes(content)
    with pytest.raises(DataError, match=r"/depot/a: is not what was put there \(SHA-256 differs\); nothing of it is"):
        depot.get("a", EXPECTED, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_one_that_is_away(depot: Depot, tmp_path: Path) -> None:
    (tmp_path / "depot").rename(tmp_path / "unmounted")
    with pytest.raises(Unavailable, match="depot: the depot is not there; mount it, or make that folder"):
        depot.check()
    with pytest.raises(Unavailable, match="the depot has no a; see that the hub and all workers reach the same one"):
        depot.get("a", EXPECTED, tmp_path / "a")


@contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    """No file may grow above that: what the system says is as of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_one_that_is_full(depot: Depot, tmp_path: Path) -> None:
    with small_files(100), pytest.raises(Unavailable, match=r"the depot is full \(.*\); free some space and run again"):
        depot.put(tmp_path / "engine", "a")
    assert list((tmp_path / "depot").iterdir()) == [], "no part is left"
    depot.put(tmp_path / "engine", "a")
    with small_files(100), pytest.raises(Unavailable, match=r"the disk is full; free some space and run again"):
        depot.get("a", EXPECTED, tmp_path / "fetched/a")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_one_that_may_not_be_written(depot: Depot, tmp_path: Path) -> None:
    (tmp_path / "depot/tasks").write_text("a file, where a folder is needed")
    with pytest.raises(Unavailable, match=r"the depot cannot be used \(.*\); see that it is there and may be written"):
        depot.put(tmp_path / "engine", "tasks/a")


def test_protocols_that_are_not_known_or_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra fleet)")
    with pytest.raises(ConfigError, match=r"\[fleet\] depot 'nfs4://hub/x': Protocol not known: nfs4; correct it"):
        Depot("nfs4://hub/x").check()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(Unavailable, match=r"s3://bucket/x: .*s3fs.*; install it on the hub and all workers"):
        Depot("s3://bucket/x").check()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(Unavailable, match=r"needs fsspec, which is not installed; pip install 'trtforge\[fleet\]'"):
        Depot("file:///x").check()
