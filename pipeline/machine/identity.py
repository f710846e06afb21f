"""The machine that a number was measured on: enough to refuse to mix machines, and no name of any machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from engines.cpu import RELEVANT
from pipeline.machine.jetson import power_mode
from pipeline.machine.packages import ABSENT, distribution_versions
from pipeline.machine.system_files import memory_kib, text_of

_LOG = logging.getLogger(__name__)

UNKNOWN = "unknown"

DISTRIBUTIONS = (
    "trtforge",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "polygraphy",
    "tensorflow",
    "tf_keras",
    "tf2onnx",
    "torch",
    "tensorrt",
    "tensorrt_rtx_cu13",
    "pycuda",
)
"""Distributions whose versions a result may depend on; those that are not installed are left out."""

_SMI_FIELDS = ("name", "driver_version", "memory.total", "power.limit")
_SMI_SECONDS = 20


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it; 0 stands for what the driver does not tell (a Jetson's memory is shared)."""

    name: str
    driver: str
    memory_mib: int
    power_limit_w: float


@dataclass(frozen=True)
class Machine:
    """What latency depends on. Two machines with equal fields count as the same machine.

    An empty text, or 0, stands for what this machine does not tell or does not have.
    """

    system: str
    kernel: str
    architecture: str
    board: str
    """The device tree's model, such as ``NVIDIA Jetson AGX Orin Developer Kit``; empty on a PC."""
    cpu: str
    num_cores: int
    """Cores that this process may use."""
    cpu_quota_cores: float
    """The control group's bound on CPU time, in cores."""
    isa: tuple[str, ...]
    """Those instruction set flags that matter to a neural network."""
    memory_mib: int
    governor: str
    """The CPU's frequency governor, such as ``performance``."""
    gpus: tuple[Gpu, ...]
    jetson_release: str
    """First line of ``/etc/nv_tegra_release``."""
    power_mode: str
    """A Jetson's nvpmodel mode, such as ``MAXN``."""

    def digest(self) -> str:
        """SHA-256 (hex) of all fields, as canonical JSON."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Machine) -> tuple[str, ...]:
        """One phrase for each field that differs, such as ``cpu: 'A' against 'B'``; empty for the same machine."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return tuple(f"{name}: {mine!r} against {theirs!r}" for name, mine, theirs in pairs if mine != theirs)

    def processor(self, *, gpu: bool) -> str:
        """What computes: the GPUs, or where none is listed the board that has one; else the CPU."""
        names = ", ".join(dict.fromkeys(each.name for each in self.gpus)) or self.board
        return names if gpu and names else self.cpu

    def describe(self) -> str:
        """One line for people: board or CPU, cores, memory, GPUs and power mode."""
        parts = [self.board or self.cpu, f"{self.num_cores} core{'s' if self.num_cores != 1 else ''}"]
        parts.append(f"{self.memory_mib / 1024:.0f} GiB" if self.memory_mib else "memory unknown")
        parts += [f"{gpu.name} (driver {gpu.driver})" for gpu in self.gpus]
        parts += [f"power mode {self.power_mode}"] if self.power_mode else []
        return ", ".join([*parts, f"{self.system} {self.architecture}"])


def this_machine(root: Path = Path("/")) -> Machine:
    """The machine that this process runs on.

    Args:
        root: where ``proc``, ``sys`` and ``etc`` lie; a test points it at a made-up tree.
    """
    info = _cpuinfo(root)
    flags = set(info.get("flags", info.get("Features", "")).split())
    return Machine(
        system=platform.system(),
        kernel=platform.release(),
        architecture=platform.machine(),
        board=text_of(root / "proc/device-tree/model"),
        cpu=_cpu_name(info),
        num_cores=_num_cores(),
        cpu_quota_cores=_cpu_quota_cores(root),
        isa=tuple(flag for flag in RELEVANT if flag in flags),
        memory_mib=memory_kib(root).get("MemTotal", 0) // 1024,
        governor=text_of(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        gpus=gpus_from_nvidia_smi(),
        jetson_release=text_of(root / "etc/nv_tegra_release").partition("\n")[0],
        power_mode=power_mode(root),
    )


def gpus_from_nvidia_smi() -> tuple[Gpu, ...]:
    """The GPUs that ``nvidia-smi`` lists; none where the program is missing.

    A program that is there and fails is logged as a warning, for then the GPU is likely not usable either.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        _LOG.warning("nvidia-smi: did not answer (%s); the report will name no GPU", error)
        return ()
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()
        _LOG.warning("nvidia-smi: exit status %d (%s); the report will name no GPU", done.returncode, output)
        return ()
    return tuple(_gpu_from_line(line) for line in done.stdout.splitlines() if line.strip())


def installed_versions() -> dict[str, str]:
    """Python's version and those of the installed distributions that a result may depend on, by name."""
    installed = {name: version for name, version in distribution_versions(*DISTRIBUTIONS).items() if version != ABSENT}
    return {"python": platform.python_version(), **installed}


def _gpu_from_line(line: str) -> Gpu:
    name, driver, memory, power = ([cell.strip() for cell in line.split(",")] + [""] * 4)[:4]
    return Gpu(name=name, driver=driver, memory_mib=int(_number(memory)), power_limit_w=_number(power))


def _number(text: str) -> float:
    """The number, or 0 for ``[N/A]`` and the like."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def _cpuinfo(root: Path) -> Mapping[str, str]:
    """The first value of each key in ``/proc/cpuinfo``."""
    values: dict[str, str] = {}
    for line in text_of(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), value.strip())
    return values


def _cpu_name(info: Mapping[str, str]) -> str:
    if "model name" in info:
        return info["model name"]
    if "CPU part" in info:
        return f"ARM implementer {info.get('CPU implementer', UNKNOWN)}, part {info['CPU part']}"
    return platform.processor() or UNKNOWN


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


def _cpu_quota_cores(root: Path) -> float:
    """``cpu.max`` of control groups version 2 holds microseconds of CPU time, or ``max``, and the period."""
    match = re.fullmatch(r"(\d+) (\d+)", text_of(root / "sys/fs/cgroup/cpu.max"))
    return int(match[1]) / int(match[2]) if match else 0.0
