"""The GPU's device, by the real pycuda on the driver in pretence: run by test_cuda_device.py. Prints JSON.

Usage: python device_calls.py, with the driver's folder on LD_LIBRARY_PATH. The engine in pretence gives back its input:
its kernel is one copy within device memory, queued on the stream, so that it can be captured.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engines.contract import GpuUse
from engines.cuda import device
from engines.errors import EngineError
from engines.nvinfer.runner import NvinferRunner
from tests.engines.nvinfer.pretended import PretendedContext, PretendedGpu, pretended_trt

USED, CONTEXTS, LAUNCHES = 4, 5, 3
COPY = (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def told(call: Callable[[], object]) -> str:
    """What an error says."""
    try:
        call()
    except EngineError as error:
        return f"{type(error).__name__}: {error}"
    return "it went well"


def one_device(driver: Any) -> dict[str, Any]:
    """One device, and what is left of it."""
    with device.Device() as gpu:
        said = used(gpu, driver)
    return said | {"left": [driver.state(USED), driver.state(CONTEXTS)], "versions": device.versions()}


def used(gpu: device.Device, driver: Any) -> dict[str, Any]:
    """Memory, copies, events, and what goes wrong."""
    stream, start, end = gpu.stream(), gpu.event(), gpu.event()
    memory, host = gpu.allocate(24), gpu.pinned(24).view(np.float32)
    host[:] = [1, 2, 3, 4, 5, 6]
    start.record(stream)
    gpu.copy_in(memory, host, stream)
    end.record(stream)
    host[:] = 0
    gpu.copy_out(host, memory, stream)
    gpu.wait(stream)
    said: dict[str, Any] = {"back": host.tolist(), "ticks": start.time_till(end), "handle": stream.handle}
    said["free"] = gpu.free_mib()
    said["too much"] = told(lambda: gpu.allocate(2**20))
    said["too much pinned"] = told(lambda: gpu.pinned(2**21))
    driver.fail_at(5)
    said["broken"] = told(lambda: gpu.wait(stream))
    driver.fail_at(0)
    memory.free()
    return said


class Copying(PretendedContext):
    """Its kernel copies x to y, on the stream that it is given."""

    driver: Any = None

    def execute_async_v3(self, handle: int) -> bool:
        num_bytes = 4 * int(np.prod(self.shape))
        return bool(self.driver.cuMemcpyHtoDAsync_v2(self.address["y"], self.address["x"], num_bytes, handle) == 0)


def runner(driver: Any, *, cannot_capture: bool) -> dict[str, Any]:
    """Four queries of one shape and one of another, by the whole runner."""
    Copying.driver = driver
    unused = PretendedGpu()
    trt = pretended_trt(unused, lambda: Copying(unused))
    launches = driver.state(LAUNCHES)
    driver.fail_at(2 if cannot_capture else 0)
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "engine.plan"
        plan.write_bytes(b"plan")
        with NvinferRunner(plan, lambda: trt, device.Device, use=GpuUse()) as loaded:
            feeds = [np.full((rows, 2), number, np.float32) for number, rows in enumerate((3, 3, 3, 3, 1))]
            right = [bool((loaded.infer({"x": feed})["y"] == feed).all()) for feed in feeds]
            facts = loaded.facts()
    driver.fail_at(0)
    return {
        "right": right,
        "launches": driver.state(LAUNCHES) - launches,
        "memory": facts.device_memory_mib,
        "device_ms": None if facts.times is None else facts.times.compute_ms,
        "notes": list(facts.notes),
        "left": [driver.state(index) for index in (0, 1, 2, USED, CONTEXTS)],
    }


def in_flight(driver: Any) -> dict[str, Any]:
    """Nine queries, three in flight at once, each execution context with a graph of its own."""
    Copying.driver = driver
    unused = PretendedGpu()
    trt = pretended_trt(unused, lambda: Copying(unused))
    feeds = [{"x": np.full((2, 2), number, np.float32)} for number in range(9)]
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "engine.plan"
        plan.write_bytes(b"plan")
        with NvinferRunner(plan, lambda: trt, device.Device, use=GpuUse(num_streams=3)) as loaded:
            answers = [float(outputs["y"][1, 1]) for outputs in loaded.infer_all(feeds)]
    return {"answers": answers, "left": [driver.state(index) for index in (0, 1, 2, USED, CONTEXTS)]}


def main() -> None:
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuMemcpyHtoDAsync_v2.argtypes = COPY
    said = {"device": one_device(driver)}
    said["runner"] = runner(driver, cannot_capture=False)
    said["in flight"] = in_flight(driver)
    said["cannot capture"] = runner(driver, cannot_capture=True)
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
