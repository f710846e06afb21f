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
from pipeline.latency.benchmark import Queries, Timing, ratio_apart
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


@dataclass(frozen=True, eq=False)
class BlockEnergies:
    """The energy of each recorded block of one engine, millijoules, and the inferences in it; (num_blocks,) each."""

    energy_mj: Floats
    num_inferences: Floats

    def per_inference_mj(self) -> float:
        """Of one sample, over all blocks."""
        return float(self.energy_mj.sum() / self.num_inferences.sum())

    def resampled_mj(self, picks: Ints) -> Floats:
        """Of one sample, over the picked blocks: ``picks`` (num_resamples, num_blocks) -> (num_resamples,)."""
        total_mj, num_inferences = (each[picks].sum(axis=1) for each in (self.energy_mj, self.num_inferences))
        return np.asarray(total_mj / num_inferences)


def energy_ratio_apart(there: BlockEnergies, before: BlockEnergies, *, seed: int) -> tuple[float, float, float]:
    """Energy / energy of two measurements, one after the other, and the bounds of its 95 % interval.

    As ``p50_ratio_apart``, by bootstrap over the blocks of each.
    """
    sides = [(len(energies.energy_mj), energies.resampled_mj) for energies in (there, before)]
    return ratio_apart(there.per_inference_mj() / before.per_inference_mj(), sides, seed=seed)


def block_energies(queries: Queries, windows_ns: Floats, taken: tuple[Ints, Floats], batch_size: int) -> BlockEnergies:
    """The energy of each block.

    Args:
        queries: of one engine.
        windows_ns: of its blocks, as ``block_windows_ns``.
        taken: times in nanoseconds and the energy taken until then in millijoules, as ``total_energy``.
        batch_size: samples of a query.
    """
    times_ns, taken_mj = taken
    energy_mj = np.interp(windows_ns, times_ns.astype(np.float64), taken_mj)
    _, counts = np.unique(queries.block, return_counts=True)
    return BlockEnergies(energy_mj[:, 1] - energy_mj[:, 0], (counts * batch_size).astype(np.float64))


def block_energies_of(
    monitor: Monitor, timings: Sequence[Timing], began_ns: int
) -> dict[tuple[str, int], BlockEnergies]:
    """The energy of the blocks of each timing whose energy is known, by name and batch size; see ``energies_of``."""
    known = [energy.energy_mj is not None for energy in energies_of(monitor, timings, began_ns)]
    if not any(known):
        return {}
    times_ns, taken_mj, _ = total_energy(monitor.readings())
    return {
        (timing.name, timing.batch_size): block_energies(
            timing.queries, block_windows_ns(timing.queries, began_ns), (times_ns, taken_mj), timing.batch_size
        )
        for timing, is_known in zip(timings, known)
        if is_known
    }


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
    blocks = block_energies(timing.queries, windows, (times_ns, energy_mj), timing.batch_size)
    seconds = float((windows[:, 1] - windows[:, 0]).sum()) / NS_PER_S
    power_mw = float(blocks.energy_mj.sum()) / seconds
    return Energy(timing.name, timing.batch_size, power_mw, blocks.per_inference_mj(), "")


def _no_energy(timing: Timing, why: str) -> Energy:
    return Energy(timing.name, timing.batch_size, None, None, why)
