"""What comes back from a device: names, sizes and sums are held to what a device may send."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from calibration.file_digest import digest_now
from pipeline.errors import DataError, StageError, Unavailable
from pipeline.output import record_to_keep

MOST_FILES, MOST_NAME, MOST_DEPTH = 10_000, 255, 6
TOPS = ("log.txt", "report", "gate", "engines")
"""What the folder of a device has."""
DIGEST = re.compile(r"[0-9a-f]{64}")
RECORDS = {"report": ("variants", "artifact"), "gate": ("engines", "path")}
"""Folder and name of a record -> its rows of engines, and their key for the path."""


@dataclass(frozen=True)
class RemoteFile:
    """One file that a device has for the desk."""

    name: str
    num_bytes: int
    digest: str
    """SHA-256 (hex)."""


def files_from_answer(answer: Mapping[str, Any], address: str) -> tuple[RemoteFile, ...]:
    """What a device says that it has, each name below the folder of this device.

    Raises:
        DataError: a name leads elsewhere, or it is no such list.
    """
    files = answer.get("files")
    if not isinstance(files, dict) or len(files) > MOST_FILES:
        raise DataError(f"{address}: sends no list of files, or one of more than {MOST_FILES}; nothing of it is taken")
    rows = []
    for name, row in files.items():
        parts = name.split("/")
        is_name = name.isprintable() and "\\" not in name and len(parts) <= MOST_DEPTH
        if not is_name or {"", ".", ".."} & set(parts) or any(len(part) > MOST_NAME for part in parts):
            raise DataError(f"{address}: sends a file {name[:200]!r}, which is no name of a result; nothing is taken")
        if parts[0] not in TOPS or (len(parts) == 1) != (parts[0] == TOPS[0]) or any(p.startswith(".") for p in parts):
            raise DataError(f"{address}: sends a file {name[:200]!r}, which no run writes; nothing is taken")
        is_row = isinstance(row, list) and len(row) == 2 and type(row[0]) is int and row[0] >= 0
        if not is_row or not isinstance(row[1], str) or not DIGEST.fullmatch(row[1]):
            raise DataError(f"{address}: says of {name[:200]!r} neither size nor SHA-256; nothing of it is taken")
        rows.append(RemoteFile(name, row[0], row[1]))
    names = {row.name for row in rows}
    if wrong := [name for name in names if any(other.startswith(f"{name}/") for other in names)]:
        raise DataError(f"{address}: sends {wrong[0]!r} as a file and as a folder; nothing of it is taken")
    return tuple(rows)


def taken_from_before(files: Sequence[RemoteFile], before: Path, folder: Path) -> list[RemoteFile]:
    """Copy what an earlier run brought and is the same; the files that are lacking.

    Raises:
        Unavailable: what is lacking has no room on this disk.
    """
    lacking = []
    for file in files:
        source = before / file.name
        is_same = source.is_file() and not source.is_symlink() and source.stat().st_size == file.num_bytes
        if is_same and digest_now(source) == file.digest:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            lacking.append(file)
    need, free = sum(file.num_bytes for file in lacking), shutil.disk_usage(folder).free
    if need > free:
        raise Unavailable(
            f"{before}: the disk is full ({free >> 20} MiB free, {need >> 20} MiB are to be fetched); free some space "
            "and run again"
        )
    return lacking


class FetchedFiles:
    """Takes the bytes of files one after another, and holds each file to its size and sum."""

    def __init__(self, files: Sequence[RemoteFile], folder: Path, address: str) -> None:
        """The files come in that order; each is written below ``folder``."""
        self._files, self._folder, self._address = list(files), folder, address
        self._out: IO[bytes] | None = None
        self._missing = 0
        self._sum = hashlib.sha256()
        self._next()

    def take(self, data: bytes) -> None:
        """The next bytes of all.

        Raises:
            DataError: there are more than the device said, or a file is not what it said.
        """
        while data:
            if self._out is None:
                raise DataError(f"{self._address}: sends more than it said; nothing of it is taken")
            piece = data[: self._missing]
            self._out.write(piece)
            self._sum.update(piece)
            self._missing -= len(piece)
            data = data[len(piece) :]
            if not self._missing:
                self._end()

    def close(self) -> None:
        """Close what is open."""
        if self._out is not None:
            self._out.close()

    def check_whole(self) -> None:
        """Raise DataError if there are more files to come."""
        if self._out is not None:
            raise DataError(f"{self._address}: sends less than it said; nothing of it is taken; run again")

    def _next(self) -> None:
        while self._files:
            file = self._files[0]
            target = self._folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._out, self._missing, self._sum = target.open("xb"), file.num_bytes, hashlib.sha256()
            if file.num_bytes:
                return
            self._end_file()
        self._out = None

    def _end(self) -> None:
        self._end_file()
        self._next()

    def _end_file(self) -> None:
        assert self._out is not None
        self._out.close()
        file = self._files.pop(0)
        if self._sum.hexdigest() != file.digest:
            raise DataError(f"{self._address}: {file.name!r} was changed on the way (SHA-256 differs); run again")


def settle(folder: Path, final: Path, address: str) -> dict[str, Path]:
    """Make records that came name what is here: the engines by their paths in ``final``, each with its record beside.

    Returns the engines' paths in ``final``, by variant.

    Raises:
        StageError: a record is none.
    """
    engines: dict[str, Path] = {}
    for what, (rows, key) in RECORDS.items():
        file = folder / what / f"{what}.json"
        if not file.is_file():
            continue
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            for row in record[rows]:
                name = Path(row[key]).name
                here = folder / "engines" / row["name"] / name
                is_engine = name not in ("", "..") and here.exists()
                if is_engine and here.resolve().is_relative_to(folder.resolve()):
                    engines[row["name"]] = final / here.relative_to(folder)
                    row[key] = str(engines[row["name"]].absolute())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StageError(
                f"{address}: sends a {file.name} that is none ({error}); nothing of it is taken"
            ) from error
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, path in engines.items():
        here = folder / "engines" / name / path.name
        try:
            beside = record_to_keep(here)
        except (ValueError, TypeError, RecursionError) as error:
            raise StageError(f"{address}: sends a record of {name} that is none ({error}); nothing is taken") from error
        if beside:
            here.with_name(f"{here.name}.json").write_text(json.dumps(beside, indent=1, sort_keys=True), "utf-8")
    return engines
