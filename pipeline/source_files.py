"""The program's own source files, as they were when this process began to load them.

``pipeline/__init__.py`` imports this before anything else, and before any long work.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "calibration", "engines")
SUFFIXES = (".py", ".pyi", ".c")

State: TypeAlias = tuple[int, ...]
"""What changes when a file is written; empty for one that is not there."""


def state_of(file: Path) -> State:
    """The file's state now."""
    try:
        return _state(file.stat())
    except OSError:
        return ()


def _state(status: os.stat_result) -> State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def states(root: Path) -> dict[str, State]:
    """The state of every source file now, by its path below ``root``."""
    by_path = {}
    folders = list(PACKAGES)
    for folder in folders:  # It grows.
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue  # What editors and file systems leave beside a file.
                if entry.is_dir():
                    folders.append(f"{folder}/{entry.name}")
                elif entry.name.endswith(SUFFIXES):
                    by_path[f"{folder}/{entry.name}"] = state_of(root / folder / entry.name)
    return by_path


TAKEN_NS = time.time_ns()
AT_START = states(ROOT)
