"""The small files that a system tells its state in, below /proc, /sys and /etc: read without ever failing."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path


def text_of(path: Path) -> str:
    """A small system file's text; empty where there is none, or none that this user may read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def number_of(path: Path) -> float:
    """The number that begins the file; NaN where there is no file, or no finite number in it. Takes microseconds."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            number = float(os.read(descriptor, 64).split()[0])
        finally:
            os.close(descriptor)
    except (OSError, ValueError, IndexError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def folders(root: Path, pattern: str) -> list[Path]:
    """What matches the pattern below the root, in order; empty where a folder may not be read."""
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []


def memory_kib(root: Path) -> dict[str, int]:
    """``proc/meminfo`` below the root: name -> KiB, such as of ``MemTotal``; empty where the system does not tell."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(value) for name, value in rows}
