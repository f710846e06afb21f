"""Configs as real builders of TensorRT for RTX take them: 1.7 with the API of TensorRT 11, 1.4 with that of 10.

What an option does on a GPU is not seen here; that it is there, and set, is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.contract import BuildOptions
from engines.nvinfer import timing_cache
from engines.nvinfer.builder_config import configure, keep_full
from engines.nvinfer.capability import Capability
from engines.nvinfer.timing_cache import timing_cache_path

ROOT = Path(__file__).resolve().parents[3]
CALLS = Path(__file__).with_name("config_calls.py")
OLD = ROOT / ".venv" / "bindings" / "rtx-1.4.0.76"


@pytest.fixture(scope="module", params=["1.4", "1.7"])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with that version says."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, which builds without a GPU, is not installed")
    if request.param == "1.4" and not OLD.is_dir():
        pytest.skip("TensorRT for RTX 1.4 is not there; scripts/bindings gets it")
    path = f"{OLD}:{ROOT}" if request.param == "1.4" else str(ROOT)
    command = [sys.executable, str(CALLS), str(tmp_path_factory.mktemp("calls"))]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith(request.param)
    return found


def test_options_reach_the_config(said: dict[str, Any]) -> None:
    assert said["workspace_mib"] == 64
    assert said["level"] == 2
    assert said["verbosity"] == "DETAILED"
    assert said["monitor"]
    assert said["flags"] == {
        "refittable": ["REFIT"], "stripped": ["REFIT_IDENTICAL", "STRIP_PLAN"], "dla": ["GPU_FALLBACK"],
        "sparse": ["SPARSE_WEIGHTS"],
    }  # fmt: skip
    assert said["device"] == "DLA"


def test_libraries_are_left_out_where_there_are_any(said: dict[str, Any]) -> None:
    own = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    all_kinds = ["CUBLAS", "CUBLAS_LT", "CUDNN", *own] if said["version"].startswith("1.4") else own
    assert said["kernels"] == [all_kinds, own]


def test_streams_may_share_a_profile(said: dict[str, Any]) -> None:
    """On by itself from TensorRT 10 on, as here, and no feature any more from 11 on; 8.6 is told."""
    assert said["shares profiles"] in (True, None)
    assert (said["shares profiles"] is None) == (not said["version"].startswith("1.4"))


@pytest.mark.parametrize(("before", "told"), [(False, [("sharing", True)]), (True, [])])
def test_what_is_on_by_itself_is_not_set_again(before: bool, told: list[tuple[str, bool]]) -> None:
    """8.6 has no builder without a GPU: the functions of its config, in their place."""
    calls: list[tuple[str, bool]] = []
    config = SimpleNamespace(
        get_preview_feature=lambda feature: before,
        set_preview_feature=lambda feature, on: calls.append((feature, on)),
        set_memory_pool_limit=lambda pool, size: None,
    )
    trt = SimpleNamespace(
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        PreviewFeature=SimpleNamespace(PROFILE_SHARING_0806="sharing"),
        ProfilingVerbosity=SimpleNamespace(DETAILED=0),
    )
    nothing: dict[str, Any] = {field.name: False for field in fields(Capability)}
    configure(trt, Capability(**nothing | {"profile_sharing": True}), config, BuildOptions(), deque())
    assert calls == told


def test_precision_flags_for_weakly_typed_networks(said: dict[str, Any]) -> None:
    if not said["version"].startswith("1.4"):
        assert said["weak"] == {}, "there are no such flags any more"
        return
    assert said["weak"] == {
        "fp32": [[], 1],
        "fp16": [["FP16"], 1],
        "int8": [["FP16", "INT8"], 2],
        "int8 without fp16": [["INT8"], 2],
        "int8, strong": [[], 1],
    }


def test_a_timing_cache_is_for_one_version_gpu_and_power_mode() -> None:
    versions = {"tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7", "power_mode": "15W", "cuda": "12.6"}
    versions |= {"nvidia_driver": "535.104", "l4t": "36.4.3", "cudnn": "8.9.4", "cublas": "12.2.5"}
    path = timing_cache_path(Path("a"), versions)
    assert timing_cache_path(Path("a"), versions | {"cuda": "12.8"}) == path
    others = [timing_cache_path(Path("a"), versions | {key: "other"}) for key in versions if key != "cuda"]
    assert len({path, *others}) == len(versions)


def test_a_bad_timing_cache_is_a_warning_and_a_fresh_start(said: dict[str, Any]) -> None:
    assert said["timing cache"] == {
        "none": "",
        "kept": True,
        "damaged": "timing cache damaged.timing: TensorRT does not take it: it is damaged, or of another version or "
        "GPU; every kernel is timed again",
        "left": ["damaged.timing", "folder", "kept.timing"],
    }


def test_where_no_timing_cache_is_taken_at_all_there_is_an_engine_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timing_cache.keep(SimpleNamespace(get_timing_cache=lambda: None), tmp_path / "a.timing")
    assert list(tmp_path.iterdir()) == []
    assert "a.timing: TensorRT keeps none; later builds time its kernels again" in caplog.text


class Layer:
    """What is told a layer of a weakly typed network; the builder of one wants a GPU."""

    def __init__(self, name: str, num_outputs: int = 1) -> None:
        self.name, self.num_outputs, self.precision = name, num_outputs, ""
        self.types: dict[int, str] = {}

    def set_output_type(self, index: int, kind: str) -> None:
        self.types[index] = kind


def test_layers_that_the_model_has_in_fp32_are_asked_for_in_fp32() -> None:
    layers = [Layer("relu"), Layer("soft"), Layer("split", 2)]
    network = SimpleNamespace(num_layers=3, get_layer=lambda index: layers[index])
    flags: list[str] = []
    trt = SimpleNamespace(
        DataType=SimpleNamespace(FLOAT="float"), BuilderFlag=SimpleNamespace(PREFER_PRECISION_CONSTRAINTS="prefer")
    )
    config = SimpleNamespace(set_flag=flags.append)
    notes = keep_full(trt, config, network, lambda name: name != "relu")
    assert notes == ("FP32 is requested in 2 layers that the model has in FP32, such as 'soft'.",)
    assert [(layer.precision, layer.types) for layer in layers] == [
        ("", {}), ("float", {0: "float"}), ("float", {0: "float", 1: "float"}),
    ]  # fmt: skip
    assert flags == ["prefer"]
    assert keep_full(trt, config, network, lambda name: False) == ()
    assert flags == ["prefer"]
