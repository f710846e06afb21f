"""Queries timed one after another, in the process that holds the engine: the loop, and when each query is due.

What the numbers mean stands in ``pipeline/latency/benchmark.py`` and ``pipeline/latency/scenarios.py``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engines.contract import Array, DeviceTimes, Runner, StreamingRunner

if TYPE_CHECKING:
    from typing import TypeAlias

SPIN_NS = 1_000_000
"""A query's last so many nanoseconds are waited for without sleeping: sleep may end late."""
Raw: TypeAlias = "tuple[list[int], list[int], list[float]]"
"""Start and end of each query in nanoseconds, and its device time in milliseconds."""


@dataclass(frozen=True)
class BlockLength:
    """A block of queries is over when there were so many, and so much time has passed."""

    num_queries: int
    ns: float = 0.0

    def __call__(self, num_queries: int, spent_ns: int) -> bool:
        """Whether it is over."""
        return num_queries >= self.num_queries and spent_ns >= self.ns


@dataclass(frozen=True)
class QueryArrivals:
    """When the queries of one block are due."""

    queries_per_s: float = 0.0
    """0: each when the one before it is done."""
    evenly: bool = False
    """Else by a Poisson process."""
    seed: tuple[int, ...] = ()

    def begin(self, clock: Callable[[], int], sleep: Callable[[float], object] = time.sleep) -> Callable[[], int]:
        """A function that waits until the next query is due, and says when it was, in nanoseconds."""
        if not self.queries_per_s:
            return clock
        random, mean_ns = np.random.default_rng(self.seed), 1e9 / self.queries_per_s
        due_ns = float(clock())

        def wait() -> int:
            nonlocal due_ns
            due_ns += mean_ns if self.evenly else random.exponential(mean_ns)
            while (left_ns := due_ns - clock()) > 0:
                if left_ns > SPIN_NS:
                    sleep((left_ns - SPIN_NS) / 1e9)
            return round(due_ns)

        return wait


def run_queries(
    call: Callable[[], object],
    device_ms: Callable[[], float | None],
    done: Callable[[int, int], bool],
    clock: Callable[[], int],
    begin: Callable[[], int],
) -> Raw:
    """Run one block, with garbage collection held back while the clock runs.

    Args:
        call: one query.
        device_ms: device time of the last query, milliseconds; None where the backend cannot tell.
        done: asked before each query with the number of queries so far and the nanoseconds since the block began.
        clock: nanoseconds.
        begin: waits until the next query is due, and says when it was; the clock itself for a query after the other.
    """
    starts: list[int] = []
    ends: list[int] = []
    device: list[float] = []
    collecting = gc.isenabled()
    gc.disable()
    began_ns = end = clock()
    try:
        while not done(len(starts), end - began_ns):
            start = begin()
            call()
            end = clock()
            device_time_ms = device_ms()
            starts.append(start)
            ends.append(end)
            device.append(float("nan") if device_time_ms is None else device_time_ms)
    finally:
        if collecting:
            gc.enable()
    return starts, ends, device


def run_for(call: Callable[[], object], num_queries: int, seconds: float, clock: Callable[[], int]) -> int:
    """Run so many queries at least, and for so long at least; how many these were."""
    done, until_ns = 0, clock() + int(seconds * 1e9)
    while done < num_queries or clock() < until_ns:
        call()
        done += 1
    return done


@dataclass
class DeviceTimeRecorder:
    """Hears after each recorded query where its time went; one for each candidate."""

    runner: Runner
    times: list[DeviceTimes] = field(default_factory=list)

    def device_ms(self) -> float | None:
        """Device time of the last query, as ``run_queries`` asks for it."""
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


class QueriesElsewhere(Protocol):
    """Feeds that a runner of another process has with it: between the first and the last query of a block nothing goes
    to and fro."""

    times: list[DeviceTimes] | None
    """Where somebody asks for it: where the time of each recorded query went."""

    def one(self) -> None:
        """One query; its answers stay there."""
        ...

    def run_for(self, num_queries: int, seconds: float) -> int:
        """As the function of that name."""
        ...

    def run_queries(self, length: BlockLength, arrivals: QueryArrivals) -> Raw:
        """As the function of that name, on the clock that all processes of a machine share."""
        ...

    def rest(self) -> None:
        """Wait for what is in flight."""
        ...


class BatchesInFlight:
    """Batches in flight: each call takes the answers of one and sends off another."""

    def __init__(self, runner: StreamingRunner, feeds: Iterator[Mapping[str, Array]]) -> None:
        """``feeds`` has no end."""
        self._runner, self._feeds = runner, feeds
        self._answers: Generator[dict[str, Array], None, None] | None = None

    def next(self) -> dict[str, Array]:
        """The answers to the batch that was sent off first."""
        if self._answers is None:
            self._answers = self._runner.infer_all(self._feeds)
        return next(self._answers)

    def end(self) -> None:
        """Wait for what is in flight; its answers are not asked for."""
        if self._answers is not None:
            self._answers.close()
            self._answers = None
