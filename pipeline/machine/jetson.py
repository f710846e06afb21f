"""A Jetson's software and state, read from its files: L4T, JetPack, CUDA, TensorRT, power mode, clocks, throttling.

What each JetPack brings is taken from the recipes of OE4T's meta-tegra (versions of CUDA, cuDNN and TensorRT per L4T)
and from jetson_stats (L4T to JetPack).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.machine.system_files import folders, number_of, text_of


@dataclass(frozen=True)
class Release:
    """What a line of L4T brings; versions as far as they are the same for the whole line."""

    l4t: str
    """How its version begins."""
    jetpack: str
    cuda: str
    cudnn: str
    tensorrt: str
    python: str
    """The distribution's, for which alone apt's tensorrt is made."""


RELEASES = (
    Release("32.", "4", "10.2", "8.2", "8.2", "3.6"),
    Release("34.", "5.0 preview", "11.4", "8.3", "8.4", "3.8"),
    Release("35.1.", "5.0.2", "11.4", "8.4", "8.4", "3.8"),
    Release("35.", "5.1", "11.4", "8.6", "8.5.2", "3.8"),
    Release("36.2.", "6.0 preview", "12.2", "8.9", "8.6.2", "3.10"),
    Release("36.3.", "6.0", "12.2", "8.9", "8.6.2", "3.10"),
    Release("36.", "6", "12.6", "9.3", "10.3.0", "3.10"),
    Release("38.", "7", "13.0", "9.12", "10.13.3", "3.12"),
    Release("39.", "7.2", "13.2", "9.20", "10.16.2", "3.12"),
)
"""The first whose beginning fits is the one."""

JETPACKS = {
    "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5.0": "5.1.3", "35.6.0": "5.1.4", "35.6.1": "5.1.5",
    "35.6.2": "5.1.5", "35.6.3": "5.1.5", "35.6.4": "5.1.6",
    "36.2.0": "6.0 preview", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.2": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1",
    "36.4.7": "6.2.1", "36.5.0": "6.2.2",
    "38.2.0": "7.0", "38.2.1": "7.0", "38.2.2": "7.0", "38.4.0": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip
"""L4T to JetPack, where a line of L4T holds several."""

COMPUTE_CAPABILITIES = {
    "tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0",
}  # fmt: skip
"""Nano and TX1, TX2, Xavier, Orin, Thor."""

PACKAGES = {
    "cuda": r"cuda-cudart-\d+-\d+",
    "cudnn": r"libcudnn\d+(-cuda-\d+)?",
    "tensorrt": r"libnvinfer\d+",
    "tensorrt_bindings": r"python3-libnvinfer",
    "python": r"python3",
}
"""What is looked up among the installed packages."""

GPU_CLOCK = re.compile(r"\d+\.(gpu|ga10b|gv11b|gp10b|gm20b|gb10b)|gpu-gpc-\d+")
"""Names of the GPU's folder in ``sys/class/devfreq``: L4T 32 to 39, and Thor."""


@dataclass(frozen=True)
class Clock:
    """A clock and the bounds it may move in, MHz; NaN where the system does not tell."""

    name: str
    current_mhz: float
    low_mhz: float
    high_mhz: float
    governor: str

    def is_fixed(self) -> bool:
        """Whether it cannot move, as after ``jetson_clocks``."""
        return self.low_mhz == self.high_mhz


@dataclass(frozen=True)
class Jetson:
    """One Jetson; an empty text stands for what its files do not tell."""

    board: str
    soc: str
    compute_capability: str
    l4t: str
    jetpack: str
    packages: Mapping[str, str]
    """The versions of what ``PACKAGES`` names; without what is not installed."""
    l4t_packages: Mapping[str, str]
    """Every ``nvidia-l4t-…`` package and its L4T version."""
    bindings: tuple[str, ...]
    """Where apt's tensorrt for Python lies."""
    nvcc: str
    power_mode: str
    power_modes: tuple[str, ...]
    """All that the table knows, such as ``2 MODE_30W``."""
    clocks: tuple[Clock, ...]
    num_overcurrent: int
    """How often the hardware has throttled for over-current since the start; -1 where it is not told."""

    def release(self) -> Release | None:
        """What this line of L4T brings; None for one that is not in the table."""
        return next((line for line in RELEASES if self.l4t and self.l4t.startswith(line.l4t)), None)


