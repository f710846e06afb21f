"""What a benchmark runs is compiled once and read compiled, as a program that pip installed is."""

from __future__ import annotations

import compileall
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "calibration", "engines", "benchmarks")


def compile_program() -> None:
    """Compile the packages of this checkout, and drop ``PYTHONDONTWRITEBYTECODE`` for all processes that are started.

    With it, and after an edit or a copy, each process compiles some 500 files again: 0.5 CPU seconds, of a command
    that takes 0.3 otherwise.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    for name in PACKAGES:
        compileall.compile_dir(ROOT / name, quiet=1)
