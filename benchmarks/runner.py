"""What our runner costs the host per query, beside the same CUDA and TensorRT calls written out by hand.

Usage: python -m benchmarks.runner [ENGINE] [--backend NAME] [--batch N] [--queries N] [--rounds N] [--json FILE]

With ENGINE, on a GPU: an engine of --backend, its inputs of --batch. Without: a GPU in pretence whose calls do nothing,
so that the host's own work is all there is; it has no say on what a real call costs.

By hand: copy into page-locked memory, copy to the device, ``execute_async_v3``, copy back, wait, copy out; memory,
addresses and shapes are set before. Ours does the same, checks the feed and records four events. All ways take turns,
round by round; per way the median of all queries. Prints the difference in microseconds and the ratio; at most 5
microseconds or 2 % is what we hold ourselves to.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from engines import backend
from engines.contract import DYNAMIC, Array, GpuUse, Runner
from engines.cuda import device as cuda
from engines.nvinfer.builder import logger
from engines.nvinfer.execution import CudaDevice
from engines.nvinfer.runner import NvinferRunner
from engines.nvinfer.tensor_io import io_of

MOST_US, MOST_SHARE = 5.0, 0.02
NUM_WARMUP = 50
Query = Callable[[], object]


class Nothing:
    """A GPU in pretence: its memory is the host's, and its calls do nothing."""

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *error: object) -> None: ...

    def stream(self) -> Any:
        return SimpleNamespace(handle=7)

    def event(self) -> Any:
        return SimpleNamespace(record=lambda stream: None, time_till=lambda end: 0.0)

    def free_mib(self) -> float:
        return 0.0

    def allocate(self, num_bytes: int) -> Any:
        return Address(num_bytes)

    def pinned(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        return np.zeros(num_bytes, np.uint8)

    def copy_in(self, device: Any, host: Array, stream: Any) -> None: ...

    def copy_out(self, host: Array, device: Any, stream: Any) -> None: ...

    def wait(self, stream: Any) -> None: ...

    def capture(self, stream: Any, queue: Callable[[], bool]) -> Any:
        return SimpleNamespace(launch=lambda: True, free=lambda: None)


class Address(int):
    """Device memory in pretence."""

    def free(self) -> None: ...


def nothing_trt() -> ModuleType:
    """A TensorRT in pretence: one input, float32 (N, 16), and one output of that shape; it computes nothing."""
    shape = {"now": (1, 16)}
    context = SimpleNamespace(
        active_optimization_profile=0,
        set_input_shape=lambda name, wanted: shape.update(now=wanted) is None,
        get_tensor_shape=lambda name: shape["now"],
        set_tensor_address=lambda name, address: True,
        execute_async_v3=lambda handle: True,
    )
    engine = SimpleNamespace(
        num_io_tensors=2,
        num_optimization_profiles=1,
        get_tensor_name=lambda index: "xy"[index],
        get_tensor_mode=lambda name: name,
        get_tensor_dtype=lambda name: SimpleNamespace(name="FLOAT"),
        get_tensor_location=lambda name: "device",
        get_tensor_format=lambda name: "linear",
        get_tensor_shape=lambda name: (DYNAMIC, 16),
        get_tensor_profile_shape=lambda name, profile: ((1, 16), (8, 16), (64, 16)),
        create_execution_context=lambda: context,
    )
    trt = ModuleType("pretended")
    vars(trt).update(
        ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
        TensorIOMode=SimpleNamespace(INPUT="x"),
        TensorLocation=SimpleNamespace(DEVICE="device"),
        TensorFormat=SimpleNamespace(LINEAR="linear"),
        init_libnvinfer_plugins=lambda log, namespace: True,
        __version__="0",
    )
    return trt


def by_hand(trt: Any, gpu: CudaDevice, plan: Path, feed: Mapping[str, Array]) -> Query:
    """The calls alone, for this feed. The GPU's context is current."""
    runtime = trt.Runtime(logger(trt)[0])
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    context, stream = engine.create_execution_context(), gpu.stream()
    handle = stream.handle
    io = io_of(trt, engine, plan)
    for name, array in feed.items():
        context.set_input_shape(name, array.shape)
    ins, outs = [], []
    for spec in (*io.inputs, *io.outputs):
        shape, dtype = tuple(context.get_tensor_shape(spec.name)), np.dtype(spec.dtype)
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        device, host = gpu.allocate(num_bytes), gpu.pinned(num_bytes).view(dtype).reshape(shape)
        context.set_tensor_address(spec.name, int(device))
        if spec in io.inputs:
            ins.append((feed[spec.name], host, device))
        else:
            outs.append((spec.name, host, device))

    def query() -> dict[str, Array]:
        for array, host, device in ins:
            np.copyto(host, array)
            gpu.copy_in(device, host, stream)
        context.execute_async_v3(handle)
        for _, host, device in outs:
            gpu.copy_out(host, device, stream)
        gpu.wait(stream)
        return {name: host.copy() for name, host, _ in outs}

    query.keeps = runtime, engine  # type: ignore[attr-defined]
    return query


def medians_us(queries: Mapping[str, Query], num_queries: int, num_rounds: int) -> dict[str, float]:
    """The median of each, microseconds; they take turns."""
    clock = time.perf_counter_ns
    times: dict[str, list[int]] = {name: [] for name in queries}
    for query in queries.values():
        for _ in range(NUM_WARMUP):
            query()
    for _ in range(num_rounds):
        for name, query in queries.items():
            for _ in range(num_queries):
                start = clock()
                query()
                times[name].append(clock() - start)
    return {name: statistics.median(found) / 1000 for name, found in times.items()}


def compared(
    trt: Any, open_gpu: Callable[[], CudaDevice], plan: Path, batch: int, counts: tuple[int, int]
) -> dict[str, float]:
    """Medians of all ways on one engine and a batch of zeros; ``counts``: queries per round and way, and rounds."""
    with ExitStack() as stack:
        gpu = stack.enter_context(open_gpu())
        plain, graph = (
            stack.enter_context(NvinferRunner(plan, lambda: trt, open_gpu, use=GpuUse(cuda_graph=on)))
            for on in (False, True)
        )
        feed = zeros(plain, batch)
        ways: dict[str, Query] = {
            "by hand": by_hand(trt, gpu, plan, feed),
            "ours": lambda: plain.infer(feed),
            "ours, CUDA graph": lambda: graph.infer(feed),
        }
        found = medians_us(ways, *counts)
        for note in graph.facts().notes:
            print(note, file=sys.stderr)
        ways.clear()  # What is by hand lives in the GPU's context, and must be gone before that is.
        return found


def zeros(runner: Runner, batch: int) -> dict[str, Array]:
    """Inputs of zeros with that batch, wherever a dimension is free."""
    return {
        spec.name: np.zeros([batch if n == DYNAMIC else n for n in spec.shape], spec.dtype) for spec in runner.inputs
    }


def too_much(found: Mapping[str, float]) -> str:
    """What of our ways costs more than we hold ourselves to; empty if none does."""
    base = found.get("by hand", 0.0)
    over = {
        name: value - base
        for name, value in found.items()
        if value > base + MOST_US and value > base * (1 + MOST_SHARE)
    }
    what = ", ".join(f"{name} {more:.1f} µs more than by hand ({base:.1f} µs)" for name, more in over.items())
    return f"{what}, at most {MOST_US:g} µs or {MOST_SHARE:.0%} is wanted" if over else ""


def lines(found: Mapping[str, float], gpu: str) -> list[str]:
    """A Markdown table: median, difference to by hand, and ratio."""
    base = found["by hand"]
    rows = [f"| on {gpu} | median µs | more µs | ratio |", "|---|--:|--:|--:|"]
    rows += [f"| {name} | {value:.2f} | {value - base:+.2f} | {value / base:.3f} |" for name, value in found.items()]
    return [*rows, too_much(found) or f"Within {MOST_US:g} µs or {MOST_SHARE:.0%}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, nargs="?")
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt_rtx"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--queries", type=int, default=500, help="per round and way")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the medians here too")
    given = parser.parse_args()
    counts = (given.queries, given.rounds)
    if given.engine is None:
        with tempfile.TemporaryDirectory() as folder:
            plan = Path(folder) / "engine.plan"
            plan.write_bytes(b"plan")
            found = compared(nothing_trt(), Nothing, plan, given.batch, counts)
        where = "a GPU in pretence, whose calls do nothing"
    else:
        if reason := backend(given.backend).why_not_run():
            sys.exit(reason)
        trt = importlib.import_module(given.backend)
        found = compared(trt, cuda.Device, given.engine, given.batch, counts)
        where = cuda.versions()["gpu"]
    if given.json:
        given.json.write_text(json.dumps({"where": where, "median_us": found}))
    print("\n".join(lines(found, where)))


if __name__ == "__main__":
    main()
