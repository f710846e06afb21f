"""A soak for memory: an engine runs, one query after the other, while the memory of its process is read over time.

Definitions:

- *Memory* is what the process and those that it started have in memory or swapped out, MiB
  (``pipeline/machine/resident.py``); of the device, by how much its free memory fell since before the engine was
  loaded, where the runner tells.
- *Growth* is the slope of that over time (``pipeline/stats/trend.py``), the first fifth of the time left out: caches
  and pools fill then. It is assumed that growth which was not seen comes in steps of at most 64 KiB, at random times.

Nothing that the measurement itself keeps grows: room for the readings is taken before, and when it is full every second
one is dropped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from calibration.arrays import Floats
from engines.contract import Array, MemoryRunner, Runner
from engines.timed_queries import run_for
from pipeline.artifact import Engine
from pipeline.engine_runner import batch_sizes, runner_of
from pipeline.errors import ConfigError
from pipeline.machine.resident import give_back_free_memory, grow_by_pages, resident_mib
from pipeline.stats.intervals import planned_looks
from pipeline.stats.trend import LEAST_SAMPLES, Trend, trend

Where: TypeAlias = Literal["process", "device"]
"""Whose memory."""
WARM_UP = 0.2
"""The share of the time that is left out."""
STEP_MIB = 1 / 16
"""The largest step that may have been missed."""
FIRST_LOOK_MS = 10_000
MOST_READINGS = 4096
LEAST_READINGS = 100
"""So many are aimed at, however long each takes."""
LEAST_INTERVAL_S = 0.02
MOST_SHARE_OF_READING = 0.05
"""The share of the time that reading the memory may take."""
S_PER_H = 3600.0


@dataclass(frozen=True)
class GrowthLimit:
    """A bound that the growth must keep, MiB per hour."""

    where: Where
    mib_per_h: float


@dataclass(frozen=True)
class MemorySoak:
    """How long to run."""

    limits: tuple[GrowthLimit, ...]
    """It is over when all of them are kept for certain."""
    confidence: float
    min_seconds: float
    max_seconds: float
    warmup_queries: int = 10
    warmup_seconds: float = 0.2
    """Before anything is read, so that free memory can be given back first."""

    def looks_s(self) -> list[float]:
        """After how many seconds to ask whether it is over; the last is ``max_seconds``."""
        most_ms = max(math.floor(self.max_seconds * 1e3), 1)
        first_ms = max(min(FIRST_LOOK_MS, most_ms), math.floor(self.min_seconds * 1e3))
        return [look / 1e3 for look in planned_looks(min(first_ms, most_ms), most_ms)]

    @property
    def tail(self) -> float:
        """The error that one bound of one look may make (Bonferroni)."""
        return (1 - self.confidence) / 2 / len(self.looks_s())


@dataclass(frozen=True, eq=False)
class MemoryTrace:
    """What was read; arrays of shape (num_readings,)."""

    times_s: Floats
    """Since reading began."""
    process_mib: Floats
    device_mib: Floats
    """NaN where the runner does not tell."""
    num_queries: int

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return float(self.times_s[-1])

    def write(self, path: Path) -> None:
        """Keep the arrays as a ``.npz``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            np.savez_compressed(stream, times_s=self.times_s, process_mib=self.process_mib, device_mib=self.device_mib)

    def tells(self, where: Where) -> bool:
        """Whether that memory was read."""
        return bool(np.isfinite(self._mib(where)).all())

    def growth_per_h(self, where: Where, tail: float) -> Trend | None:
        """The slope in MiB per hour without the warm-up; None if it was not read, or too seldom.

        Args:
            where: whose memory.
            tail: the error that each of its bounds may make.
        """
        counted = self.times_s >= WARM_UP * self.times_s[-1]
        if counted.sum() < LEAST_SAMPLES or not self.tells(where):
            return None
        return trend(self.times_s[counted] / S_PER_H, self._mib(where)[counted], tail, STEP_MIB)

    def _mib(self, where: Where) -> Floats:
        return self.process_mib if where == "process" else self.device_mib


class _Readings:
    """A table of a fixed size."""

    def __init__(self, max_seconds: float) -> None:
        self._longest_wait_s = max_seconds / LEAST_READINGS
        self._rows = np.full((MOST_READINGS, 3), -1.0)  # Written to, so that all of it is in memory.
        self._num = 0
        self._interval_s = LEAST_INTERVAL_S
        self.due_s = 0.0

    def add(self, now_s: float, device_mib: float) -> None:
        begin = time.perf_counter()
        self._rows[self._num] = now_s, resident_mib(), device_mib
        cost_s = time.perf_counter() - begin
        self._num += 1
        if self._num == MOST_READINGS:
            self._num //= 2
            self._rows[: self._num] = self._rows[::2]
            self._interval_s *= 2
        wait_s = max(self._interval_s, cost_s / MOST_SHARE_OF_READING)
        self.due_s = now_s + max(min(wait_s, self._longest_wait_s), self._interval_s)

    def trace(self, num_queries: int) -> MemoryTrace:
        columns = self._rows[: self._num].T
        return MemoryTrace(columns[0], columns[1], columns[2], num_queries)


def soak_memory(
    engine: Engine, feeds: Sequence[Mapping[str, Array]], num_threads: int, soak: MemorySoak
) -> MemoryTrace:
    """Run an engine in this process, which is to be one of its own, and read its memory.

    Args:
        engine: what is run.
        feeds: batches, in turns.
        num_threads: threads of a runtime on the CPU; 0: its own choice.
        soak: how long.

    Raises:
        ConfigError: the engine does not take such a batch.
        Unavailable: the system does not tell of a process's memory.
    """
    grow_by_pages()
    size = len(next(iter(feeds[0].values())))
    with runner_of(engine, num_threads) as runner:
        if size not in (sizes := batch_sizes(engine, runner, feeds[0])):
            raise ConfigError(f"{engine.path.name}: takes batches {sizes}, but its memory is to be watched at {size}")
        return soaked(runner, feeds, soak)


def soaked(runner: Runner, feeds: Sequence[Mapping[str, Array]], soak: MemorySoak) -> MemoryTrace:
    """As ``soak_memory``, of a runner that is loaded."""
    turns = cycle(feeds)
    run_for(lambda: runner.infer(next(turns)), soak.warmup_queries, soak.warmup_seconds, time.monotonic_ns)
    readings, looks = _Readings(soak.max_seconds), soak.looks_s()
    is_kept(soak, MemoryTrace(np.arange(99.0), np.zeros(99), np.zeros(99), 0))  # What asking takes is taken now.
    give_back_free_memory()
    device_mib = runner.device_memory_now_mib if isinstance(runner, MemoryRunner) else _not_told
    begin, num_queries, look = time.monotonic(), 0, 0
    while True:
        now_s = time.monotonic() - begin
        if now_s >= readings.due_s or now_s >= looks[look]:
            readings.add(now_s, device_mib())
        if now_s >= looks[look]:
            look += 1
            if look == len(looks) or is_kept(soak, readings.trace(num_queries)):
                return readings.trace(num_queries)
        runner.infer(next(turns))
        num_queries += 1


def _not_told() -> float:
    return math.nan


def is_kept(soak: MemorySoak, memory: MemoryTrace) -> bool:
    """Whether all bounds are kept for certain. That one is not is said at the end alone: caches fill steadily too."""
    return all(
        (growth := memory.growth_per_h(limit.where, soak.tail)) is not None and growth.high <= limit.mib_per_h
        for limit in soak.limits
        if memory.tells(limit.where)
    )
