"""What this machine's CPU is, and which of its instructions matter to a neural network."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

RELEVANT = (
    "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx_vnni",
    "avx_vnni_int8", "amx_int8", "amx_bf16",
    "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Flags, as the Linux kernel writes them: x86-64 in the first two lines, AArch64 in the third."""

DOT_PRODUCT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""With one of these, 8-bit products are summed in 32 bits; without, x86 kernels may saturate at 16 bits."""


CPUINFO = Path("/proc/cpuinfo")


@functools.lru_cache(maxsize=None)
def _cpuinfo(file: Path) -> dict[str, str]:
    """The first value of each key in a file as ``CPUINFO``; empty where there is none (no Linux)."""
    if not file.is_file():
        return {}
    pairs = (line.partition(":") for line in file.read_text(errors="replace").splitlines() if ":" in line)
    values: dict[str, str] = {}
    for key, _, value in pairs:
        values.setdefault(key.strip(), value.strip())
    return values


def cpu_name() -> str:
    """The CPU's name, as far as the system tells it: ``AMD EPYC``."""
    info = _cpuinfo(CPUINFO)
    return info.get("model name") or info.get("Model") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Those of ``RELEVANT`` that this CPU has; empty where the system does not tell."""
    info = _cpuinfo(CPUINFO)
    words = info.get("flags", info.get("Features", "")).split()
    return frozenset(words).intersection(RELEVANT)


def versions() -> dict[str, str]:
    """What a number measured on this CPU depends on: its name, architecture and relevant flags."""
    there = cpu_flags()
    flags = " ".join(flag for flag in RELEVANT if flag in there)
    return {"cpu": cpu_name(), "machine": platform.machine(), "cpu_flags": flags}