def jetson_here(root: Path) -> Jetson | None:
    """The Jetson whose files lie below ``root``; None where they are another machine's."""
    compatible = text_of(root / "proc/device-tree/compatible").split("\0")
    soc = next((name.removeprefix("nvidia,") for name in compatible if name.startswith("nvidia,tegra")), "")
    release_file = text_of(root / "etc/nv_tegra_release")
    if not soc and not release_file:
        return None
    installed = installed_packages(root)
    l4t_packages = {name: v.split("-")[0] for name, v in installed.items() if name.startswith("nvidia-l4t-")}
    l4t_version = l4t(root) or l4t_packages.get("nvidia-l4t-core", "")
    versions = {what: _version_of(pattern, installed) for what, pattern in PACKAGES.items()}
    nvcc = root / "usr/local/cuda/bin/nvcc"
    return Jetson(
        board=text_of(root / "proc/device-tree/model"),
        soc=soc,
        compute_capability=COMPUTE_CAPABILITIES.get(soc, ""),
        l4t=l4t_version,
        jetpack=_jetpack(l4t_version),
        packages={what: version for what, version in versions.items() if version},
        l4t_packages=l4t_packages,
        bindings=tuple(
            f"/{p.relative_to(root).as_posix()}" for p in folders(root, "usr/lib/python3*/dist-packages/tensorrt")
        ),
        nvcc="/usr/local/cuda/bin/nvcc" if nvcc.is_file() else "",
        power_mode=power_mode(root),
        power_modes=tuple(f"{number} {name}" for number, name in power_modes(root).items()),
        clocks=tuple(clocks(root)),
        num_overcurrent=num_overcurrent(root),
    )


def installed_packages(root: Path) -> dict[str, str]:
    """Every Debian package that is installed whole, and its version, from ``var/lib/dpkg/status``."""
    versions = {}
    for paragraph in text_of(root / "var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith("ok installed"):
            versions[fields.get("Package", "")] = fields.get("Version", "")
    return versions


def l4t(root: Path) -> str:
    """The version of L4T, by its release file, such as ``36.4.3``; empty on other machines."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text_of(root / "etc/nv_tegra_release"))
    return f"{match[1]}.{match[2]}" if match else ""


def power_mode(root: Path) -> str:
    """The name of the power mode in force; its number where the table of names is missing, empty without nvpmodel."""
    match = re.search(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status"))
    number = str(int(match[1])) if match else ""
    return power_modes(root).get(number, number)


def power_modes(root: Path) -> dict[str, str]:
    """The table of power modes: number to name, from ``etc/nvpmodel.conf``."""
    rows = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text_of(root / "etc/nvpmodel.conf"))
    return {str(int(number)): name for number, name in rows}


def clocks(root: Path) -> Iterator[Clock]:
    """The CPU's clock of each cluster, and the GPU's."""
    for policy in folders(root, "sys/devices/system/cpu/cpufreq/policy*"):
        current, low, high = (number_of(policy / f"scaling_{w}_freq") / 1e3 for w in ("cur", "min", "max"))
        yield Clock(f"cpu {policy.name}", current, low, high, text_of(policy / "scaling_governor"))
    for gpu in folders(root, "sys/class/devfreq/*"):
        if GPU_CLOCK.fullmatch(gpu.name):
            current, low, high = (number_of(gpu / f"{which}_freq") / 1e6 for which in ("cur", "min", "max"))
            yield Clock(f"gpu {gpu.name}", current, low, high, text_of(gpu / "governor"))


def num_overcurrent(root: Path) -> int:
    """The sum of the counters ``sys/class/hwmon/hwmon*/oc*_event_cnt``; -1 where there are none."""
    counts = [number_of(file) for file in folders(root, "sys/class/hwmon/hwmon*/oc*_event_cnt")]
    counts = [count for count in counts if not math.isnan(count)]
    return int(sum(counts)) if counts else -1


def _jetpack(version: str) -> str:
    if version in JETPACKS:
        return JETPACKS[version]
    return next((line.jetpack for line in RELEASES if version and version.startswith(line.l4t)), "")


def _version_of(pattern: str, installed: Mapping[str, str]) -> str:
    """The upstream version of the package that fits, ``10.3.0.30`` of ``10.3.0.30-1+cuda12.5``; the newest."""
    matching = [version for name, version in installed.items() if re.fullmatch(pattern, name)]
    versions = [match[0] for version in matching if (match := re.match(r"\d+(\.\d+)*", version.split(":")[-1]))]
    return max(versions, key=lambda text: [int(part) for part in text.split(".")], default="")
