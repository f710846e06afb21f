"""Where the time of timed queries went, and what else their runners and layers tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from engines.contract import Array, DeviceTimes, LayerTimes, Runner, RunnerFacts
from engines.timed_queries import QueriesElsewhere

NUM_RUNS = 50
"""Runs in which the times of layers are told."""
MOST_LAYERS = 20
"""So many are shown, the slowest; `timings.json` and `report.json` have all."""


@dataclass
class DeviceTimeRecorder:
    """Hears after each recorded query where its time went; one for each candidate."""

    runner: Runner
    times: list[DeviceTimes] = field(default_factory=list)

    def device_ms(self) -> float | None:
        """Device time of the last query, for ``pipeline.latency.benchmark.Candidate``."""
        times = self.runner.facts().times
        if times is None:
            return self.runner.device_ms()
        self.times.append(times)
        return times.compute_ms

    def medians(self) -> DeviceTimes | None:
        """Of each part, over all recorded queries; None where the backend does not tell."""
        if not self.times:
            return None
        parts = {name: [getattr(times, name) for times in self.times] for name in asdict(self.times[0])}
        return DeviceTimes(**{name: median(values) for name, values in parts.items()})


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
