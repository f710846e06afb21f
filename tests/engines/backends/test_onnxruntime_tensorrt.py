"""ONNX Runtime's providers on the GPU, as far as that goes without one: options, refusals, names of the real wheel."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines import backend
from engines.backends import onnxruntime_cuda, onnxruntime_tensorrt
from engines.contract import BuildOptions, GivenScales, ShapeRange, SharingBackend
from engines.errors import EngineError, Unavailable
from engines.ort import sharing
from engines.ort.providers import TENSORRT, library_of
from engines.support.operator_lists import release_nearest

SHAPES = {"x": ShapeRange((1, 3), (2, 3), (8, 3))}
OPTIONS = BuildOptions(shapes=SHAPES, workspace_mib=64, optimization_level=4, sparse_weights=True)


def options_by_version(model: Path, precision: str, version: str) -> dict[str, str]:
    """Those that are about precision."""
    options = onnxruntime_tensorrt.provider_options(model, replace(OPTIONS, precision=precision), version)
    return {name: value for name, value in options.items() if name.endswith(("int8_enable", "fp16_enable"))}


def test_what_the_provider_is_told(linear: Path) -> None:
    told = onnxruntime_tensorrt.provider_options(linear, OPTIONS, "10.13.3")
    assert told.pop("trt_profile_max_shapes") == "x:8x3,xw:8x2,y:8x2"
    assert told.pop("trt_profile_opt_shapes") == "x:2x3,xw:2x2,y:2x2"
    assert told.pop("trt_profile_min_shapes") == "x:1x3,xw:1x2,y:1x2"
    assert told == {
        "trt_max_workspace_size": str(64 * 2**20),
        "trt_builder_optimization_level": "4",
        "trt_sparsity_enable": "True",
    }


def test_from_10_on_no_flag_of_a_precision_so_that_the_network_is_strongly_typed(linear: Path) -> None:
    both = {"trt_fp16_enable": "True", "trt_int8_enable": "True"}
    assert options_by_version(linear, "int8", "10.13.3") == options_by_version(linear, "fp16", "11.4.1") == {}
    assert options_by_version(linear, "int8", "8.6.1") == both
    assert options_by_version(linear, "fp16", "8.6.1") == {"trt_fp16_enable": "True"}
    assert options_by_version(linear, "fp32", "8.6.1") == {}


def test_an_input_without_a_range(linear: Path) -> None:
    with pytest.raises(EngineError, match=r"input 'x' is \(\?, 3\), and no shape range is given for it"):
        onnxruntime_tensorrt.provider_options(linear, BuildOptions(), "10.13.3")


@pytest.mark.parametrize("name", ["onnxruntime_tensorrt", "onnxruntime_cuda"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions(dla_core=0), "dla_core is requested, only TensorRT has it; leave it out, or take tensorrt"),
        (BuildOptions(native=GivenScales(b"")), "native is requested, only TensorRT has it"),
        (BuildOptions(compute_capabilities=("8.7",)), r"compute capabilities 8\.7 are requested"),
    ],
)
def test_what_they_do_not_have(name: str, options: BuildOptions, words: str) -> None:
    with pytest.raises(Unavailable, match=f"^{name}: {words}"):
        backend(name).refuse(options)


@pytest.mark.parametrize("module", [onnxruntime_tensorrt, onnxruntime_cuda])
def test_without_what_they_need_each_call_says_why(module: SharingBackend, linear: Path, tmp_path: Path) -> None:
    if not (reason := module.why_not_build()):
        pytest.skip(f"{module.NAME} works here")
    calls: tuple[Callable[[], object], ...] = (
        module.versions,
        lambda: module.refuse(BuildOptions()),
        lambda: module.build(linear, tmp_path / "engine", OPTIONS),
    )
    for call in calls:
        with pytest.raises(Unavailable, match=f"^{re.escape(reason)}"):
            call()


def test_it_is_asked_by_the_list_of_its_version(linear: Path) -> None:
    if onnxruntime_tensorrt.why_not_ask():
        with pytest.raises(Unavailable, match="the list of a version is asked with --generation, or \\[support\\] gen"):
            onnxruntime_tensorrt.ask(linear, {})
    else:
        assert onnxruntime_tensorrt.ask(linear, {}).is_whole
    assert (release_nearest("10.3.0").name, release_nearest("11.4.1").name, release_nearest("").name) == (
        "10.3", "10.15", "10.15",
    )  # fmt: skip


@pytest.mark.parametrize("module", [onnxruntime_tensorrt, onnxruntime_cuda])
def test_who_runs_what_is_read_from_the_engine(module: SharingBackend, linear: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is no engine that ONNX Runtime's providers share"):
        module.providers_of(linear)
    (tmp_path / sharing.DESCRIPTION).write_text(
        '{"model": "model.onnx", "options": {}, "shares": '
        '[{"provider": "CUDAExecutionProvider", "nodes": ["fc"], "operators": {"MatMul": 1}, "segments": []}]}'
    )
    assert [share.nodes for share in module.providers_of(tmp_path)] == [("fc",)]


def test_the_options_are_those_of_the_real_library(linear: Path, tmp_path: Path) -> None:
    """Each name that is used stands in the wheel's file, as do the sentences that are looked for in its errors."""
    library = library_of(TENSORRT)
    if library is None:
        pytest.skip(
            "onnxruntime-gpu is not installed here: names of its options cannot be held against the real library"
        )
    text = library.read_bytes()
    used = {
        *onnxruntime_tensorrt.provider_options(linear, replace(OPTIONS, precision="int8"), "8.6.1"),
        *sharing.cache_options(tmp_path),
        *sharing.timing_options(replace(OPTIONS, timing_cache=tmp_path / "a.timing")),
        *sharing.context_options(tmp_path),
    }
    assert {name for name in used if name.encode() not in text} == set()
    assert sharing.NO_PROFILE.encode() in text
    assert [name for name in ("trt_engine_cache_folder",) if name.encode() not in text] == ["trt_engine_cache_folder"]
