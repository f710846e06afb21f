"""Write a small file whole or not at all, where several processes may do so at once and each may be killed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_whole(file: Path, data: bytes) -> None:
    """Write beside the file, to the disk, and rename; the last one wins. What a killed process left is used again.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    while True:
        with part.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_at(part, stream.fileno()):
                continue  # Who had the lock has renamed it.
            try:
                stream.truncate(0)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                part.replace(file)
            except OSError:
                part.unlink(missing_ok=True)
                raise
        break
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
