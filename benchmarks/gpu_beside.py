"""Engines on the GPU, ours beside others' runners on the same plans, in turns; and ours with several streams.

Usage: python -m benchmarks.gpu_beside --backend NAME --onnx FP32.onnx --engine NAME=PLAN ... [--batches 1,8,32]
    [--seconds S] --json FILE

On each plan: our runner with and without CUDA graphs, and Polygraphy's TrtRunner, whose answers are held to ours; ONNX
Runtime's CUDA provider on the FP32 model; where `trtexec` is installed, its own latency on the same plan, from a
process of its own (the sum of its copies and computation on the device, CUDA graphs on). What is not there, or fails,
is written down as missing, and why; what is done so far stands in FILE at any moment.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engines import backend
from engines.contract import DYNAMIC, Array, GpuUse, TensorSpec
from engines.cuda import device as cuda
from engines.errors import EngineError
from engines.nvinfer.runner import NvinferRunner
from pipeline.latency.benchmark import Candidate, measure
from pipeline.latency.protocol import Protocol

STREAMS = (1, 2, 4)
Infer = Callable[[dict[str, Array]], Mapping[str, Array]]
_TRTEXEC = re.compile(r"^(?:\[[^\]]*\] )*(Latency|GPU Compute Time): .*?median = ([0-9.]+) ms", re.MULTILINE)
"""At a line's start, for there are "H2D Latency" and "D2H Latency" too."""


@dataclass(frozen=True)
class Way:
    """One way to answer a query."""

    name: str
    infer: Infer
    device_ms: Callable[[], float | None] = lambda: None


class Missing(Exception):
    """What a runner lacks to be timed here."""


def drawn(inputs: tuple[TensorSpec, ...], batch: int) -> dict[str, Array]:
    """Inputs of that batch: uniform in [0, 1), the same each time."""
    draw = np.random.default_rng(0)
    shapes = {spec.name: [batch if n == DYNAMIC else n for n in spec.shape] for spec in inputs}
    return {spec.name: draw.random(shapes[spec.name]).astype(spec.dtype) for spec in inputs}


@contextmanager
def ours(name: str, plan: Path, use: GpuUse) -> Iterator[NvinferRunner]:
    """Our runner, without the preflight, which the pipeline has done."""
    with NvinferRunner(plan, partial(importlib.import_module, name), cuda.Device, use=use) as runner:
        yield runner


@contextmanager
def polygraphys(name: str, plan: Path) -> Iterator[Infer]:
    """Polygraphy's runner."""
    if name == "tensorrt_rtx":
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # It reads this when it is imported.
    try:
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    except ImportError as error:
        raise Missing(f"polygraphy: cannot be imported ({error})") from error
    with TrtRunner(EngineFromBytes(plan.read_bytes())) as runner:
        yield runner.infer


@contextmanager
def onnx_runtimes(model: Path) -> Iterator[Infer]:
    """ONNX Runtime's CUDA provider, and nothing else."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise Missing(f"onnxruntime: cannot be imported ({error})") from error
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise Missing("onnxruntime: has no CUDA provider; pip install onnxruntime-gpu")
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(model), settings, providers=["CUDAExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise Missing(f"onnxruntime: its CUDA provider does not take the model ({error})") from error
    names = [output.name for output in session.get_outputs()]
    yield lambda feed: dict(zip(names, session.run(names, feed)))


def beside(name: str, engine: tuple[str, Path], model: Path, batch: int, seconds: float) -> list[dict[str, Any]]:
    """All ways on one plan at one batch, in turns: a row each, or what is missing."""
    what, plan = engine
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        runners = {
            title: stack.enter_context(ours(name, plan, GpuUse(cuda_graph=graph)))
            for title, graph in (("ours", True), ("ours, no CUDA graph", False))
        }
        feed = drawn(runners["ours"].inputs, batch)
        ways = [Way(title, runner.infer, runner.device_ms) for title, runner in runners.items()]
        others = {
            "polygraphy": partial(polygraphys, name, plan),
            "ONNX Runtime CUDA, fp32": partial(onnx_runtimes, model),
        }
        wanted = ways[0].infer(feed)
        for title, opened in others.items():
            try:
                ways.append(Way(title, stack.enter_context(opened())))
                ways[-1].infer(feed)
            except Exception as error:  # noqa: BLE001  # Theirs have no common base, and ours shall be timed all the same.
                ways = [way for way in ways if way.name != title]
                rows.append({"engine": what, "batch": batch, "way": title, "missing": _reason(error)})
        apart = {way.name: _most_apart(way.infer(feed), wanted) for way in ways}
        protocol = Protocol(min_seconds=seconds, warmup_seconds=0.5)
        timings = measure([_candidate(way, batch, feed) for way in ways], protocol)
        notes = [note for runner in runners.values() for note in runner.facts().notes]
    for timing in timings:
        device = None if timing.device_ms is None else timing.device_ms.p50
        rows.append(
            {"engine": what, "batch": batch, "way": timing.name, "p50_ms": timing.latency_ms.p50}
            | {"p99_ms": timing.latency_ms.p99, "samples_per_s": timing.throughput_per_s, "device_p50_ms": device}
            | {"stable": timing.stable, "most_apart": apart[timing.name], "notes": notes}
        )
    return rows


def streams(name: str, engine: tuple[str, Path], batch: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Samples per second with so many queries in flight."""
    for number in STREAMS:
        row: dict[str, Any] = {"engine": engine[0], "batch": batch, "way": f"ours, {number} in flight"}
        try:
            yield row | {"samples_per_s": _rate(name, engine[1], batch, number, seconds)}
        except EngineError as error:
            yield row | {"missing": _reason(error)}


