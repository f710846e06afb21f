"""Where the time of timed queries went, and what else their runners and layers tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.contract import Array, DeviceTimes, LayerTimes, Runner, RunnerFacts
from engines.timed_queries import DeviceTimeRecorder, QueriesElsewhere

NUM_RUNS = 50
"""Runs in which the times of layers are told."""
MOST_LAYERS = 20
"""So many are shown, the slowest; `timings.json` and `report.json` have all."""


def recorder_for(timed: QueriesElsewhere | None, runner: Runner) -> DeviceTimeRecorder:
    """One for a candidate: where its queries are timed elsewhere, what is told there comes with each block."""
    recorder = DeviceTimeRecorder(runner)
    if timed is not None:
        timed.times = recorder.times
    return recorder


@dataclass(frozen=True)
class LayersRun:
    """What one engine's layers took, at one batch size."""

    batch_size: int
    num_runs: int
    times: LayerTimes


def facts_as_json(facts: RunnerFacts) -> dict[str, Any]:
    """What ``timings.json`` has of a runner."""
    return {"device_memory_mib": facts.device_memory_mib, "notes": list(facts.notes)}


def split_from_row(row: Mapping[str, Any]) -> DeviceTimes | None:
    """Read back what a row of ``timings.json`` has as ``split_ms``."""
    split = row["split_ms"]
    return None if split is None else DeviceTimes(**split)


def layers_from_json(layers: Mapping[str, Any] | None) -> LayersRun | None:
    """Read back what ``timings.json`` has of an engine's layers; None where it has nothing."""
    from cattrs import structure

    return None if layers is None else structure(layers, LayersRun)


def feed_of(batch: Mapping[str, Array]) -> dict[str, Array]:
    """The batch in arrays of its own, contiguous: what a profile runs on again and again."""
    return {name: np.ascontiguousarray(array) for name, array in batch.items()}
