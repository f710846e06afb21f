"""Write a small file whole or not at all, where several processes may do so at once and each may be killed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


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
            if not part.exists() or not os.path.samestat(os.fstat(stream.fileno()), part.stat()):
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
