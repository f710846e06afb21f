"""Energy of measured blocks, from the readings of power sensors.

Definitions:

- *energy* of one inference: the energy of the recorded blocks of one engine (total power over time, by the trapezoid
  rule between readings; or the difference of the energy counters), divided by the samples that were inferred in them.
- *power*: that energy, divided by the time of the same blocks.
- *total power*: the module's input rail, or where there is none the sum of its rails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Floats, Ints
from pipeline.latency.benchmark import Queries, Timing
from pipeline.machine.monitor import NS_PER_MS, Monitor, Readings
from pipeline.machine.sensors import total_rails

NS_PER_S = 1e9
MIN_READINGS = 5
"""Fewer readings of the power within an engine's blocks give no energy."""
MOST_LOST = 0.1
"""If a larger share of the readings of the power failed, there is no energy."""


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


def total_energy(readings: Readings) -> tuple[Ints, Floats, str]:
    """Times (m,) in nanoseconds, the energy taken since the first of them (m,) in millijoules, and why there is none.

    The arrays are empty where there is no sensor of power.
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
        wraps_at = {sensor.name: sensor.wraps_at for sensor in readings.sensors if sensor.kind == "energy_uj"}
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


def energies_of(monitor: Monitor, timings: Sequence[Timing], began_ns: int) -> tuple[Energy, ...]:
    """The energy of each timing; ``began_ns``: when the first block began, on the monotonic clock."""
    if not monitor.is_watching:
        return tuple(_no_energy(timing, monitor.power_missing()) for timing in timings)
    times_ns, energy_mj, why = total_energy(monitor.readings())
    if not len(times_ns):
        why = why or monitor.power_missing()
    if why:
        return tuple(_no_energy(timing, why) for timing in timings)
    return tuple(_energy(timing, began_ns, times_ns, energy_mj) for timing in timings)


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
