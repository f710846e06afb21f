"""A made-up nvpmodel on PATH, which keeps the mode where L4T does, and says what the real one says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MODES = """< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ /sys/devices/17000000.ga10b/devfreq_dev/max_freq
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 1
CPU_A78_0 MAX_FREQ -1
GPU MAX_FREQ 1300500000
EMC MAX_FREQ 3199000000
< POWER_MODEL ID=2 NAME=MODE_30W >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 0
CPU_A78_0 MAX_FREQ 1728000
GPU MAX_FREQ 612000000
EMC MAX_FREQ 3199000000
< POWER_MODEL ID=3 NAME=MODE_7W >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 0
CPU_ONLINE CORE_2 0
GPU MAX_FREQ 420000000
< PM_CONFIG DEFAULT=2 >
"""
PROGRAM = """#!/bin/sh
echo "$@" >> {calls}
if [ "$1" = -q ]; then echo "NV Power Mode: as it is"; exit 0; fi
if [ "$2" = 3 ]; then
    echo "NVPM WARN: Golden image context is already created"
    echo "NVPM WARN: Reboot required for changing to this power mode: 3"
    echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
    read answer || {{ echo "NVPM ERROR: bad input!"; exit 234; }}
    echo "$answer" >> {calls}
fi
if [ -e {broken} ]; then echo "NVPM ERROR: failed to set power mode!"; exit 255; fi
printf 'pmode:%04d fmode:quiet\\n' "$2" > {status}
"""
MOVING = {
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "115200\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000\n",
}
"""Clocks as they are without jetson_clocks."""


def device_in(root: Path, mode: int) -> dict[str, str]:
    """Path -> text of a Jetson in that mode, whose clocks move."""
    status = f"pmode:{mode:04d} fmode:quiet\n"
    return {"etc/nvpmodel.conf": MODES, "var/lib/nvpmodel/status": status, **MOVING}


def add_nvpmodel(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the program on PATH; the file of its calls."""
    folder, calls = root / "bin", root / "calls"
    folder.mkdir()
    calls.touch()
    program = folder / "nvpmodel"
    status = root / "var/lib/nvpmodel/status"
    program.write_text(PROGRAM.format(calls=calls, status=status, broken=root / "broken"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls


def add_sudo(root: Path, *, asks: bool) -> None:
    """Beside it a sudo, which asks for a password or not."""
    program = root / "bin" / "sudo"
    answer = 'echo "sudo: a password is required" >&2; exit 1' if asks else 'exec "$@"'
    program.write_text(
        f'#!/bin/sh\necho "sudo $@" >> {root / "calls"}\nwhile [ "${{1#-}}" != "$1" ]; do shift; done\n{answer}\n'
    )
    program.chmod(0o755)
