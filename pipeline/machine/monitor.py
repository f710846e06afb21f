"""Power, clocks, temperatures and throttling while engines are timed: a thread reads, nothing is changed.

The thread runs in the process that waits, not in the one that measures, so that the two share no interpreter.
`benchmarks/monitor.py` measures what it costs.

Definitions:

- *energy* of one inference: the energy of the recorded blocks of one engine (total power over time, by the trapezoid
  rule between readings; or the difference of the energy counters), divided by the samples that were inferred in them.
- *power*: that energy, divided by the time of the same blocks.
- *total power*: the module's input rail, or where there is none the sum of its rails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from pipeline.latency.benchmark import Floats, Ints, Queries, Timing
from pipeline.machine.jetson import power_mode
from pipeline.machine.sensors import Gauge, Kind, gauges, total_rails, why_no_power

MIN_READINGS = 5
"""Fewer readings of the power within an engine's blocks give no energy."""
MOST_LOST = 0.1
"""If a larger share of the readings of the power failed, there is no energy."""

NS_PER_MS = 1e6
NS_PER_S = 1e9


@dataclass(frozen=True)
class Span:
    """The bounds and the mean of what was read."""

    name: str
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Energy:
    """What one engine took at one batch size."""

    name: str
    batch_size: int
    power_mw: float | None
    energy_mj: float | None
    """Per inference: of one sample. None with ``power_mw``."""
    missing: str
    """Why there is none; else empty."""


@dataclass(frozen=True)
class Watched:
    """What was seen of the machine during one benchmark."""

    period_ms: int
    num_readings: int
    power_mode: str
    """A Jetson's, when the benchmark began; empty elsewhere."""
    clocks_mhz: tuple[Span, ...]
    temperatures_c: tuple[Span, ...]
    rails_mw: tuple[Span, ...]
    total_rails: tuple[str, ...]
    """Those whose sum is the total power."""
    num_throttles: int | None
    """How often the hardware throttled during the benchmark; None where it does not count."""
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Readings:
    """All that was read: ``times_ns`` (n,) on the monotonic clock, ``values`` (n, number of gauges), NaN for none."""

    gauges: tuple[Gauge, ...]
    times_ns: Ints
    values: Floats

    def of(self, kind: Kind) -> dict[str, Floats]:
        """The readings of each gauge of a kind, (n,) each."""
        return {g.name: self.values[:, i] for i, g in enumerate(self.gauges) if g.kind == kind}

    def spans(self, kind: Kind) -> tuple[Span, ...]:
        """The bounds of each gauge of a kind; without those that never gave a number."""
        found = {name: values[~np.isnan(values)] for name, values in self.of(kind).items()}
        return tuple(Span(n, float(v.min()), float(v.mean()), float(v.max())) for n, v in found.items() if len(v))

    def write(self, path: Path, began_ns: int) -> None:
        """Keep them as ``.npz``: ``time_ms`` (n,) since the first block, ``values`` (n, k), ``kinds`` and ``names``."""
        with path.open("wb") as stream:
            np.savez_compressed(
                stream,
                time_ms=(self.times_ns - began_ns) / NS_PER_MS,
                values=self.values,
                kinds=np.array([gauge.kind for gauge in self.gauges]),
                names=np.array([gauge.name for gauge in self.gauges]),
            )


class Monitor:
    """A context manager that reads all gauges every ``period_ms`` (0: never) in a thread of its own."""

    def __init__(self, root: Path, period_ms: int) -> None:
        """Find what can be read below ``root``; nothing is read before ``__enter__``."""
        self._root, self._period_ms = root, period_ms
        self._gauges: tuple[Gauge, ...] = ()
        self._times_ns: list[int] = []
        self._rows: list[list[float]] = []
        self._modes: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        if self._period_ms:
            self._gauges = gauges(self._root)
            self._modes.append(power_mode(self._root))
            self._read()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._period_ms:
            self._stop.set()
            self._thread.join()
            self._read()
            self._modes.append(power_mode(self._root))

    def readings(self) -> Readings:
        """All readings so far."""
        values = np.array(self._rows, dtype=np.float64).reshape(len(self._times_ns), len(self._gauges))
        return Readings(self._gauges, np.array(self._times_ns, dtype=np.int64), values)

    def watched(self) -> Watched:
        """The summary, once the context has been left."""
        readings = self.readings()
        throttled = [_difference(values) for values in readings.of("num_throttles").values()]
        rails = readings.of("power_mw") or readings.of("energy_uj")
        notes = []
        if len(set(self._modes)) > 1:
            notes.append(f"The power mode changed from {self._modes[0]} to {self._modes[-1]} while engines were timed.")
        if num := sum(throttled):
            notes.append(f"The hardware throttled {num} times while engines were timed: latencies came out too long.")
        return Watched(
            period_ms=self._period_ms,
            num_readings=len(self._times_ns),
            power_mode=self._modes[0] if self._modes else "",
            clocks_mhz=readings.spans("clock_mhz"),
            temperatures_c=readings.spans("temperature_c"),
            rails_mw=readings.spans("power_mw"),
            total_rails=total_rails(tuple(rails)),
            num_throttles=sum(throttled) if throttled else None,
            notes=tuple(notes),
        )

    def energies(self, timings: Sequence[Timing], began_ns: int) -> tuple[Energy, ...]:
        """The energy of each timing; ``began_ns``: when the first block began, on the monotonic clock."""
        if not self._period_ms:
            return tuple(_no_energy(timing, "the machine was not watched (monitor_ms = 0)") for timing in timings)
        times_ns, energy_mj, why = total_energy(self.readings())
        if not len(times_ns):
            why = why or why_no_power(self._root)
        if why:
            return tuple(_no_energy(timing, why) for timing in timings)
        return tuple(_energy(timing, began_ns, times_ns, energy_mj) for timing in timings)

    def _work(self) -> None:
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + self._period_ms / 1e3, time.monotonic())
            if self._stop.wait(due_s - time.monotonic()):
                return
            self._read()

    def _read(self) -> None:
        row = [gauge.read() for gauge in self._gauges]
        self._times_ns.append(time.perf_counter_ns())
        self._rows.append(row)


