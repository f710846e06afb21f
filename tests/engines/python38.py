"""A real Python 3.8 with what runs in it on JetPack 5; tests that need it are skipped aloud where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv" / "python38"


def python38() -> Path:
    """Its interpreter."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no Python 3.8 with numpy and onnx; scripts/bindings makes it where it finds a Python 3.8")
    return python


def with_bindings() -> dict[str, str]:
    """The environment in which it finds the real bindings of TensorRT 8.5.3, above libraries that are stubs."""
    folder = ENVIRONMENT / "bindings"
    if not folder.is_dir():
        pytest.skip("TensorRT's bindings 8.5.3 for Python 3.8 are not there; scripts/bindings gets them")
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "LD_LIBRARY_PATH": str(folder / "stubs")}
