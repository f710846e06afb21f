"""The stage `benchmark`: what it keeps of each query, and which batch sizes it takes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends import reference
from pipeline.artifact import Engine, OnnxModel, Timings
from pipeline.errors import ConfigError, Unavailable
from pipeline.latency.protocol import Protocol
from pipeline.latency.together import RunIn
from pipeline.machine import jetson, power_mode
from pipeline.stages import benchmark
from pipeline.stages.benchmark import (
    Benchmark,
    largest_batches_from,
    power_modes_from,
    timings_from,
    together_from_record,
    watched_from,
)
from pipeline.store import Store
from tests.pipeline.machine.jetsons import tree
from tests.pipeline.machine.nvpmodels import add_nvpmodel, device_in
from tests.pipeline.stages.networks import ELEMENTWISE, Out, samples_for, save

QUICK = Protocol(warmup_queries=1, warmup_seconds=0.0, min_queries=8, min_seconds=0.0, num_blocks=4)


def test_a_benchmark_keeps_every_query_and_can_be_read_back(net: OnnxModel, out: Out) -> None:
    stage = Benchmark(batch_sizes=(1, 4), num_threads=1, protocol=QUICK)
    engines = {"a": Engine(net.path), "b": Engine(net.path, simulated=True)}
    timings = stage(out(), engines, samples_for(net))
    record = timings.read()
    assert record["protocol"] == QUICK.describe()
    assert record["num_threads"] == 1
    assert record["machine"]["num_cores"] >= 1
    assert [(row["name"], row["batch_size"]) for row in record["timings"]] == [("a", 1), ("a", 4), ("b", 1), ("b", 4)]
    assert record["timings"][0]["engine"] == engines["a"].digest()
    for timing, row in zip(timings_from(timings), record["timings"], strict=True):
        assert timing.num_queries == len(timing.queries.latency_ms) >= 8
        assert timing.latency_ms.p50 == row["latency_ms"]["p50"] > 0
        assert timing.latency_ms.p50 in timing.queries.latency_ms
        assert timing.device_ms is None
        assert (timing.name, timing.batch_size, timing.stable) == (row["name"], row["batch_size"], row["stable"])


def test_an_engine_of_a_fixed_batch_is_timed_in_that_alone_and_it_is_said(tmp_path: Path, out: Out) -> None:
    """As a `.tflite` file beside engines that take any batch."""
    texts = {name: ELEMENTWISE.replace("BATCH", size) for name, size in (("open", "N"), ("fixed", "4"))}
    models = {name: save(text, tmp_path / f"{name}.onnx") for name, text in texts.items()}
    stage = Benchmark(batch_sizes=(1, 4), num_threads=1, protocol=QUICK)
    record = stage(
        out(), {name: Engine(model.path) for name, model in models.items()}, samples_for(models["open"])
    ).read()
    assert [(row["name"], row["batch_size"]) for row in record["timings"]] == [("open", 1), ("open", 4), ("fixed", 4)]
    assert record["runners"]["open"]["notes"] == []
    assert record["runners"]["fixed"]["notes"] == ["It takes batches of 4 alone, and was not timed in batches of 1."]


def test_what_the_monitor_saw_is_read_back_strictly(net: OnnxModel, out: Out) -> None:
    timings = Benchmark(protocol=QUICK)(out(), {"a": Engine(net.path)}, samples_for(net))
    assert watched_from(timings) is not None
    record = timings.read()
    record["monitor"]["num_readings"] = "12"
    timings.path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"timings\.json: monitor: num_readings: is '12', expected int"):
        watched_from(timings)


def test_lost_raw_samples_are_said(net: OnnxModel, out: Out) -> None:
    timings = Benchmark(protocol=QUICK)(out(), {"a": Engine(net.path)}, samples_for(net))
    timings.beside("a-batch1.npz").unlink()
    with pytest.raises(ConfigError, match=r"a-batch1\.npz"):
        timings_from(timings)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1, 11), r"batch_sizes has 11, but there are 10 samples to time with; give sizes from 1 to 10"),
        ((0,), "batch_sizes is 0, but must be at least 1"),
        ((1, -1), "batch_sizes is -1, but must be at least 1"),
        ((), "batch_sizes is empty; name at least one"),
    ],
)
def test_batch_sizes_must_be_had(net: OnnxModel, out: Out, sizes: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Benchmark(batch_sizes=sizes, protocol=QUICK)(out(), {"a": Engine(net.path)}, samples_for(net))


def test_batch_sizes_beyond_an_engines_bounds_are_refused(net: OnnxModel, out: Out) -> None:
    engine = Engine(net.path, min_batch=2, max_batch=4)
    with pytest.raises(ConfigError, match=r"a: takes batches from 2 to 4, but \[benchmark\] batch_sizes has 8"):
        Benchmark(batch_sizes=(4, 8), protocol=QUICK)(out(), {"a": engine}, samples_for(net))


def test_a_fixed_batch_takes_that_batch_alone(tmp_path: Path, out: Out) -> None:
    model = save(ELEMENTWISE.replace("BATCH", "4"), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"batch_sizes has 1, but the model's batch is fixed at 4; write"):
        Benchmark(protocol=QUICK)(out(), {"a": Engine(model.path)}, samples_for(model))


def test_an_engine_that_cannot_run_here_is_not_timed(net: OnnxModel, out: Out, monkeypatch: Any) -> None:
    monkeypatch.setattr(reference, "why_not_run", lambda: "reference: is asleep; wake it")
    with pytest.raises(Unavailable, match="is asleep; wake it"):
        Benchmark(protocol=QUICK)(out(), {"a": Engine(net.path), "b": Engine(net.path, "reference")}, samples_for(net))


def test_a_measurement_is_never_served(net: OnnxModel, tmp_path: Path) -> None:
    store, samples = Store(tmp_path / "store"), samples_for(net)
    first, second = (store.measure(Benchmark(protocol=QUICK), {"a": Engine(net.path)}, samples) for _ in range(2))
    assert isinstance(first, Timings)
    assert first.path != second.path
    assert first.path.is_file()


def test_a_benchmark_offline_goes_through_the_samples(net: OnnxModel, out: Out) -> None:
    stage = Benchmark(batch_sizes=(4,), num_threads=1, protocol=replace(QUICK, scenario="offline"))
    record = stage(out(), {"a": Engine(net.path)}, samples_for(net)).read()
    assert "LoadGen's Offline scenario" in record["protocol"]
    row = record["timings"][0]
    assert 0 < row["throughput_per_s"] <= 4e3 / row["latency_ms"]["mean"]


def test_a_benchmark_of_a_camera_leaves_a_trace(net: OnnxModel, out: Out) -> None:
    camera = replace(QUICK, scenario="server", queries_per_s=50.0, arrivals="fixed")
    stage = Benchmark(num_threads=1, trace_seconds=0.1, monitor_ms=20, protocol=camera)
    timings = stage(out(), {"a": Engine(net.path)}, samples_for(net))
    record = timings.read()
    assert "50 queries per second arrive evenly spaced" in record["protocol"]
    assert record["timings"][0]["throughput_per_s"] == 50.0
    (found,) = record["traces"]
    assert sum(window["num_queries"] for window in found["windows"]) == 8
    assert found["sentence"].startswith("a at batch 1: p50 ")
    started_ms = timings_from(timings)[0].queries.started_ms
    assert np.diff(started_ms)[0] == pytest.approx(20.0, abs=1e-3)


def test_the_largest_batch_within_a_bound(net: OnnxModel, out: Out) -> None:
    """A bound of a minute, which all batches keep: also those of more samples than there are."""
    stage = Benchmark(num_threads=1, protocol=QUICK, largest_batch="p50_ms <= 60000")
    timings = stage(out(), {"a": Engine(net.path, max_batch=12)}, samples_for(net))
    largest = largest_batches_from(timings)["a"]
    assert (largest.low, largest.batch_size, largest.high, largest.engine_max) == (12, 12, 12, 12)
    assert [(each.batch_size, each.outcome) for each in largest.tried] == [(12, "pass")]
    assert largest.tried[0].num_loads >= 8
    assert largest.throughput_per_s is not None
    assert largest.throughput_per_s > 0


def test_a_bound_of_the_largest_batch_is_read_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="largest_batch is 'p99 <= 20', which is no bound of latency"):
        Benchmark(largest_batch="p99 <= 20")


AT_ONCE = replace(QUICK, num_blocks=6)
"""Of six rounds three have to be whole, however busy the machine is."""


@pytest.mark.parametrize("run_in", ["processes", "threads"])
def test_engines_run_at_once_also_one_twice(net: OnnxModel, out: Out, run_in: RunIn) -> None:
    stage = Benchmark(num_threads=1, protocol=AT_ONCE, together=("a", "b", "a"), together_in=run_in)
    engines = {"a": Engine(net.path), "b": Engine(net.path, simulated=True), "c": Engine(net.path, "reference")}
    timings = stage(out(), engines, samples_for(net))
    together = together_from_record(timings)
    assert together is not None
    assert together.run_in == run_in
    assert [row.name for row in together.engines] == ["a", "b", "a#2"]
    for row in together.engines:
        assert row.slowdown.low <= row.slowdown.ratio <= row.slowdown.high
        assert row.num_queries > 0
        assert timings.beside(row.alone_file).is_file()
        assert timings.beside(row.beside_file).is_file()
    assert [row["name"] for row in timings.read()["timings"]] == ["a", "b", "c"]


def test_what_runs_at_once_is_checked_before_anything_runs(net: OnnxModel, out: Out) -> None:
    stage = Benchmark(protocol=QUICK, together=("a", "int8"))
    with pytest.raises(ConfigError, match=r"\[benchmark\] together names 'int8'; engines that are timed: a"):
        stage(out(), {"a": Engine(net.path)}, samples_for(net))
    with pytest.raises(ConfigError, match="together: scenario offline has several batches in flight"):
        Benchmark(protocol=replace(QUICK, scenario="offline"), together=("all",))


def test_a_benchmark_measures_in_another_mode_and_puts_it_back(
    net: OnnxModel, out: Out, tmp_path: Path, monkeypatch: Any
) -> None:
    root = tmp_path / "device"
    root.mkdir()
    add_nvpmodel(tree(root, device_in(root, 2)), monkeypatch)
    monkeypatch.setattr(power_mode, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(benchmark, "ROOT", root)
    stage = Benchmark(num_threads=1, protocol=QUICK, monitor_ms=5)
    engines = {"a": Engine(net.path)}
    told = power_modes_from(stage(out(), engines, samples_for(net)))
    assert told is not None
    assert told.compared == ()
    modes = power_modes_from(replace(stage, power_mode=("MAXN",))(out(), engines, samples_for(net)))
    assert modes is not None
    assert [(mode.mode, mode.engines[0].name) for mode in modes.compared] == [("MAXN", "a")]
    assert (root / "calls").read_text().splitlines() == ["-m 0", "-m 2"]
    assert jetson.power_mode(root) == "MODE_30W"