def total_energy(readings: Readings) -> tuple[Ints, Floats, str]:
    """Times (m,) in nanoseconds, the energy taken since the first of them (m,) in millijoules, and why there is none.

    The arrays are empty where there is no gauge of power.
    """
    empty = np.zeros(0, dtype=np.int64), np.zeros(0)
    powers, counters = readings.of("power_mw"), readings.of("energy_uj")
    named = powers or counters
    if not named:
        return *empty, ""
    values = np.stack([named[name] for name in total_rails(tuple(named))])
    good = np.logical_not(np.isnan(values).any(axis=0))
    num, lost = values.shape[1], int(np.count_nonzero(~good))
    if lost > MOST_LOST * num:
        return *empty, f"{lost} of {num} readings of the power failed ({', '.join(total_rails(tuple(named)))})"
    times_ns, values = readings.times_ns[good], values[:, good]
    seconds = np.diff(times_ns) / NS_PER_S
    if powers:
        total_mw = values.sum(axis=0)
        steps_mj = (total_mw[1:] + total_mw[:-1]) / 2 * seconds
    else:
        wraps_at = {gauge.name: gauge.wraps_at for gauge in readings.gauges if gauge.kind == "energy_uj"}
        steps_uj = np.diff(values, axis=1)
        around = np.array([wraps_at[name] for name in total_rails(tuple(named))])[:, None]
        steps_mj = np.where(steps_uj < 0, steps_uj + around, steps_uj).sum(axis=0) / 1e3
    if not np.isfinite(steps_mj).all():
        return *empty, "an energy counter went backwards"
    return times_ns, np.concatenate([[0.0], np.cumsum(steps_mj)]), ""


def block_windows_ns(queries: Queries, began_ns: int) -> Floats:
    """Begin and end of each recorded block, (num_blocks, 2), nanoseconds on the monotonic clock."""
    edges = np.flatnonzero(np.diff(queries.block)) + 1
    first, last = np.concatenate([[0], edges]), np.concatenate([edges, [len(queries.block)]]) - 1
    ends_ms = queries.started_ms[last] + queries.latency_ms[last]
    return began_ns + np.stack([queries.started_ms[first], ends_ms], axis=1) * NS_PER_MS


def _energy(timing: Timing, began_ns: int, times_ns: Ints, energy_mj: Floats) -> Energy:
    windows = block_windows_ns(timing.queries, began_ns)
    within = sum(int(((times_ns >= begin) & (times_ns <= end)).sum()) for begin, end in windows)
    if within < MIN_READINGS:
        return _no_energy(timing, f"only {within} readings of the power fell into its blocks; raise min_seconds")
    taken = np.interp(windows, times_ns.astype(np.float64), energy_mj)
    total_mj = float((taken[:, 1] - taken[:, 0]).sum())
    seconds = float((windows[:, 1] - windows[:, 0]).sum()) / NS_PER_S
    num_inferences = timing.num_queries * timing.batch_size
    return Energy(timing.name, timing.batch_size, total_mj / seconds, total_mj / num_inferences, "")


def _no_energy(timing: Timing, why: str) -> Energy:
    return Energy(timing.name, timing.batch_size, None, None, why)


def _difference(counts: Floats) -> int:
    """By how much a counter rose, from the first to the last number that was read."""
    told = counts[~np.isnan(counts)]
    return max(int(told[-1] - told[0]), 0) if len(told) else 0
