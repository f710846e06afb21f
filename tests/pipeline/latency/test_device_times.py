"""Where queries' time went: medians of what a runner tells, and how `benchmark` prints it, with layers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from engines.contract import Array, DeviceTimes, Runner, RunnerFacts, TensorSpec
from engines.timed_queries import DeviceTimeRecorder
from pipeline.command.layer_table import note_lines, print_layers, split_lines
from pipeline.latency.device_times import facts_as_json, feed_of, split_from_row


class Told:
    """A runner that has nothing to run, and tells one of these after another."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, *times: DeviceTimes | None) -> None:
        self.times = iter(times)

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return {}

    def device_ms(self) -> float | None:
        return None

    def facts(self) -> RunnerFacts:
        return RunnerFacts(next(self.times))


def test_medians_part_by_part() -> None:
    splits = DeviceTimeRecorder(Told(DeviceTimes(1, 5, 3, 0.5), DeviceTimes(3, 4, 9, 0.25), DeviceTimes(2, 6, 4, 1)))
    assert [splits.device_ms() for _ in range(3)] == [5, 4, 6]
    assert splits.medians() == DeviceTimes(2, 5, 4, 0.5)


def test_a_backend_that_does_not_tell() -> None:
    splits = DeviceTimeRecorder(Told(None))
    assert splits.device_ms() is None
    assert splits.medians() is None
    assert split_from_row({"split_ms": None}) is None


def test_rows_come_back() -> None:
    row = {"split_ms": vars(DeviceTimes(1, 2, 3, 4))}
    assert split_from_row(row) == DeviceTimes(1, 2, 3, 4)
    assert facts_as_json(RunnerFacts(None, 12.5, ("It was slow.",))) == {
        "device_memory_mib": 12.5,
        "notes": ["It was slow."],
    }


def test_a_feed_does_not_share_memory_with_the_batch() -> None:
    batch: dict[str, Array] = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    feed = feed_of(batch)
    assert feed["x"].flags["C_CONTIGUOUS"]
    assert feed["x"].tolist() == batch["x"].tolist()


def layer(name: str, time_ms: float, share: float, nodes: tuple[str, ...] = ()) -> dict[str, Any]:
    facts = {"name": name, "kind": "conv", "precision": "INT8", "nodes": list(nodes)}
    return {"layer": facts, "median_ms": time_ms, "share": share}


SPLIT = {"host_to_device_ms": 0.0123, "compute_ms": 0.2, "device_to_host_ms": 0.004, "enqueue_ms": 0.006}
FOUND: dict[str, Any] = {
    "timings": [
        {"name": "a.plan", "batch_size": 8, "split_ms": SPLIT},
        {"name": "b.onnx", "batch_size": 8, "split_ms": None},
    ],
    "runners": {
        "a.plan": {"device_memory_mib": 34.6, "notes": ["CUDA graph: not captured."]},
        "b.onnx": {"device_memory_mib": None, "notes": []},
    },
    "layers": {
        "a.plan": {
            "batch_size": 8,
            "num_runs": 50,
            "times": {
                "layers": [layer("copy", 0.05, 0.25), layer("conv + relu", 0.15, 0.75, ("conv", "relu"))],
                "allocated_mib": 20.0,
            },
        },
        "b.onnx": {"batch_size": 8, "num_runs": 50, "times": {"layers": [], "allocated_mib": None}},
    },
}


def test_sentences() -> None:
    assert list(split_lines(FOUND)) == [
        "a.plan at batch 8, medians: 0.0123 ms to the device, 0.200 ms computing, 0.00400 ms back; enqueueing "
        "took the host 0.00600 ms.",
        "a.plan takes 35 MiB of device memory.",
    ]
    assert list(note_lines(FOUND)) == [
        "a.plan: CUDA graph: not captured.",
        "b.onnx: its backend does not report layer times",
    ]


@pytest.mark.parametrize("num_layers", [2, 30])
def test_the_slowest_layers_come_first(num_layers: int) -> None:
    layers = [layer(f"layer {n}", n / 100, 0.01) for n in range(num_layers)]
    run = FOUND["layers"]["a.plan"] | {"times": {"layers": layers, "allocated_mib": None}}
    out = io.StringIO()
    print_layers({"layers": {"a.plan": run}}, Console(file=out, width=80))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    rows = [line.split()[1] for line in lines if line.startswith("layer ") and line.split()[1].isdigit()]
    assert rows == [str(n) for n in reversed(range(num_layers))][:20]
    assert ("the 20 slowest of 30" in " ".join(lines[:2])) is (num_layers == 30)


def test_a_layer_with_its_nodes() -> None:
    out = io.StringIO()
    print_layers(FOUND, Console(file=out, width=80))
    (row,) = (line for line in out.getvalue().splitlines() if "conv + relu" in line)
    assert row.split() == ["conv", "+", "relu", "INT8", "0.150", "75.0", "conv,", "relu"]
