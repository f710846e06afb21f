"""Memory and disk: what is there, what is free, and what the build of an engine is going to need."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifact import Artifact
from pipeline.machine.system_files import memory_kib, text_of

LIBRARIES_MIB = 1500
"""What CUDA and TensorRT with its kernels take in a process before the first layer is built."""
COPIES_OF_WEIGHTS = 4
"""ONNX file, parsed network, engine in the making, serialized engine."""

ZRAM = "zram"


@dataclass(frozen=True)
class Memory:
    """Main memory and swap, MiB; 0 where the system does not tell. On a Jetson the GPU uses the same memory."""

    total_mib: int
    available_mib: int
    """What can be had without swapping (``MemAvailable``)."""
    swap_mib: int
    """Swap on a disk."""
    zram_mib: int
    """Swap that is compressed into the memory itself."""
    swap_used_mib: int
    disk_free_mib: int
    """On the disk of the folder that results go to."""


def memory_here(root: Path, folder: Path) -> Memory:
    """Read ``proc/meminfo`` and ``proc/swaps`` below ``root``, and the free space of the disk that holds ``folder``."""
    meminfo = memory_kib(root)
    swaps = [line.split() for line in text_of(root / "proc/swaps").splitlines()[1:]]
    rows = [row for row in swaps if len(row) >= 4 and row[2].isdigit() and row[3].isdigit()]
    zram_kib = sum(int(row[2]) for row in rows if ZRAM in row[0])
    while not folder.exists():
        folder = folder.absolute().parent
    return Memory(
        total_mib=meminfo.get("MemTotal", 0) // 1024,
        available_mib=meminfo.get("MemAvailable", 0) // 1024,
        swap_mib=(sum(int(row[2]) for row in rows) - zram_kib) // 1024,
        zram_mib=zram_kib // 1024,
        swap_used_mib=sum(int(row[3]) for row in rows) // 1024,
        disk_free_mib=shutil.disk_usage(folder).free >> 20,
    )


def build_need_mib(model: Path, workspace_mib: int) -> int:
    """A rule of thumb for the memory that a TensorRT build takes: libraries, workspace, four copies of the weights.

    Args:
        model: the ONNX file or the SavedModel; one that does not exist counts as 0.
        workspace_mib: the builder's bound for its scratch memory.
    """
    return LIBRARIES_MIB + workspace_mib + COPIES_OF_WEIGHTS * (_size_bytes(model) >> 20)


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in Artifact(path).files()) if path.exists() else 0
