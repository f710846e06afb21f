"""TensorRT without TensorRT: what it says where it is missing. What it builds is tested on a GPU, by the contract."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.backends import tensorrt
from engines.contract import BuildOptions
from engines.cuda import device
from engines.errors import Unavailable


def test_missing_library(monkeypatch: pytest.MonkeyPatch, linear: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for reason in (tensorrt.why_not_build(), tensorrt.why_not_run()):
        assert reason.startswith("tensorrt: is not installed; on a Jetson: apt install python3-libnvinfer")
    with pytest.raises(Unavailable, match="tensorrt: is not installed"):
        tensorrt.build(linear, tmp_path / "engine", BuildOptions())


def test_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(device, "_driver", lambda: None)
    assert tensorrt.why_not_build() == (
        "tensorrt: no GPU: libcuda.so.1 is not there; run on a machine with an NVIDIA driver"
    )


def test_too_old_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.2.1.8", ICudaEngine=object))
    with pytest.raises(Unavailable, match=r"version 8\.2\.1\.8 is installed, 8\.5 is the oldest that works; update it"):
        tensorrt.versions()


def test_it_builds_only_for_the_gpu_at_hand(linear: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"tensorrt: compute capabilities 8\.7 are requested, this backend builds for"
    ):
        tensorrt.build(linear, tmp_path / "engine", BuildOptions(compute_capabilities=("8.7",)))
