"""Power, clocks, temperatures and throttling while engines are timed: a thread reads, nothing is changed.

The thread runs in the process that waits, not in the one that measures, so that the two share no interpreter.
`benchmarks/monitor.py` measures what it costs.

What the readings say of energy is worked out in ``pipeline/latency/energy.py``.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from calibration.arrays import Floats, Ints
from pipeline.machine.jetson import power_mode
from pipeline.machine.sensors import Sensor, SensorKind, readable_sensors, total_rails, why_no_power

NS_PER_MS = 1e6


@dataclass(frozen=True)
class ReadingSummary:
    """The bounds and the mean of what was read."""

    name: str
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class MonitorSummary:
    """What was seen of the machine during one benchmark."""

    period_ms: int
    num_readings: int
    power_mode: str
    """A Jetson's, when the benchmark began; empty elsewhere."""
    clocks_mhz: tuple[ReadingSummary, ...]
    temperatures_c: tuple[ReadingSummary, ...]
    rails_mw: tuple[ReadingSummary, ...]
    total_rails: tuple[str, ...]
    """Those whose sum is the total power."""
    num_throttles: int | None
    """How often the hardware throttled during the benchmark; None where it does not count."""
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Readings:
    """All that was read: ``times_ns`` (n,) on the monotonic clock, ``values`` (n, number of sensors), NaN for none."""

    sensors: tuple[Sensor, ...]
    times_ns: Ints
    values: Floats

    def of(self, kind: SensorKind) -> dict[str, Floats]:
        """The readings of each sensor of a kind, (n,) each."""
        return {sensor.name: self.values[:, i] for i, sensor in enumerate(self.sensors) if sensor.kind == kind}

    def spans(self, kind: SensorKind) -> tuple[ReadingSummary, ...]:
        """The bounds of each sensor of a kind; without those that never gave a number."""
        readings = {name: values[~np.isnan(values)] for name, values in self.of(kind).items()}
        return tuple(
            ReadingSummary(n, float(v.min()), float(v.mean()), float(v.max())) for n, v in readings.items() if len(v)
        )

    def write(self, path: Path, began_ns: int) -> None:
        """Keep them as ``.npz``: ``time_ms`` (n,) since the first block, ``values`` (n, k), ``kinds`` and ``names``."""
        with path.open("wb") as stream:
            np.savez_compressed(
                stream,
                time_ms=(self.times_ns - began_ns) / NS_PER_MS,
                values=self.values,
                kinds=np.array([sensor.kind for sensor in self.sensors]),
                names=np.array([sensor.name for sensor in self.sensors]),
            )


class Monitor:
    """A context manager that reads all sensors every ``period_ms`` (0: never) in a thread of its own."""

    def __init__(self, root: Path, period_ms: int) -> None:
        """Find what can be read below ``root``; nothing is read before ``__enter__``."""
        self._root, self._period_ms = root, period_ms
        self._sensors: tuple[Sensor, ...] = ()
        self._times_ns: list[int] = []
        self._rows: list[list[float]] = []
        self._modes: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        if self._period_ms:
            self._sensors = readable_sensors(self._root)
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
        values = np.array(self._rows, dtype=np.float64).reshape(len(self._times_ns), len(self._sensors))
        return Readings(self._sensors, np.array(self._times_ns, dtype=np.int64), values)

    def watched(self) -> MonitorSummary:
        """The summary, once the context has been left."""
        readings = self.readings()
        num_throttles = [_difference(values) for values in readings.of("num_throttles").values()]
        rails = readings.of("power_mw") or readings.of("energy_uj")
        notes = []
        if len(set(self._modes)) > 1:
            notes.append(f"The power mode changed from {self._modes[0]} to {self._modes[-1]} while engines were timed.")
        if num := sum(num_throttles):
            notes.append(
                f"The hardware throttled {num} times while engines were timed: measured latencies are too high."
            )
        return MonitorSummary(
            period_ms=self._period_ms,
            num_readings=len(self._times_ns),
            power_mode=self._modes[0] if self._modes else "",
            clocks_mhz=readings.spans("clock_mhz"),
            temperatures_c=readings.spans("temperature_c"),
            rails_mw=readings.spans("power_mw"),
            total_rails=total_rails(tuple(rails)),
            num_throttles=sum(num_throttles) if num_throttles else None,
            notes=tuple(notes),
        )

    @property
    def is_watching(self) -> bool:
        """Whether anything is read at all."""
        return self._period_ms > 0

    def power_missing(self) -> str:
        """Why there is no power to read here; empty where there may be."""
        return why_no_power(self._root) if self._period_ms else "the machine was not monitored (monitor_ms = 0)"

    def _work(self) -> None:
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + self._period_ms / 1e3, time.monotonic())
            if self._stop.wait(due_s - time.monotonic()):
                return
            self._read()

    def _read(self) -> None:
        row = [sensor.read() for sensor in self._sensors]
        self._times_ns.append(time.perf_counter_ns())
        self._rows.append(row)


def _difference(counts: Floats) -> int:
    """By how much a counter rose, from the first to the last number that was read."""
    finite = counts[~np.isnan(counts)]
    return max(int(finite[-1] - finite[0]), 0) if len(finite) else 0
