"""The offline scenario on a backend with streams: its runner is the real one, on a pretended GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest

from calibration.data.batches import Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource, InputSpec
from engines.backends import tensorrt
from engines.contract import Array, GpuUse
from engines.timed_queries import BatchesInFlight
from pipeline.artifact import Engine
from pipeline.gate.budget import budget_from_text
from pipeline.gate.checks import GateEngines
from pipeline.gate.latency import Comparison, run_comparisons_here
from pipeline.latency.benchmark import Candidate, measure
from pipeline.latency.offline import streaming_runner
from pipeline.latency.protocol import Pairing, Protocol
from pipeline.latency.scenarios import Load
from pipeline.latency.together import measure_together
from pipeline.stages.benchmark import Benchmark, loaded_alone, measure_engines
from tests.engines.nvinfer.pretended import PretendedContext, PretendedGpu, pretended_trt, runner_of

ONE_STREAM = GpuUse()
OFFLINE = Protocol(
    warmup_queries=1, warmup_seconds=0, min_queries=8, min_seconds=0, num_blocks=4, scenario="offline", num_streams=3
)


@pytest.fixture
def gpu() -> PretendedGpu:
    return PretendedGpu()


def numbered(num_rows: int) -> Iterator[dict[str, Array]]:
    for number in count():
        yield {"x": np.full((num_rows, 2), number, np.float32)}


def test_answers_come_in_order_and_what_is_in_flight_is_waited_for(gpu: PretendedGpu, tmp_path: Path) -> None:
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu))
    with runner_of(gpu, tmp_path, trt, GpuUse(num_streams=3)) as runner:
        one, four = BatchesInFlight(runner, numbered(1)), BatchesInFlight(runner, numbered(4))
        assert [float(one.next()["y"][0, 0]) for _ in range(5)] == [0, 2, 4, 6, 8]
        times = runner.facts().times
        assert times is not None
        assert times.compute_ms > 0, "of a query that is done"
        gpu.calls.clear()
        one.end()
        assert gpu.calls == ["wait", "wait"]
        one.end()
        assert four.next()["y"].shape == (4, 2), "the lanes are free for another batch size"
        four.end()
        assert float(one.next()["y"][0, 0]) == 16, "three had been in flight, and were dropped"
        one.end()


def test_candidates_rest_whenever_others_have_their_turn() -> None:
    turns: list[str] = []

    def candidate(name: str) -> Candidate:
        return Candidate(name, 1, lambda: turns.append(name), lambda: None, lambda: turns.append(f"{name} rests"))

    measure([candidate("a"), candidate("b")], OFFLINE)
    for before, after in pairwise(turns):
        name = before.partition(" ")[0]
        assert after in (name, f"{name} rests") or before.endswith("rests")


def rows(folder: Path, num_samples: int) -> Samples:
    np.savez(folder / "x.npz", x=np.zeros((num_samples, 2), np.float32))
    return open_samples(DataSource(str(folder / "x.npz")), (InputSpec("x", "float32", (-1, 2)),), Preprocess())


@pytest.fixture
def engine(gpu: PretendedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu))
    runner_of(gpu, tmp_path, trt)  # It writes the engine.

    def load(path: Path, *, num_threads: int, use: GpuUse = ONE_STREAM) -> object:
        return runner_of(gpu, tmp_path, trt, use)

    monkeypatch.setattr(tensorrt, "load", load)
    return Engine(tmp_path / "engine.plan", backend="tensorrt", min_batch=1, max_batch=4)


def test_a_benchmark_has_several_batches_in_flight(gpu: PretendedGpu, engine: Engine, tmp_path: Path) -> None:
    stage = Benchmark(batch_sizes=(1, 4), protocol=OFFLINE)
    measured = measure_engines(stage, {"a": engine}, {"a": rows(tmp_path, 8)})
    assert [timing.num_queries for timing in measured.timings] == [8, 8]
    assert gpu.num_streams == 3
    order = [call.split()[0] for call in gpu.calls if call.startswith(("execute", "wait", "launch"))]
    assert order[:4] == ["execute", "execute", "execute", "wait"]
    assert measured.splits[0] is not None
    assert gpu.calls[-1] == "exit"


def test_a_gate_of_throughput_has_several_batches_in_flight(gpu: PretendedGpu, engine: Engine, tmp_path: Path) -> None:
    quick = Pairing(max_seconds=600, reload=False, warmup_seconds=0, load_seconds=0)
    pairing = replace(quick, scenario="offline", num_streams=3)
    comparison = Comparison("a", 4, (budget_from_text("throughput_per_s at batch 4 >= 1", ""),))
    (result,) = run_comparisons_here(GateEngines({"a": engine}, ""), rows(tmp_path, 8), [comparison], (pairing, 0))
    assert result.paired.limit_results[0].outcome == "pass"
    assert gpu.num_streams == 3
    order = [call.split()[0] for call in gpu.calls if call.startswith(("execute", "wait", "launch"))]
    assert order[:4] == ["execute", "execute", "execute", "wait"]
    assert gpu.calls[-1] == "exit"
    assert "3 in flight at once" in pairing.describe()


def test_who_has_no_streams(tmp_path: Path) -> None:
    plan = Engine(tmp_path / "a.plan", backend="tensorrt")
    assert streaming_runner(plan, OFFLINE.load, 0) is not None
    assert streaming_runner(plan, Load("single_stream", 0.0, "poisson"), 0) is None
    assert streaming_runner(replace(plan, backend="onnxruntime"), OFFLINE.load, 0) is None
    assert streaming_runner(replace(plan, simulated=True), OFFLINE.load, 0) is None


def test_engines_at_once_in_threads_have_a_stream_each_of_one_context(
    gpu: PretendedGpu, engine: Engine, tmp_path: Path
) -> None:
    """TensorRT's runner is loaded, run and left by one thread, whose context it is."""
    protocol = Protocol(warmup_queries=1, warmup_seconds=0, min_queries=8, min_seconds=0.0, num_blocks=6)
    stage = Benchmark(protocol=protocol, together_in="threads")
    samples = rows(tmp_path, 8)
    loaders = {name: partial(loaded_alone, stage, name, engine, samples) for name in ("a", "b")}
    (tmp_path / "work").mkdir()
    timings = measure_together(tmp_path / "work", loaders, "threads", protocol)
    assert [timing.name for timing in timings.beside] == ["a", "b"]
    assert gpu.num_streams == 2
    assert gpu.calls.count("enter") == gpu.calls.count("exit") == 2
