"""The GPU as NVIDIA's driver names it, and what is said where there is no driver, no GPU or no PyCUDA."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.cuda import device as cuda
from engines.errors import Unavailable


class PretendedDriver:
    """The five functions of libcuda that are asked, as a Jetson Orin would answer."""

    def __init__(self, num_gpus: int = 1, status: int = 0) -> None:
        self.num_gpus, self.status = num_gpus, status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: N802
        number._obj.value = self.num_gpus
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 12060
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: int) -> int:  # noqa: N802
        number._obj.value = {75: 8, 76: 7}[attribute]
        return 0


def test_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "_driver", PretendedDriver)
    monkeypatch.setattr(cuda, "_NVIDIA_DRIVER", tmp_path / "none")
    monkeypatch.setattr(cuda, "_NVIDIA_DRIVER_TEXT", tmp_path / "none")
    monkeypatch.setattr(cuda, "why_no_pycuda", lambda: "pycuda: is not installed")
    assert cuda.why_no_gpu() == ""
    assert cuda.versions() == {"cuda_driver": "12.6", "gpu": "Orin", "compute_capability": "8.7"}


@pytest.mark.parametrize(
    ("module", "text", "version"),
    [
        ("535.104.05\n", "", "535.104.05"),
        (
            "",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC 12.3.0",
            "535.104.05",
        ),
        ("", "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build", "540.4.0"),
        ("", "", None),
    ],
)
def test_the_drivers_own_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, text: str, version: str | None
) -> None:
    for name, content in (("_NVIDIA_DRIVER", module), ("_NVIDIA_DRIVER_TEXT", text)):
        if content:
            (tmp_path / name).write_text(content)
        monkeypatch.setattr(cuda, name, tmp_path / name)
    monkeypatch.setattr(cuda, "_driver", PretendedDriver)
    monkeypatch.setattr(cuda, "why_no_pycuda", lambda: "pycuda: is not installed")
    assert cuda.versions().get("nvidia_driver") == version


@pytest.mark.parametrize("driver", [PretendedDriver(num_gpus=0), PretendedDriver(status=100)])
def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, driver: PretendedDriver) -> None:
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    assert cuda.why_no_gpu().startswith("no GPU: the driver finds no device (cuInit gives CUDA error")
    assert cuda.versions() == {}


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    cuda._driver.cache_clear()
    assert cuda.why_no_gpu() == "no GPU: libcuda.so.1 is not there; run on a machine with an NVIDIA driver"
    assert cuda.versions() == {}
    with pytest.raises(Unavailable, match=r"libcuda\.so\.1"), cuda.Device():
        pytest.fail("there is no device")
    cuda._driver.cache_clear()


def test_no_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_driver", PretendedDriver)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with (
        pytest.raises(Unavailable, match=r"pycuda: cannot be imported .*; pip install 'trtforge\[gpu\]'"),
        cuda.Device(),
    ):
        pytest.fail("there is no pycuda")
