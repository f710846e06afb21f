"""What workers answer: held to what they may say, and every file to its SHA-256; one that lies is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CheckFailed, ConfigError, DataError, StageError, Unavailable
from pipeline.remote.outcome import error_from_status
from pipeline.workers.depot import Depot
from pipeline.workers.dispatch import Shipment, bring, ship
from pipeline.workers.task import Request

LOG = b"trtforge: build  made\n"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra fleet)")
    (tmp_path / "depot").mkdir()
    return Depot(f"file://{tmp_path}/depot")


@pytest.fixture
def request_sent(depot: Depot, tmp_path: Path) -> Request:
    """That of a line whose last good engine is one file."""
    (tmp_path / "bundle.tar").write_bytes(b"bundle")
    (tmp_path / "good/engine").mkdir(parents=True)
    (tmp_path / "good/engine/a.plan").write_bytes(b"good")
    shipment = Shipment("task", ("gate", "--baseline", "net.orin"), "trtforge-gate", ("net.orin", tmp_path / "good"))
    return ship(shipment, tmp_path / "bundle.tar", depot, 2)


def answer(depot_folder: Path, status: int, files: dict[str, bytes]) -> str:
    """What a worker says, whose files are in the depot."""
    folder = depot_folder / "tasks/task"
    folder.mkdir(parents=True, exist_ok=True)
    for data in files.values():
        (folder / digest(data)).write_bytes(data)
    rows = {name: [len(data), digest(data)] for name, data in files.items()}
    return json.dumps({"status": status, "sentence": "", "files": rows})


def test_what_is_sent(request_sent: Request, tmp_path: Path, depot: Depot) -> None:
    assert request_sent["bundle"] == [6, digest(b"bundle")]
    assert request_sent["baseline"] == {"name": "net.orin", "files": {"engine/a.plan": [4, digest(b"good")]}}
    assert json.loads(json.dumps(request_sent)) == request_sent
    names = {
        path.relative_to(tmp_path / "depot").as_posix() for path in (tmp_path / "depot").rglob("*") if path.is_file()
    }
    assert names == {f"bundles/{digest(b'bundle')}.tar", f"baselines/{digest(b'good')}"}


def test_what_comes_back(request_sent: Request, tmp_path: Path, depot: Depot) -> None:
    final = tmp_path / "line"
    (final / "gate").mkdir(parents=True)
    (final / "gate/old.txt").touch()
    (final / "line.json").touch()
    text = answer(tmp_path / "depot", 5, {"log.txt": LOG, "gate/gate.md": b"# out of bounds"})
    assert bring(text, request_sent, depot, final) == 5
    names = {path.relative_to(final).as_posix() for path in final.rglob("*") if path.is_file()}
    assert names == {"line.json", "log.txt", "gate/gate.md"}
    assert not (tmp_path / "depot/tasks/task").exists()


def test_a_worker_that_lies_about_a_digest(request_sent: Request, tmp_path: Path, depot: Depot) -> None:
    text = answer(tmp_path / "depot", 0, {"log.txt": LOG, "engines/int8@tensorrt/a.plan": b"an engine"})
    (tmp_path / "depot/tasks/task" / digest(b"an engine")).write_bytes(b"an attack")
    with pytest.raises(DataError, match=r"is not what was put there \(SHA-256 differs\); nothing of it is taken"):
        bring(text, request_sent, depot, tmp_path / "line")
    assert [path.name for path in (tmp_path / "line").rglob("*")] == []


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"../../.bashrc": [0, digest(b"")]}, "is no name of a result"),
        ({"engines/../../x": [0, digest(b"")]}, "is no name of a result"),
        ({"line.json": [0, digest(b"")]}, "which no run writes"),
        ({"log.txt": [0, "../../etc/passwd"]}, "neither size nor SHA-256"),
        ({"log.txt": [-1, digest(b"")]}, "neither size nor SHA-256"),
        (None, "sends no list of files"),
    ],
)
def test_answers_that_no_worker_gives(
    request_sent: Request, tmp_path: Path, depot: Depot, files: Any, sentence: str
) -> None:
    text = json.dumps({"status": 0, "sentence": "", "files": files})
    with pytest.raises(DataError, match=sentence):
        bring(text, request_sent, depot, tmp_path / "line")
    assert not list((tmp_path / "line").rglob("*"))


@pytest.mark.parametrize("text", ["", "[]", '{"status": 0}', '{"status": 9, "sentence": ""}', "[" * 100_000])
def test_what_is_no_answer(request_sent: Request, tmp_path: Path, depot: Depot, text: str) -> None:
    with pytest.raises(StageError, match=r"net.orin: its worker's answer is none \(.*\); see the worker's log"):
        bring(text, request_sent, depot, tmp_path / "line")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(2, ConfigError), (4, StageError), (5, CheckFailed), (1, Unavailable), (None, Unavailable), ([2], Unavailable)],
)
def test_an_error_from_what_another_process_says(status: object, kind: type[Exception]) -> None:
    error = error_from_status(status, "why")
    assert (type(error), str(error)) == (kind, "why")


@pytest.mark.parametrize(("status", "kind"), [(2, ConfigError), (3, Unavailable), (4, StageError)])
def test_what_came_to_nothing_there_is_the_same_here(
    request_sent: Request, tmp_path: Path, depot: Depot, status: int, kind: type[Exception]
) -> None:
    bundles = tmp_path / "depot/bundles"
    with pytest.raises(kind, match="why"):
        bring(json.dumps({"status": status, "sentence": "why"}), request_sent, depot, tmp_path / "line")
    assert len(list(bundles.iterdir())) == (0 if status == 2 else 1), "what may be damaged is sent anew the next time"
