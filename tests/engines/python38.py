"""A real Python 3.8 with what runs in it on JetPack 5; tests that need it are skipped aloud where there is none."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from engines import backend
from engines.contract import Backend
from engines.elsewhere.backend import ElsewhereBackend
from engines.elsewhere.process import ElsewhereProcess

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


@contextmanager
def process_of(module: ModuleType) -> Iterator[ElsewhereProcess]:
    """A process of it that serves a module of the tests as TensorRT; it ends with the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        process = ElsewhereProcess(str(python38()), module.__name__, "tensorrt")
        yield process
        process.close()


class ThroughProcess:
    """A backend whose functions are called in another process; its names are those of the module here."""

    def __init__(self, module: ModuleType, there: ElsewhereBackend) -> None:
        self._module, self._there = module, there

    def __getattr__(self, name: str) -> Any:
        verbs = [verb for verb in vars(ElsewhereBackend) if verb[0] != "_" and hasattr(self._module, verb)]
        return getattr(self._there if name in verbs else self._module, name)


@cache
def backend_in_38(name: str) -> Backend:
    """That backend, in one process of Python 3.8 for all tests of this one."""
    module = sys.modules[backend(name).__name__]  # type: ignore[attr-defined]
    process = ElsewhereProcess(str(python38()), module.__name__, name)
    return cast(Backend, ThroughProcess(module, ElsewhereBackend(process)))


def other_python(version: str) -> str:
    """A bare Python of that version, as of another system."""
    found = sorted(Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob(f"versions/{version}.*/bin/python"))
    path = str(found[0]) if found else shutil.which(f"python{version}")
    if path is None:
        pytest.skip(f"there is no Python {version}, neither of pyenv nor on PATH")
    return path
