"""A soak: latency over time, window by window, beside temperatures, clocks and throttling in the same windows.

A window is a stretch of time from the measurement's begin on, of equal length for all engines; only windows in which
the engine ran are there. Latencies are of the queries that were due in it; a temperature is the highest that was read
in it, a clock and a power the mean, throttling how often the hardware did. What was not read in a window is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from calibration.arrays import Floats
from pipeline.latency.benchmark import Timing, latency_from_ms
from pipeline.latency.energy import NS_PER_S
from pipeline.machine.monitor import Readings
from pipeline.machine.sensors import SensorKind

Aggregate = Literal["highest", "mean", "rise"]
AGGREGATES: dict[Aggregate, Callable[[Floats], float]] = {
    "highest": lambda values: values.max(),
    "mean": lambda values: values.mean(),
    "rise": lambda values: values[-1] - values[0],
}
READ: dict[str, tuple[SensorKind, Aggregate]] = {
    "temperatures_c": ("temperature_c", "highest"),
    "clocks_mhz": ("clock_mhz", "mean"),
    "rails_mw": ("power_mw", "mean"),
    "num_throttles": ("num_throttles", "rise"),
}
"""Field of a window -> the kind of its sensors, and what is made of their readings."""
STEADY = 0.03
"""A change of p50 by less than this is called steady."""


@dataclass(frozen=True)
class Window:
    """One stretch of time of one engine."""

    begin_s: float
    """Since the first block of the measurement began."""
    num_queries: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    """Nearest-rank; of few queries the slowest."""
    temperatures_c: Mapping[str, float]
    clocks_mhz: Mapping[str, float]
    rails_mw: Mapping[str, float]
    num_throttles: Mapping[str, float]


@dataclass(frozen=True)
class SoakTrace:
    """All windows of one engine at one batch size."""

    name: str
    batch_size: int
    window_seconds: float
    windows: tuple[Window, ...]
    sentence: str
    """What became of the latency."""


def trace(timing: Timing, readings: Readings, began_ns: int, window_seconds: float) -> SoakTrace:
    """Cut a timing into windows.

    Args:
        timing: of one engine.
        readings: of the monitor, in the same time.
        began_ns: when the first block began, on the clock of the readings.
        window_seconds: how long a window is, above 0.
    """
    queries = timing.queries
    of_query = (queries.started_ms / 1e3 // window_seconds).astype(np.int64)
    of_reading = ((readings.times_ns - began_ns) / NS_PER_S // window_seconds).astype(np.int64)
    windows = []
    for index in np.unique(of_query).tolist():
        latency = latency_from_ms(queries.latency_ms[of_query == index])
        read = {name: _read(readings.of(kind), of_reading == index, how) for name, (kind, how) in READ.items()}
        num = int((of_query == index).sum())
        windows.append(Window(index * window_seconds, num, latency.p50, latency.p90, latency.p99, **read))
    sentence = f"{timing.name} at batch {timing.batch_size}: {_sentence(windows)}"
    return SoakTrace(timing.name, timing.batch_size, window_seconds, tuple(windows), sentence)


def _read(sensors: Mapping[str, Floats], within: npt.NDArray[np.bool_], how: Aggregate) -> dict[str, float]:
    """One number for each sensor that was read in a window."""
    if how == "rise":
        within = within | np.append(within[1:], False)  # And the reading before it.
    finite = {name: values[within & ~np.isnan(values)] for name, values in sensors.items()}
    return {name: float(AGGREGATES[how](values)) for name, values in finite.items() if len(values)}


def _sentence(windows: Sequence[Window]) -> str:
    """The first tenth of the windows against the last."""
    part = max(len(windows) // 10, 1)
    first, last = windows[:part], windows[-part:]
    before, after = (float(np.median([window.p50_ms for window in some])) for some in (first, last))
    change = after / before - 1
    sentence = f"p50 {before:.3g} ms at first, {after:.3g} ms in the end"
    sentence += ", steady" if abs(change) < STEADY else f", {abs(change):.0%} {'slower' if change > 0 else 'faster'}"
    if hottest := max(last[-1].temperatures_c.items(), key=lambda item: item[1], default=None):
        name, high_c = hottest
        at_first = first[0].temperatures_c.get(name)
        sentence += f"; {name} " + (f"from {at_first:.0f} " if at_first is not None else "") + f"to {high_c:.0f} °C"
    if num := sum(sum(window.num_throttles.values()) for window in windows):
        sentence += f"; throttled {num:.0f} times"
    return sentence
