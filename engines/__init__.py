"""Engines: what runs a network on a device, one backend per runtime.

A leaf: it knows arrays, ONNX files and engine files, and nothing of calibration or of the pipeline.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engines.errors import Unavailable

if TYPE_CHECKING:
    from engines.contract import Backend, StreamingBackend

BACKENDS = tuple(
    sorted(file.stem for file in (Path(__file__).parent / "backends").glob("*.py") if file.stem[0] not in "._")
)
"""The files in ``engines/backends/``."""


def backend(name: str) -> Backend:
    """The backend of that name. Loads this project's file for it, not the runtime itself.

    Raises:
        Unavailable: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise Unavailable(f"backend '{name}': no such backend; choose one of {', '.join(BACKENDS)}")
    return cast("Backend", importlib.import_module(module_of(name)))


def module_of(name: str) -> str:
    """The backend's module."""
    return f"engines.backends.{name}"


def builders() -> tuple[str, ...]:
    """The backends that engines can be built for. Loads this project's file for each."""
    return tuple(name for name in BACKENDS if backend(name).CAN_BUILD)


def streaming_backend(name: str) -> StreamingBackend | None:
    """That backend, if its runners can have several queries in flight; else None."""
    return cast("StreamingBackend", backend(name)) if backend(name).STREAMS else None
