"""Files on a device, for the agent there: Python 3.8, the standard library alone, and nothing else of this project."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import IO, Any, Iterable, Iterator  # noqa: UP035  # Of Python 3.8.

BLOCK_BYTES = 1 << 20
BUNDLE, JOB, END, LOG, OUT = "bundle.tar", "job.json", "end.json", "log", "out"
"""In the folder of a bundle."""
DEVICE_LOCK = "device.lock"
"""In ``~/.trtforge``: held by the one run of this user that is at work here, whether by ssh or for a scheduler."""
REPORT_FOLDER, GATE_FOLDER = "trtforge-report", "trtforge-gate"
"""The folders that runs write into an unpacked bundle."""
NOT_SENT = {"result.json", ".lock", "lock"}
SIGNATURES, SIGNATURE_ENDING = "signatures", ".dsse.json"
"""Folder of a store, and how the names of signatures end there and beside engines."""
DPKG_STATUS = "var/lib/dpkg/status"


def tensorrt_version(root: Path) -> str:
    """Of the package libnvinfer that is installed; empty if there is none that dpkg knows."""
    try:
        text = (root / DPKG_STATUS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for paragraph in text.split("\n\n"):
        if re.search(r"^Package: libnvinfer\d+$", paragraph, re.M) and "\nStatus: install ok installed" in paragraph:
            version = re.search(r"^Version: (?:\d+:)?([\d.]+)", paragraph, re.M)
            return version[1] if version else ""
    return ""


def is_version(version: str, expected: str) -> bool:
    """Whether a version is the expected one, or begins so, part by part; any is where none is expected."""
    return not expected or f"{version}.".startswith(f"{expected}.")


def places(parts: Iterable[list[Any]]) -> Iterator[tuple[int, int, str]]:
    """Of each part: where it begins, its bytes, its digest."""
    at = 0
    for num_bytes, digest in parts:
        yield at, num_bytes, digest
        at += num_bytes


def parts_of(whole: Path) -> list[list[Any]]:
    """Those that an archive came in."""
    try:
        return list(json.loads((whole.parent / "parts.json").read_text()))
    except (OSError, ValueError):
        return []


def is_whole(path: Path, request: dict[str, Any]) -> bool:
    """Whether an archive is here as it was packed."""
    expected = sum(num_bytes for num_bytes, _ in request["parts"])
    return path.is_file() and path.stat().st_size == expected and file_digest(path) == request["digest"]


class Alone:
    """Wait until no other process copies into the folder."""

    def __init__(self, path: Path) -> None:
        """``path``: of the lock."""
        self.path = path

    def __enter__(self) -> None:
        self.lock = self.path.open("a")
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def __exit__(self, *_error: object) -> None:
        self.lock.close()


def is_taken(lock: IO[str]) -> bool:
    """Whether another process holds it; if not, this one does now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def remove_unused(folder: Path) -> None:
    """Leave nothing of a bundle or a program that no job began with."""
    if not (folder / JOB).exists():
        shutil.rmtree(str(folder), ignore_errors=True)


def files_below(folder: Path) -> Iterator[Path]:
    """Every regular file, in the order of names."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def files_made(bundle: Path, writes: str, log: Path, home: Path) -> Iterator[tuple[str, Path]]:
    """What goes back of a run on an unpacked bundle: the log, the folder that was written, the engines of its record.

    An engine's signature, if it was signed in its store, goes beside it.

    ``writes``: the name of that folder. Engines are in stores below ``home``; nothing else goes.
    """
    yield "log.txt", log
    written, what = bundle / writes, writes.rpartition("-")[2]
    for path in files_below(written):
        yield f"{what}/{path.relative_to(written).as_posix()}", path
    record = read_json(written / f"{what}.json")
    for row in record.get("variants", record.get("engines", ())):
        where = row.get("artifact", row.get("path", ""))
        engine = (bundle / where).resolve()
        if "@" in row["name"] and where and engine.exists() and home.resolve() in engine.parents:
            for path in files_below(engine.parent):
                if path.name not in NOT_SENT:
                    yield f"engines/{row['name']}/{path.relative_to(engine.parent).as_posix()}", path
            signatures = engine.parents[2] / SIGNATURES
            signature = signatures / f"{engine_digest(engine)}{SIGNATURE_ENDING}" if signatures.is_dir() else signatures
            if signature.is_file():
                yield f"engines/{row['name']}/{engine.name}{SIGNATURE_ENDING}", signature


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def engine_digest(engine: Path) -> str:
    """SHA-256 (hex) of an engine, by which its signature is named; of a folder as ``engines.signing.trust`` has it."""
    if engine.is_file():
        return file_digest(engine)
    names = sorted(path.relative_to(engine).as_posix() for path in files_below(engine))
    return sha256("".join(f"{file_digest(engine / name)}  {name}\n" for name in names).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Empty if there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_json(path: Path, data: dict[str, Any]) -> None:
    """By one rename."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(data), encoding="utf-8")
    beside.replace(path)


def tail(path: Path) -> str:
    """The end of what was printed."""
    return path.read_bytes()[-4000:].decode("utf-8", "replace") if path.is_file() else ""
