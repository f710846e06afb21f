"""CUDA graphs by the driver's own functions: pycuda has none of them.

What a call queues on a stream is captured instead of run, and from then on handed to the driver in one piece. A graph
keeps the addresses and shapes of its capture. (CUDA Driver API, Stream Management and Graph Management; the functions
are those of CUDA 11.4 and later, each is looked for before it is used.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does no harm
_FUNCTIONS = {
    "cuStreamBeginCapture_v2": (ctypes.c_void_p, ctypes.c_int),
    "cuStreamEndCapture": (ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphInstantiateWithFlags": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulonglong),
    "cuGraphDestroy": (ctypes.c_void_p,),
    "cuGraphLaunch": (ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphExecDestroy": (ctypes.c_void_p,),
}


class NotCaptured(RuntimeError):
    """There is no graph; the reason is the message, a part of a sentence. The stream captures no more."""


class Graph:
    """Captured work, ready to be launched on the stream that it was captured on."""

    def __init__(self, driver: Any, stream: int, executable: ctypes.c_void_p) -> None:
        self._driver, self._executable, self._stream = driver, executable, ctypes.c_void_p(stream)
        self._launch = driver.cuGraphLaunch

    def launch(self) -> bool:
        """Queue it all; whether the driver took it."""
        return bool(self._launch(self._executable, self._stream) == 0)

    def free(self) -> None:
        """Give it back; it must not run any more."""
        self._driver.cuGraphExecDestroy(self._executable)


def captured(driver: Any, stream: int, queue: Callable[[], bool]) -> Graph:
    """What ``queue`` puts on a stream, as a graph.

    Args:
        driver: libcuda, with a context current on this thread.
        stream: the ``CUstream`` as an integer; nothing is under way on it.
        queue: puts work on the stream; whether it could.

    Raises:
        NotCaptured: this driver has no graphs, or what is queued cannot be captured.
    """
    for name, arguments in _FUNCTIONS.items():
        if not hasattr(driver, name):
            raise NotCaptured(f"the driver has no {name}, which came with CUDA 11.4")
        getattr(driver, name).argtypes = arguments
    _checked(driver, "cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
    graph = ctypes.c_void_p()
    try:
        try:
            is_queued = queue()
        finally:  # Else the stream would go on capturing, and nothing would run on it any more.
            status = driver.cuStreamEndCapture(stream, ctypes.byref(graph))
        if not is_queued:
            raise NotCaptured("the work cannot be queued while it is captured")
        if status or not graph:
            raise NotCaptured(f"cuStreamEndCapture gives {error_name(driver, status)}")
        executable = ctypes.c_void_p()
        _checked(driver, "cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
    finally:
        if graph:
            driver.cuGraphDestroy(graph)
    return Graph(driver, stream, executable)


def error_name(driver: Any, status: int) -> str:
    """``CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`` for 900; the number where the driver has no name for it."""
    name = ctypes.c_char_p()
    if driver.cuGetErrorName(status, ctypes.byref(name)) or not name.value:
        return f"CUDA error {status}"
    return name.value.decode()


def _checked(driver: Any, name: str, *arguments: Any) -> None:
    if status := getattr(driver, name)(*arguments):
        raise NotCaptured(f"{name} gives {error_name(driver, status)}")
