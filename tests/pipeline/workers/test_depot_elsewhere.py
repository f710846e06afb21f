"""Depots that are no folder of this machine: in memory, and behind a real sshd by SFTP."""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import DataError, Unavailable
from pipeline.workers.depot import Depot
from tests.pipeline.remote.devices import Device, device_in, needs_sshd

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra fleet)")
CONTENT = b"an engine" * 1000
EXPECTED = (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    pytest.importorskip("paramiko", reason="paramiko is not installed, by which fsspec speaks SFTP")
    with device_in(tmp_path_factory.mktemp("sftp"), "hub") as device:
        yield device


def sftp_depot(device: Device, monkeypatch: pytest.MonkeyPatch) -> Depot:
    """A folder behind sshd, with the key that it knows."""
    (device.folder / "depot").mkdir(exist_ok=True)
    monkeypatch.setitem(fsspec.config.conf, "sftp", {"key_filename": str(device.folder / "user_key")})
    return Depot(f"sftp://{getpass.getuser()}@127.0.0.1:{device.port}{device.folder}/depot")


@pytest.fixture(params=["memory", pytest.param("sftp", marks=needs_sshd)])
def depot(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Depot:
    (tmp_path / "engine").write_bytes(CONTENT)
    if request.param == "memory":
        return Depot(f"memory://{tmp_path.name}")
    return sftp_depot(request.getfixturevalue("device"), monkeypatch)


def test_what_is_put_is_fetched(depot: Depot, tmp_path: Path) -> None:
    depot.check()
    assert not depot.has("bundles/a.tar", len(CONTENT))
    depot.put(tmp_path / "engine", "bundles/a.tar")
    depot.put(tmp_path / "engine", "bundles/a.tar")
    assert depot.has("bundles/a.tar", len(CONTENT))
    depot.get("bundles/a.tar", EXPECTED, tmp_path / "new/a.tar")
    assert (tmp_path / "new/a.tar").read_bytes() == CONTENT
    assert (depot.count("bundles", "a"), depot.count("bundles", "b"), depot.count("none", "")) == (1, 0, 0)
    depot.remove("bundles")
    depot.remove("bundles")
    assert depot.count("bundles", "") == 0


def test_what_is_not_what_was_said_is_refused(depot: Depot, tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(CONTENT[:-1] + b"!")
    depot.put(tmp_path / "engine", "tasks/b")
    with pytest.raises(DataError, match="is not what was put there"):
        depot.get("tasks/b", EXPECTED, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(Unavailable, match="has no tasks/c; see that the hub and all workers reach the same one"):
        depot.get("tasks/c", EXPECTED, tmp_path / "c")


@needs_sshd
def test_a_folder_that_is_not_there_and_a_server_that_is_away(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Depot(f"{sftp_depot(device, monkeypatch).url}/none")
    with pytest.raises(Unavailable, match="the depot is not there; mount it, or make that folder"):
        away.check()
    with pytest.raises(Unavailable, match="cannot be used"):
        Depot(f"sftp://{getpass.getuser()}@127.0.0.1:1{device.folder}/depot").check()
