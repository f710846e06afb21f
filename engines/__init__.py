"""One file per runtime, the only place that names it; the file's name is the backend's name.

A leaf: it knows arrays, ONNX files and engine files, and nothing of calibration or of the pipeline.
"""

import importlib
from typing import cast

from engines.contract import Backend, StreamingBackend
from engines.errors import Unavailable

BACKENDS = ("onnxruntime", "reference", "tensorflow", "tensorrt", "tensorrt_rtx")
STREAMING = ("tensorrt", "tensorrt_rtx")
"""Those that are ``StreamingBackend``."""


def backend(name: str) -> Backend:
    """The backend of that name. Loads this project's file for it, not the runtime itself.

    Raises:
        Unavailable: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise Unavailable(f"backend '{name}': no such backend; choose one of {', '.join(BACKENDS)}")
    return cast(Backend, importlib.import_module(module_of(name)))


def module_of(name: str) -> str:
    """The backend's module."""
    return f"engines.{name}"


def streaming_backend(name: str) -> StreamingBackend | None:
    """That backend, if its runners can have several queries in flight; else None."""
    return cast(StreamingBackend, backend(name)) if name in STREAMING else None
