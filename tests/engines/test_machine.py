"""What the machine says of itself: CPU, GPU, and the survey of all backends that `trtforge doctor` prints."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

from engines import BACKENDS, cpu
from engines.availability import survey
from engines.cuda import device as cuda
from engines.errors import Unavailable

X86 = """processor : 0
model name : AMD EPYC 7B13
flags : fpu sse2 avx2 fma popcnt avx512_vnni
processor : 1
model name : another
"""
ARM = """processor : 0
Features : fp asimd asimddp crc32
Model : NVIDIA Jetson Orin Nano
"""


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (X86, "AMD EPYC 7B13", {"avx2", "fma", "avx512_vnni"}),
        (ARM, "NVIDIA Jetson Orin Nano", {"asimd", "asimddp"}),
    ],
)
def test_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, name: str, flags: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.cpu_name() == name
    assert cpu.cpu_flags() == flags
    assert cpu.cpu_flags() & cpu.DOT_PRODUCT


def test_cpu_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    assert cpu.cpu_name()
    assert cpu.cpu_flags() == frozenset()


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
    monkeypatch.setattr(cuda, "why_no_pycuda", lambda: "pycuda: is not installed")
    assert cuda.why_no_gpu() == ""
    assert cuda.versions() == {"cuda_driver": "12.6", "gpu": "Orin", "compute_capability": "8.7"}


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


def test_survey() -> None:
    states = survey()
    assert tuple(state.name for state in states) == BACKENDS
    for state in states:
        assert state.can_build == (not state.why_not_build)
        assert state.can_run == (not state.why_not_run)
        assert state.install
        assert state.versions or not (state.can_build or state.can_run)
    reference = states[BACKENDS.index("reference")]
    assert (reference.can_build, reference.can_run) == (True, True)


def test_survey_of_a_runtime_that_is_installed_and_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise Unavailable("reference: cannot be imported (libgomp.so.1 is missing)")

    monkeypatch.setattr("engines.reference.versions", broken)
    state = survey()[BACKENDS.index("reference")]
    assert (state.can_build, state.can_run, state.versions) == (False, False, {})
    assert state.why_not_build == state.why_not_run == "reference: cannot be imported (libgomp.so.1 is missing)"
