"""Whether a Raspberry Pi's firmware holds the processor back: by sysfs, or by `vcgencmd` where that alone tells.

A bit pattern, the four lowest bits of which are of this moment: too little voltage, a capped clock, throttled, warm
(https://www.raspberrypi.com/documentation/computers/os.html#get_throttled).
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.machine.system_files import folders, text_of

NOW = 0xF
COMMAND = "vcgencmd"
EVERY_S = 2.0
"""A process is not started more often, so that it is not measured itself."""
LONGEST_S = 5.0


class HeldBack:
    """Counts the readings at which the firmware held the processor back; NaN where it does not tell."""

    def __init__(self, read: Callable[[], str]) -> None:
        """``read`` gives the pattern in hexadecimal."""
        self._read, self._num = read, 0

    def __call__(self) -> float:
        """So many until now."""
        match = re.search(r"(?:0x)?([0-9a-fA-F]+)\s*$", self._read())
        if match is None:
            return math.nan
        self._num += bool(int(match[1], 16) & NOW)
        return float(self._num)


def firmware_throttling(root: Path) -> HeldBack | None:
    """What counts it; None where there is no such firmware."""
    if files := folders(root, "sys/devices/platform/*/*firmware/get_throttled"):
        return HeldBack(partial(text_of, files[0]))
    if root == Path("/") and shutil.which(COMMAND):
        return HeldBack(_Command())
    return None


class _Command:
    """Its last answer, which is not older than ``EVERY_S``."""

    def __init__(self) -> None:
        self._at, self._answer = -math.inf, ""

    def __call__(self) -> str:
        if time.monotonic() - self._at > EVERY_S:
            self._at, self._answer = time.monotonic(), _answer()
        return self._answer


def _answer() -> str:
    try:
        done = subprocess.run(
            [COMMAND, "get_throttled"], capture_output=True, text=True, check=False, timeout=LONGEST_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
