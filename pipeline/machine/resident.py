"""The memory that this process occupies, so read that slow growth shows."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

from pipeline.errors import Unavailable
from pipeline.machine.system_files import folders, text_of

DISABLE_HUGE_PAGES = 41
"""PR_SET_THP_DISABLE, prctl(2)."""
_LINE = re.compile(r"^(?:Vm)?(?P<kind>Rss|RSS|Swap):\s+(?P<kib>\d+) kB", re.MULTILINE)


def resident_mib(root: Path = Path("/")) -> float:
    """What of this process and those that it started is in memory or swapped out, MiB.

    Swapped out as well, since memory that leaked goes there first. ``smaps_rollup`` counts pages; ``status``, where a
    kernel before 4.14 has no such file, may lag behind by some.

    Raises:
        Unavailable: the system tells neither.
    """
    if (kib := _kib(root / "proc/self")) == 0:
        raise Unavailable("/proc/self/status: does not report this process's memory; leave out memory_growth_mib_per_h")
    return kib / 1024


def _kib(process: Path) -> int:
    """Of a process, by its folder in /proc, and of all below it; 0 of one that has ended."""
    kib = 0
    for name in ("smaps_rollup", "status"):
        if kib := sum(int(line["kib"]) for line in _LINE.finditer(text_of(process / name))):
            break
    for children in folders(process, "task/*/children"):
        kib += sum(_kib(process.parent / child) for child in text_of(children).split())
    return kib


def grow_by_pages() -> None:
    """Ask Linux for pages of 4 KiB from now on: a heap that grows by huge ones hides 2 MiB at a time."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(DISABLE_HUGE_PAGES, 1, 0, 0, 0)


def give_back_free_memory() -> None:
    """Collect garbage, and have glibc return what is free: a leak would fill that for long before anything grows."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3); musl has none.
    if trim is not None:
        trim(0)
