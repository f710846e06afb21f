"""Made-up Jetsons: the files that L4T has, for each JetPack from 5.1 to 7.2."""

from __future__ import annotations

from pathlib import Path

ORIN_NANO = ("NVIDIA Jetson Orin Nano Developer Kit", "nvidia,p3768-0000+p3767-0005", "tegra234")
AGX_ORIN = ("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0005", "tegra234")
AGX_XAVIER = ("NVIDIA Jetson AGX Xavier Developer Kit", "nvidia,p2972-0000", "tegra194")
AGX_THOR = ("NVIDIA Jetson AGX Thor Developer Kit", "nvidia,p4071-0000+p3834-0008", "tegra264")
NANO = ("NVIDIA Jetson Nano Developer Kit", "nvidia,jetson-nano", "tegra210")

JETPACK_5 = {
    "libnvinfer8": "8.5.2-1+cuda11.4", "python3-libnvinfer": "8.5.2-1+cuda11.4",
    "cuda-cudart-11-4": "11.4.298-1", "libcudnn8": "8.6.0.166-1+cuda11.4", "python3": "3.8.2-0ubuntu2",
}  # fmt: skip
JETPACK_6_0 = {
    "libnvinfer8": "8.6.2.3-1+cuda12.2", "python3-libnvinfer": "8.6.2.3-1+cuda12.2",
    "cuda-cudart-12-2": "12.2.140-1", "libcudnn8": "8.9.4.25-1+cuda12.2", "python3": "3.10.6-1~22.04",
}  # fmt: skip
JETPACK_6 = {
    "libnvinfer10": "10.3.0.30-1+cuda12.5", "python3-libnvinfer": "10.3.0.30-1+cuda12.5",
    "cuda-cudart-12-6": "12.6.68-1", "libcudnn9-cuda-12": "9.3.0.75-1", "python3": "3.10.6-1~22.04.1",
}  # fmt: skip
JETPACK_7 = {
    "libnvinfer10": "10.13.3.9-1+cuda13.0", "python3-libnvinfer": "10.13.3.9-1+cuda13.0",
    "cuda-cudart-13-0": "13.0.48-1", "libcudnn9-cuda-13": "9.12.0.46-1", "python3": "3.12.3-0ubuntu2",
}  # fmt: skip
JETPACK_7_2 = {
    "libnvinfer10": "10.16.2.10-1+cuda13.2", "python3-libnvinfer": "10.16.2.10-1+cuda13.2",
    "cuda-cudart-13-2": "13.2.75-1", "libcudnn9-cuda-13": "9.20.0.46-1", "python3": "3.12.3-0ubuntu2.1",
}  # fmt: skip

JETSONS = {
    "5.1": ("35.2.1", AGX_XAVIER, JETPACK_5),
    "5.1.2": ("35.4.1", ORIN_NANO, JETPACK_5),
    "5.1.6": ("35.6.4", AGX_ORIN, JETPACK_5),
    "6.0": ("36.3.0", AGX_ORIN, JETPACK_6_0),
    "6.1": ("36.4.0", AGX_ORIN, JETPACK_6),
    "6.2": ("36.4.3", ORIN_NANO, JETPACK_6),
    "6.2.2": ("36.5.0", ORIN_NANO, JETPACK_6),
    "7.0": ("38.2.0", AGX_THOR, JETPACK_7),
    "7.1": ("38.4.0", AGX_THOR, JETPACK_7),
    "7.2": ("39.2.0", AGX_ORIN, JETPACK_7_2),
}
"""JetPack -> L4T, board, packages."""

POWER_MODES = """< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MODE_30W >
< PM_CONFIG DEFAULT=2 >
"""


def dpkg_status(packages: dict[str, str]) -> str:
    """``/var/lib/dpkg/status`` with these packages installed, and one that was removed."""
    removed = "Package: cuda-cudart-10-2\nStatus: deinstall ok config-files\nVersion: 10.2.300-1\n"
    rows = [
        f"Package: {name}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {version}\n"
        "Description: made up\n with a second line: Version: 0\n"
        for name, version in packages.items()
    ]
    return "\n".join([removed, *rows])


def jetson_files(jetpack: str) -> dict[str, str]:
    """Path -> text of a Jetson in good order: MAXN, fixed clocks, enough memory, apt's bindings in place."""
    l4t, (board, part, soc), packages = JETSONS[jetpack]
    major, _, revision = l4t.partition(".")
    python = ".".join(packages["python3"].split(".")[:2])
    gpu = "gpu-gpc-0" if soc == "tegra264" else "17000000.ga10b" if major == "35" else "17000000.gpu"
    return {
        "etc/nv_tegra_release": f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64\n",
        "etc/nvpmodel.conf": POWER_MODES,
        "var/lib/nvpmodel/status": "pmode:0000 fmode:quiet\n",
        "var/lib/dpkg/status": dpkg_status(packages | {"nvidia-l4t-core": f"{l4t}-20250101"}),
        "proc/device-tree/model": f"{board}\0",
        "proc/device-tree/compatible": f"{part}\0nvidia,{soc}\0",
        "proc/meminfo": "MemTotal:        7802880 kB\nMemFree:          500000 kB\nMemAvailable:    6144000 kB\n",
        "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/swapfile                               file\t\t8388604\t\t0\t\t-2\n"
        "/dev/zram0                              partition\t650240\t\t1024\t\t5\n",
        f"usr/lib/python{python}/dist-packages/tensorrt/__init__.py": "",
        "usr/local/cuda/bin/nvcc": "",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1510400\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1510400\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
        f"sys/class/devfreq/{gpu}/cur_freq": "624750000\n",
        f"sys/class/devfreq/{gpu}/min_freq": "624750000\n",
        f"sys/class/devfreq/{gpu}/max_freq": "624750000\n",
        f"sys/class/devfreq/{gpu}/governor": "nvhost_podgov\n",
        "sys/class/devfreq/15340000.vic/cur_freq": "435200000\n",
        "sys/class/hwmon/hwmon2/oc1_event_cnt": "0\n",
        "sys/class/hwmon/hwmon2/oc3_event_cnt": "0\n",
    }


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write the files below the root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
