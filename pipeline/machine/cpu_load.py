"""How much of the machine's CPU time other programs take.

*Load from others*: CPU time that neither this process nor its children took, as a share of all cores' time; what a
hypervisor took away (*steal*) is in it. From ``/proc/stat`` (proc(5)) and the times of this process.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.machine.system_files import text_of

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
NUM_IDLE_COLUMNS = (3, 4)
"""Idle and waiting for a disk, of the columns of ``/proc/stat``."""
NUM_COLUMNS = 8
"""User, nice, system, idle, iowait, irq, softirq, steal; the guests' times after them are in user and nice."""


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of CPU time, counted up, and when they were read."""

    busy_s: float
    """Of all processes on all cores, with what a hypervisor took away; NaN where it is not told."""
    own_s: float
    """Of this process and of its children that have ended."""
    num_cores: int
    at_s: float


def cpu_times(root: Path) -> CpuTimes:
    """Read the CPU time so far below ``root``."""
    rows = [line.split() for line in text_of(root / "proc/stat").splitlines() if line.startswith("cpu")]
    whole = next((row for row in rows if row[0] == "cpu" and len(row) > NUM_COLUMNS), None)
    process = os.times()
    busy_s = math.nan
    if whole is not None:
        counts = [int(count) for count in whole[1 : NUM_COLUMNS + 1]]
        busy_s = sum(count for i, count in enumerate(counts) if i not in NUM_IDLE_COLUMNS) / TICKS_PER_S
    own_s = process.user + process.system + process.children_user + process.children_system
    return CpuTimes(busy_s, own_s, len(rows) - (whole is not None), time.monotonic())


def load_from_others(before: CpuTimes, after: CpuTimes) -> float | None:
    """The share of all cores' time that others took; None where the system does not tell."""
    available_s = (after.at_s - before.at_s) * after.num_cores
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    if not available_s > 0 or math.isnan(others_s):
        return None
    return min(max(others_s / available_s, 0.0), 1.0)
