"""Benchmarks, gates and cold starts of an engine in a process of Python 3.8: its queries are timed there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.data.batches import Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource, InputSpec
from engines.backends import reference, tensorrt
from engines.contract import GpuUse
from engines.elsewhere.backend import ElsewhereBackend, ElsewhereRunner
from engines.elsewhere.process import ElsewhereProcess
from pipeline.artifact import Engine
from pipeline.engine_runner import engine_process, runner_of
from pipeline.errors import ConfigError
from pipeline.gate import process_cost
from pipeline.gate.budget import budget_from_text
from pipeline.gate.checks import GateEngines
from pipeline.gate.latency import Comparison, run_comparisons_here
from pipeline.latency.protocol import Pairing, Protocol
from pipeline.latency.scenarios import Scenario
from pipeline.stages.benchmark import Benchmark, loaded_alone, measure_engines
from tests.engines.elsewhere import pretended_backend
from tests.engines.python38 import process_of, python38

QUICK = Protocol(warmup_queries=1, warmup_seconds=0, min_queries=8, min_seconds=0, num_blocks=4)


@pytest.fixture(scope="module")
def there() -> Iterator[ElsewhereBackend]:
    """The pretended TensorRT."""
    with process_of(pretended_backend) as process:
        yield ElsewhereBackend(process)


@pytest.fixture
def engine(there: ElsewhereBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    def load(path: Path, *, num_threads: int, use: GpuUse | None = None) -> ElsewhereRunner:
        return there.load(path, num_threads, use)

    monkeypatch.setattr(tensorrt, "load", load)
    (tmp_path / "engine.plan").write_bytes(b"plan")
    return Engine(tmp_path / "engine.plan", backend="tensorrt", min_batch=1, max_batch=4)


def rows(folder: Path, num_samples: int) -> Samples:
    np.savez(folder / "x.npz", x=np.zeros((num_samples, 2), np.float32))
    return open_samples(DataSource(str(folder / "x.npz")), (InputSpec("x", "float32", (-1, 2)),), Preprocess())


@pytest.mark.parametrize("scenario", ["single_stream", "offline", "server"])
def test_a_benchmark(engine: Engine, tmp_path: Path, scenario: Scenario) -> None:
    protocol = replace(QUICK, scenario=scenario, queries_per_s=2000.0 if scenario == "server" else 0.0)
    measured = measure_engines(
        Benchmark(batch_sizes=(1, 4), protocol=protocol), {"a": engine}, {"a": rows(tmp_path, 8)}
    )
    assert [timing.num_queries for timing in measured.timings] == [8, 8]
    for timing, split in zip(measured.timings, measured.splits):
        queries = timing.queries
        assert (np.diff(queries.started_ms) > 0).all(), "on the clock of this process"
        assert queries.started_ms[0] >= 0
        assert set(queries.device_ms.tolist()) <= {2.0, 3.0}, "kernel by kernel, and as a graph"
        assert split is not None
        assert (split.host_to_device_ms, split.compute_ms, split.device_to_host_ms) == (2, 3, 2)
    assert measured.runners["a"]["device_memory_mib"] is not None


@pytest.mark.parametrize("reload", [True, False])
@pytest.mark.parametrize("scenario", ["single_stream", "offline"])
def test_a_gate(engine: Engine, tmp_path: Path, scenario: Scenario, reload: bool) -> None:
    quick = Pairing(max_seconds=600, reload=reload, warmup_seconds=0, load_seconds=0, scenario=scenario)
    comparison = Comparison("a", 4, (budget_from_text("throughput_per_s at batch 4 >= 1", ""),))
    engines = GateEngines({"a": engine, "b": engine}, "b")
    (result,) = run_comparisons_here(engines, rows(tmp_path, 8), [comparison], (quick, 0))
    assert result.paired.limit_results[0].outcome == "pass"


def test_a_sample_without_the_batch_axis_is_taken_by_the_model(there: ElsewhereBackend, tmp_path: Path) -> None:
    """As a model with an input that has none, beside one that has."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 2] x, float[2] k) => (float[1, 2] y) { y = Add(x, k) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "engine.onnx")
    process = ElsewhereProcess(str(python38()), reference.__name__, "reference")
    far = ElsewhereBackend(process)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "load", lambda path, *, num_threads: far.load(path, num_threads))
        patch.setattr(reference, "process_id", process.process_id, raising=False)
        np.savez(tmp_path / "x.npz", x=np.zeros((4, 2), np.float32), k=np.ones((4, 2), np.float32))
        specs = InputSpec("x", "float32", (1, 2)), InputSpec("k", "float32", (1, 2), is_whole=True)
        samples = open_samples(DataSource(str(tmp_path / "x.npz")), specs, Preprocess())
        engine = Engine(tmp_path / "engine.onnx", backend="reference")
        measured = measure_engines(Benchmark(batch_sizes=(1,), protocol=QUICK), {"a": engine}, {"a": samples})
        assert measured.timings[0].num_queries == 8
        threads = Benchmark(batch_sizes=(1,), protocol=QUICK, together_in="threads")
        refused = pytest.raises(ConfigError, match="another Python holds the engines, and serves one query at a time")
        with refused, loaded_alone(threads, "a", engine, samples):
            pass
        assert engine_process(engine) == process.process_id()
        feed = next(iter(samples.batches(1)))
        with runner_of(engine, 0) as runner:
            assert runner.infer(feed)["y"].tolist() == [[1, 1]]
        start = process_cost._start(engine, feed, 0)
        assert start.cold_start_ms > 0
        assert 10 < start.peak_memory_mib < 1000, "of the process that holds the engine"
    process.close()
