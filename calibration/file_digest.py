"""SHA-256 of a file, remembered within a process while the file stays as it is."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from pathlib import Path

CHUNK_BYTES = 1 << 20
SETTLED_NS = 2_000_000_000
"""A file changed more recently than this may change again within one tick of its clock, so it is read each time."""


def file_digest(path: Path) -> bytes:
    """SHA-256 (32 bytes) of the file's bytes.

    Read again whenever its size, its inode, or its time of modification or of change is another. The rule for young
    files is git's for an index entry as old as the index ("racy git").

    Raises:
        OSError: it cannot be read.
    """
    found = path.stat()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < SETTLED_NS:
        return _digest(path)
    return _remembered(path, _identity(found))


@functools.cache
def _remembered(path: Path, _identity: tuple[int, ...]) -> bytes:
    return _digest(path)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(path: Path) -> bytes:
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            sha.update(piece)
    return sha.digest()
