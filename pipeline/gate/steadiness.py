"""Whether a machine was quiet enough to decide by: its state before and after, and what others did meanwhile.

Definitions:

- *load from others*: see ``pipeline/machine/cpu_load.py``.
- *turbo*: whether clocks above the nominal one are allowed, from ``intel_pstate/no_turbo`` or ``cpufreq/boost``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.machine.jetson import power_mode
from pipeline.machine.monitor import MonitorSummary
from pipeline.machine.sensors import SensorKind, readable_sensors
from pipeline.machine.system_files import number_of, text_of


@dataclass(frozen=True)
class MachineState:
    """The machine at one moment; what it does not tell is empty."""

    governor: str
    turbo: str
    """``on``, ``off``, or empty."""
    power_mode: str
    load_1min: float | None
    """Mean number of runnable processes over the last minute; None where it is not told."""
    clocks_mhz: Mapping[str, float]
    temperatures_c: Mapping[str, float]


@dataclass(frozen=True)
class Conditions:
    """What the machine was like while it measured."""

    before: MachineState
    after: MachineState
    load_from_others: float | None
    """A share of all cores' time, from 0 to 1; None where the system does not tell."""
    watched: MonitorSummary | None
    """Clocks, temperatures, power and throttling meanwhile; None where the machine was not monitored."""
    objections: tuple[str, ...]
    """Why nothing that was timed can be decided, but for what busy others leave (``[gate] max_other_load_relative``);
    empty on a quiet machine."""


def machine_state(root: Path) -> MachineState:
    """Read the machine's state below ``root``."""
    readings: dict[SensorKind, dict[str, float]] = {"clock_mhz": {}, "temperature_c": {}}
    for sensor in readable_sensors(root):
        value = sensor.read()
        if sensor.kind in readings and not math.isnan(value):
            readings[sensor.kind][sensor.name] = value
    load = number_of(root / "proc/loadavg")
    return MachineState(
        governor=text_of(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(root / "sys/devices/system/cpu"),
        power_mode=power_mode(root),
        load_1min=None if math.isnan(load) else load,
        clocks_mhz=readings["clock_mhz"],
        temperatures_c=readings["temperature_c"],
    )


def busy_with_others(others: float | None, max_load: float, name: str) -> list[str]:
    """A phrase if others took a larger share than ``max_load``, which is the option ``name``; None: not told."""
    if others is None or others <= max_load:
        return []
    return [f"other programs used {others:.0%} of the machine's CPU time, above {name} {max_load:.0%}; stop them"]


def objections(before: MachineState, after: MachineState, num_throttles: int) -> list[str]:
    """Why nothing that was timed can be decided, whatever others did: a phrase each.

    Args:
        before: the machine when the measurement began.
        after: the machine when it ended.
        num_throttles: how often the hardware throttled meanwhile.
    """
    phrases = []
    if num_throttles:
        phrases.append(
            f"the hardware throttled {num_throttles} times during the measurement; let it cool, or "
            "check its power supply"
        )
    for name in ("governor", "turbo", "power_mode"):
        was, became = getattr(before, name), getattr(after, name)
        if was != became:
            title = name.replace("_", " ")
            phrases.append(f"the {title} changed from '{was}' to '{became}' during the measurement; keep it fixed")
    return phrases


def _turbo(cpu: Path) -> str:
    for file, on in ((cpu / "intel_pstate/no_turbo", 0.0), (cpu / "cpufreq/boost", 1.0)):
        value = number_of(file)
        if not math.isnan(value):
            return "on" if value == on else "off"
    return ""
