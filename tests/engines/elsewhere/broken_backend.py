"""A backend that goes wrong as native libraries do; it runs in the other process."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

from engines.contract import BuildOptions
from engines.errors import EngineError, OutOfMemory

os.write(1, b"this library greets everybody on stdout\n")


def why_not_build() -> str:
    print("so does this one")
    sys.stdout.flush()
    return "broken: it is made so"


def why_not_run() -> str:
    time.sleep(600)
    return ""


def versions() -> dict[str, str]:
    ctypes.string_at(0)
    return {}


def refuse(options: BuildOptions) -> None:
    os._exit(7)


def refuse_model(model: Path) -> None:
    kinds = {"memory": OutOfMemory("broken: full"), "engine": EngineError("broken: no"), "bug": KeyError("lost")}
    raise kinds.get(model.name) or OSError(28, "No space left on device", str(model))
