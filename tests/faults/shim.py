"""`syscalls.c` built and driven: at which call of a process, and of all that it starts, what happens."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

FIELDS = struct.Struct("=4q64s512s512s")
KILL = 0


def why_not() -> str:
    """Empty if the library can be built here."""
    return "" if shutil.which("cc") else "no C compiler"


def built(folder: Path) -> Path:
    """The library, built there."""
    library = folder / "syscalls.so"
    source = Path(__file__).with_name("syscalls.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Shim:
    """What all processes share that were started with ``environment``."""

    def __init__(self, folder: Path) -> None:
        """Nothing is armed. ``folder`` has the library, if it was built, and gets a file."""
        self._library, self._file = folder / "syscalls.so", folder / "state"
        if not self._file.exists():
            self._file.write_bytes(bytes(FIELDS.size))
        with self._file.open("r+b") as stream:
            self._state = mmap.mmap(stream.fileno(), FIELDS.size)

    def environment(self) -> dict[str, str]:
        """For whoever is to be watched."""
        return os.environ | {"LD_PRELOAD": str(self._library), "FAULTS_STATE": str(self._file)}

    def arm(self, root: Path, at: int = 0, error: int = KILL) -> None:
        """Count the calls that change something below ``root``; at the n-th, kill, or from it on, fail like that."""
        self._state[:] = FIELDS.pack(1, 0, at, error, b"", b"", str(root).encode())

    def disarm(self) -> tuple[int, str]:
        """Count no more; how many calls there were, and the one at which it happened, with its path."""
        _, count, at, error, what, path, root = FIELDS.unpack(self._state[:])
        self._state[:] = FIELDS.pack(0, count, at, error, what, path, root)
        return count, f"{what.rstrip(bytes(1)).decode()} {path.rstrip(bytes(1)).decode(errors='replace')}".strip()