def _rate(name: str, plan: Path, batch: int, num_streams: int, seconds: float) -> float:
    with ours(name, plan, GpuUse(num_streams=num_streams)) as runner:
        feed = drawn(runner.inputs, batch)
        for _ in runner.infer_all([feed] * 4 * num_streams):
            pass  # Graphs are captured.
        began = time.perf_counter()
        feeds = _until(feed, began + seconds)
        return sum(batch for _ in runner.infer_all(feeds)) / (time.perf_counter() - began)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, (Missing, EngineError)) else f"{type(error).__name__}: {error}"


def _until(feed: dict[str, Array], stop_at: float) -> Iterator[dict[str, Array]]:
    while time.perf_counter() < stop_at:
        yield feed


def trtexecs(engine: tuple[str, Path], inputs: tuple[TensorSpec, ...], batch: int, seconds: float) -> dict[str, Any]:
    """trtexec's own numbers on the plan."""
    row: dict[str, Any] = {"engine": engine[0], "batch": batch, "way": "trtexec"}
    program = shutil.which("trtexec") or next(iter(map(str, Path("/usr/src/tensorrt/bin").glob("trtexec"))), None)
    if program is None:
        return row | {"missing": "trtexec: is not on PATH"}
    shapes = [f"{spec.name}:{'x'.join(str(batch if n == DYNAMIC else n) for n in spec.shape)}" for spec in inputs]
    command = [program, f"--loadEngine={engine[1]}", f"--duration={seconds}", "--useCudaGraph"]
    dynamic = any(DYNAMIC in spec.shape for spec in inputs)
    command += [f"--shapes={','.join(shapes)}"] if dynamic else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = dict(_TRTEXEC.findall(done.stdout))
    if done.returncode or not found:
        return row | {"missing": f"trtexec: ended with {done.returncode} ({done.stderr.strip()[-200:]})"}
    return row | {"p50_ms": float(found["Latency"]), "device_p50_ms": float(found["GPU Compute Time"])}


def _most_apart(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    return max(
        float(np.abs(np.asarray(found[name], np.float64) - np.asarray(array, np.float64)).max())
        for name, array in wanted.items()
    )


def _candidate(way: Way, batch: int, feed: dict[str, Array]) -> Candidate:
    return Candidate(way.name, batch, partial(way.infer, feed), way.device_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt_rtx"))
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--engine", action="append", required=True, metavar="NAME=PLAN")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=2.0, help="of recorded queries per way and batch")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    if reason := backend(given.backend).why_not_run():
        sys.exit(reason)
    rows: list[dict[str, Any]] = []
    for text in given.engine:
        name, _, plan = text.partition("=")
        for batch in map(int, given.batches.split(",")):
            for row in _all_of(given, (name, Path(plan)), batch):
                rows.append(row)
                given.json.write_text(json.dumps(rows, indent=1))


def _all_of(given: argparse.Namespace, engine: tuple[str, Path], batch: int) -> Iterator[dict[str, Any]]:
    """The rows of one engine at one batch."""
    try:
        with ours(given.backend, engine[1], GpuUse()) as runner:
            inputs = runner.inputs
        yield from beside(given.backend, engine, given.onnx, batch, given.seconds)
    except EngineError as error:
        yield {"engine": engine[0], "batch": batch, "way": "ours", "missing": _reason(error)}
        return
    yield from streams(given.backend, engine, batch, given.seconds)
    yield trtexecs(engine, inputs, batch, given.seconds)


if __name__ == "__main__":
    main()
