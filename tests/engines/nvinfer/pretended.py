"""A pretended GPU, and a pretended TensorRT on it, for the runner's own work. They say nothing about the real ones.

The pretended engine doubles its input: float32 (N, 2), N from 1 to 4, or as its profiles say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.contract import DYNAMIC, Array, GpuUse
from engines.cuda.graph import NotCaptured
from engines.nvinfer.runner import NvinferRunner, PlanChecks

LINEAR = SimpleNamespace(name="LINEAR")
PLAIN = GpuUse(cuda_graph=False)
ONE_PROFILE = (((1, 2), (2, 2), (4, 2)),)


class Buffer:
    """Device memory: bytes, at an address."""

    addresses: dict[int, Buffer] = {}  # noqa: RUF012  what the pretended kernel reads and writes

    def __init__(self, num_bytes: int, calls: list[str]) -> None:
        self.data, self.calls = np.zeros(num_bytes, np.uint8), calls
        Buffer.addresses[id(self)] = self

    def __int__(self) -> int:
        return id(self)

    def free(self) -> None:
        self.calls.append("free")


class PretendedGraph:
    """Runs what was captured."""

    def __init__(self, queue: Callable[[], bool], calls: list[str]) -> None:
        self.queue, self.calls = queue, calls

    def launch(self) -> bool:
        self.calls.append("launch")
        return self.queue()

    def free(self) -> None:
        self.calls.append("free graph")


class PretendedGpu:
    """Host memory that writes down what is done with it. Its clock ticks a millisecond with each call."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.num_streams = 0
        self.free_memory_mib = 1000.0
        self.cannot_capture = ""

    def __enter__(self) -> PretendedGpu:
        self.calls.append("enter")
        return self

    def __exit__(self, *error: object) -> None:
        self.calls.append("exit")

    def stream(self) -> Any:
        self.num_streams += 1
        return SimpleNamespace(handle=self.num_streams + 6)

    def event(self) -> Any:
        event = SimpleNamespace(at_ms=0)

        def record(stream: Any) -> None:
            self.calls.append("record")
            event.at_ms = len(self.calls)

        event.record, event.time_till = record, lambda end: end.at_ms - event.at_ms
        return event

    def free_mib(self) -> float:
        return self.free_memory_mib

    def allocate(self, num_bytes: int) -> Buffer:
        self.calls.append(f"allocate {num_bytes}")
        self.free_memory_mib -= 1
        return Buffer(num_bytes, self.calls)

    def pinned(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        return np.zeros(num_bytes, np.uint8)

    def copy_in(self, device: Buffer, host: Array, stream: Any) -> None:
        self.calls.append(f"in {host.shape}")
        device.data[: host.nbytes] = host.reshape(-1).view(np.uint8)

    def copy_out(self, host: Array, device: Buffer, stream: Any) -> None:
        self.calls.append(f"out {host.shape}")
        host[...] = device.data[: host.nbytes].view(host.dtype).reshape(host.shape)

    def wait(self, stream: Any) -> None:
        self.calls.append("wait")

    def capture(self, stream: Any, queue: Callable[[], bool]) -> PretendedGraph:
        if self.cannot_capture:
            raise NotCaptured(self.cannot_capture)
        self.calls.append("capture")
        return PretendedGraph(queue, self.calls)


class PretendedContext:
    """An execution context; its kernel takes the layers' times to a profiler, if it is asked to."""

    layer_times_ms: tuple[tuple[str, float], ...] = (("conv + relu", 0.75), ("copy", 0.25))

    def __init__(self, gpu: PretendedGpu, works: bool = True) -> None:
        self.gpu, self.works = gpu, works
        self.address: dict[str, int] = {}
        self.shape: tuple[int, ...] = (DYNAMIC, 2)
        self.active_optimization_profile = 0
        self.takes_profiles = True
        self.profiler: Any = None

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        self.gpu.calls.append(f"profile {index}")
        return self.takes_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address[name] = address

    def execute_async_v3(self, handle: int) -> bool:
        self.gpu.calls.append(f"execute on {handle}")
        source, target = (Buffer.addresses[self.address[name]].data.view(np.float32) for name in ("x", "y"))
        target[:] = source * 2
        return self.works

    def report_to_profiler(self) -> bool:
        for name, time_ms in self.layer_times_ms:
            self.profiler.report_layer_time(name, time_ms)
        return self.works


def pretended_trt(
    gpu: PretendedGpu, context: Callable[[], Any], profiles: tuple[Any, ...] = ONE_PROFILE, **engine: Any
) -> ModuleType:
    """A module with as much of TensorRT as the runner touches."""

    class Logger:
        ERROR, INTERNAL_ERROR, WARNING = (SimpleNamespace(name=name) for name in ("ERROR", "INTERNAL", "WARNING"))

    class Profiler:
        pass

    parts = {
        "num_io_tensors": 2,
        "num_optimization_profiles": len(profiles),
        "get_tensor_name": lambda index: "xy"[index],
        "get_tensor_mode": lambda name: "IN" if name == "x" else "OUT",
        "get_tensor_dtype": lambda name: SimpleNamespace(name="FLOAT"),
        "get_tensor_location": lambda name: "DEVICE",
        "get_tensor_format": lambda name: LINEAR,
        "get_tensor_shape": lambda name: (DYNAMIC, 2),
        "get_tensor_profile_shape": lambda name, profile: profiles[profile],
        "create_execution_context": context,
        **engine,
    }
    loaded = SimpleNamespace(**parts)

    def load(data: bytes) -> Any:
        gpu.calls.append("load")
        return loaded if data == b"plan" else None

    trt = ModuleType("pretended")
    vars(trt).update(
        ILogger=Logger,
        IProfiler=Profiler,
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=load),
        TensorIOMode=SimpleNamespace(INPUT="IN"),
        TensorLocation=SimpleNamespace(DEVICE="DEVICE"),
        TensorFormat=SimpleNamespace(LINEAR=LINEAR),
        init_libnvinfer_plugins=lambda log, namespace: True,
        __version__="0.1",
    )
    return trt


def runner_of(
    gpu: PretendedGpu, folder: Path, trt: ModuleType, use: GpuUse | None = None, **record: Any
) -> NvinferRunner:
    """A runner of the pretended engine, which lies in the folder."""
    if not (folder / "engine.plan").exists():
        (folder / "engine.plan").write_bytes(b"plan")
    return NvinferRunner(
        folder / "engine.plan", lambda: trt, lambda: gpu, PlanChecks(lambda path: record), use or GpuUse()
    )


def feed(num_rows: int) -> dict[str, Array]:
    """0, 1, 2, ... in ``num_rows`` rows of two."""
    return {"x": np.arange(2 * num_rows, dtype=np.float32).reshape(num_rows, 2)}
