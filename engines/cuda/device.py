"""The GPU: its driver, and through pycuda its primary context, memory, streams and events.

The primary context is the one that TensorRT, cudart and polygraphy use; ``pycuda.autoinit`` would make another.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.contract import Array
from engines.cuda import graph
from engines.errors import EngineError, OutOfMemory, Unavailable

_PACKAGE = "'trtforge[gpu]'" if sys.version_info >= (3, 10) else "pycuda==2025.1.2"
INSTALL = f"pip install {_PACKAGE} (pycuda is compiled: it needs nvcc on PATH, and a C++ compiler)"

_COMPUTE_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, cuda.h
_COMPUTE_CAPABILITY_MINOR = 76
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the null stream, without which nothing can be captured
_NVIDIA_DRIVER = Path("/sys/module/nvidia/version")
_NVIDIA_DRIVER_TEXT = Path("/proc/driver/nvidia/version")
"""Where a container does not see the module: ``NVRM version: ... Kernel Module  535.104.05  ...``."""


def why_no_gpu() -> str:
    """Empty if there is a driver and a GPU; else one sentence. Makes no context and does not need pycuda."""
    driver = _driver()
    if driver is None:
        return "no GPU: libcuda.so.1 is not there; run on a machine with an NVIDIA driver"
    status = int(driver.cuInit(0))
    number = ctypes.c_int(0)
    if status or driver.cuDeviceGetCount(ctypes.byref(number)) or not number.value:
        return f"no GPU: the driver finds no device (cuInit gives CUDA error {status}); check nvidia-smi"
    return ""


def why_no_pycuda() -> str:
    """Empty if pycuda is installed; else one sentence. Does not load it."""
    if importlib.util.find_spec("pycuda") is None:
        return f"pycuda: is not installed; {INSTALL}"
    return ""


def versions() -> dict[str, str]:
    """What the driver has of CUDA, and its own version; GPU name and compute capability of GPU 0.

    Empty on a machine without a GPU.
    """
    driver = _driver()
    if driver is None or why_no_gpu():
        return {}
    number, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    driver.cuDriverGetVersion(ctypes.byref(number))
    gpu_versions = {"cuda_driver": f"{number.value // 1000}.{number.value % 1000 // 10}"}
    driver.cuDeviceGetName(name, len(name), 0)
    gpu_versions["gpu"] = name.value.decode(errors="replace")
    numbers = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0)
        numbers.append(str(number.value))
    gpu_versions["compute_capability"] = ".".join(numbers)
    if driver_version := _nvidia_driver():
        gpu_versions["nvidia_driver"] = driver_version
    if not why_no_pycuda():
        cuda = _pycuda()
        gpu_versions["cuda"] = ".".join(map(str, cuda.get_version()))
    return gpu_versions


def _nvidia_driver() -> str:
    """The kernel module's version; empty where there is none of that name, as on older Jetsons, whose is L4T's."""
    if _NVIDIA_DRIVER.is_file():
        return _NVIDIA_DRIVER.read_text().strip()
    text = _NVIDIA_DRIVER_TEXT.read_text() if _NVIDIA_DRIVER_TEXT.is_file() else ""
    match = re.search(r"\d+\.\d+(\.\d+)?", text)
    return match[0] if match else ""


class Device:
    """GPU 0. Between ``__enter__`` and ``__exit__`` its primary context is current on this thread.

    Raises:
        Unavailable: no driver, no GPU, or pycuda is not installed.
        EngineError: from each method, when CUDA refuses (out of memory, a sticky error from a kernel).
    """

    def __enter__(self) -> Device:
        if reason := why_no_gpu():
            raise Unavailable(reason)
        self._cuda = _pycuda()
        self._cuda.init()
        self._context = self._cuda.Device(0).retain_primary_context()
        self._context.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.pop()
        self._context.detach()

    def stream(self) -> Any:
        """A new stream; its ``handle`` is the ``cudaStream_t`` as an integer, ``synchronize()`` waits for it."""
        return self._cuda.Stream(_NON_BLOCKING)

    def event(self) -> Any:
        """A new event with timing: ``record(stream)``, and ``start.time_till(end)`` in milliseconds."""
        return self._cuda.Event()

    def free_mib(self) -> float:
        """Memory of the GPU that nobody has, MiB."""
        return float(self._cuda.mem_get_info()[0]) / 2**20

    def allocate(self, num_bytes: int) -> Any:
        """Device memory: ``int()`` of it is the address, ``free()`` gives it back."""
        try:
            return self._cuda.mem_alloc(max(num_bytes, 1))
        except self._cuda.MemoryError as error:
            free, total = (amount // 2**20 for amount in self._cuda.mem_get_info())
            raise OutOfMemory(
                f"GPU: {num_bytes / 2**20:.0f} MiB are requested, {free} of {total} MiB are free; use a smaller batch"
            ) from error

    def pinned(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory: what copies at full speed and without waiting."""
        try:
            memory: npt.NDArray[np.uint8] = self._cuda.pagelocked_empty(max(num_bytes, 1), np.uint8)
        except self._cuda.MemoryError as error:
            raise OutOfMemory(
                f"GPU: {num_bytes / 2**20:.0f} MiB of page-locked host memory cannot be had; use a smaller batch"
            ) from error
        return memory

    def copy_in(self, device: Any, host: Array, stream: Any) -> None:
        """Host to device, queued on ``stream``."""
        try:
            self._cuda.memcpy_htod_async(device, host, stream)
        except self._cuda.Error as error:
            raise _broken(error) from error

    def copy_out(self, host: Array, device: Any, stream: Any) -> None:
        """Device to host, queued on ``stream``."""
        try:
            self._cuda.memcpy_dtoh_async(host, device, stream)
        except self._cuda.Error as error:
            raise _broken(error) from error

    def wait(self, stream: Any) -> None:
        """Until all that is queued on ``stream`` is done; what went wrong in it is told here."""
        try:
            stream.synchronize()
        except self._cuda.Error as error:
            raise _broken(error) from error

    def capture(self, stream: Any, queue: Callable[[], bool]) -> graph.Graph:
        """What ``queue`` puts on ``stream``, as a graph; ``NotCaptured`` says why there is none."""
        return graph.captured(_driver(), stream.handle, queue)


def _broken(error: Exception) -> EngineError:
    return EngineError(f"GPU: {' '.join(str(error).split())}; nothing more runs in this process, start it again")


@functools.lru_cache(maxsize=None)
def _driver() -> Any:
    """The driver's library, or None on a machine without one."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _pycuda() -> Any:
    try:
        import pycuda.driver
    except ImportError as error:  # also what a missing or wrong libcuda comes as
        raise Unavailable(f"pycuda: cannot be imported ({error}); {INSTALL}") from error
    return pycuda.driver
