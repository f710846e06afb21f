"""SHA-256 of a file, and what else its content tells, remembered while the file stays as it is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

CHUNK_BYTES = 1 << 20
SETTLED_NS = 2_000_000_000
"""A file changed more recently than this may change again within one tick of its clock, so it is read each time."""


class Table(Protocol):
    """Text by key, as in a dictionary. It may forget: what it does not have is found out anew."""

    def get(self, key: str, /) -> str | None:
        """The text, or None."""
        ...

    def __setitem__(self, key: str, text: str, /) -> None:
        """Keep it."""
        ...


class _Memory:
    """Where things are remembered: in this process, until somebody hands in a table that lasts longer."""

    table: ClassVar[Table] = {}


def remember_in(table: Table) -> None:
    """From now on remember in this table."""
    _Memory.table = table


def remembered_in() -> Table:
    """The table."""
    return _Memory.table


def file_digest(path: Path) -> bytes:
    """SHA-256 (32 bytes) of the file's bytes, see ``of_content``.

    Raises:
        OSError: it cannot be read.
    """
    return bytes.fromhex(of_content(path, "sha256", digest_now))


def of_content(path: Path, what: str, find: Callable[[Path], str]) -> str:
    """What ``find`` tells of the file, which must follow from its bytes alone; remembered under the name ``what``.

    Found out again whenever the file's size, its inode, or its time of modification or of change is another. The rule
    for young files is git's for an index entry as old as the index ("racy git").

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < SETTLED_NS:
        return find(path)
    key = f"{what} {state.st_dev} {state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
    value = _Memory.table.get(key)
    if value is None:
        value = _Memory.table[key] = find(path)
    return value


def digest_now(path: Path) -> str:
    """SHA-256 (hex) of the file's bytes, read now: for whoever checks a file that may have been damaged or exchanged.

    Raises:
        OSError: it cannot be read.
    """
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            sha.update(piece)
    return sha.hexdigest()
