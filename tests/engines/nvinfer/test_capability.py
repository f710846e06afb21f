"""What a generation or a GPU cannot do is refused with what can be done; no library is needed to decide it.

That the capabilities below are those of real generations is shown by ``test_generations.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engines.contract import BuildOptions, GivenScales, ShapeRange
from engines.errors import EngineError, Unavailable
from engines.nvinfer.capability import Capability, Platform, refuse, refuse_platform, typing_for

TRT_10 = Capability(
    name="tensorrt",
    version="10.3.0",
    explicit_batch=True,
    strong_typing=True,
    weak_typing=True,
    native_int8=True,
    ahead_of_time=False,
    optimization_level=True,
    hardware=("ampere_plus",),
    version_compatible=True,
    stripped=True,
    progress=True,
    timing_cache=True,
    dla=True,
    external_kernels=True,
    core_without_libraries=False,
    native_norm=True,
    parser_parts=True,
    profile_sharing=False,
)
TRT_8 = replace(TRT_10, version="8.5.2", strong_typing=False, optimization_level=False, hardware=(), stripped=False)
TRT_8 = replace(TRT_8, version_compatible=False, progress=False)
TRT_11 = replace(TRT_10, version="11.4.0", explicit_batch=False, weak_typing=False, native_int8=False)
RTX = replace(TRT_11, name="tensorrt_rtx", version="1.7.1", ahead_of_time=True, dla=False, stripped=False, hardware=())
NATIVE = GivenScales(b"TRT-100300-EntropyCalibration2\n")
STATIC = {"x": ShapeRange((1, 3), (1, 3), (1, 3))}
DYNAMIC = {"x": ShapeRange((1, 3), (2, 3), (8, 3))}
DLA = BuildOptions("int8", STATIC, native=NATIVE, dla_core=0)


@pytest.mark.parametrize("found", [TRT_8, TRT_10, TRT_11, RTX])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_plain_build_is_for_every_generation(found: Capability, precision: str) -> None:
    refuse(found, BuildOptions(precision, DYNAMIC))


@pytest.mark.parametrize(
    ("found", "options", "typing"),
    [
        (TRT_8, BuildOptions("int8"), "weak"),
        (TRT_10, BuildOptions("int8"), "strong"),
        (TRT_10, BuildOptions("int8", native=NATIVE), "weak"),
        (TRT_10, DLA, "weak"),
        (TRT_11, BuildOptions("int8"), "strong"),
        (RTX, BuildOptions("fp16"), "strong"),
    ],
)
def test_typing(found: Capability, options: BuildOptions, typing: str) -> None:
    assert typing_for(found, options) == typing


@pytest.mark.parametrize(
    ("found", "change", "words"),
    [
        (
            TRT_11,
            {"native": NATIVE},
            'native INT8 is requested, version 11.4.0 has no calibrators; take int8 = "qdq", ',
        ),
        (RTX, {"native": NATIVE}, "tensorrt_rtx: native INT8 is requested, version 1.7.1 has no calibrators; take "),
        (TRT_8, {"optimization_level": 5}, "optimization level 5 is requested, version 8.5.2 has none; leave it at 3"),
        (TRT_8, {"hardware": "ampere_plus"}, 'version 8.5.2 has "exact"; choose one of these'),
        (
            TRT_10,
            {"hardware": "same_compute_capability"},
            'hardware = "same_compute_capability" is requested, version 10.3.0 has "exact", "ampere_plus"; choose one',
        ),
        (RTX, {"hardware": "ampere_plus"}, "choose one of these; name its targets in compute_capabilities"),
        (TRT_8, {"version_compatible": True}, "a version-compatible engine is requested, version 8.5.2 has none"),
        (TRT_8, {"weights": "stripped"}, 'weights = "stripped" is requested, version 8.5.2 has no such plans; take "f'),
        (RTX, {"weights": "refittable"}, 'weights = "refittable" is requested, version 1.7.1 has none without a GPU'),
        (TRT_10, {"precision": "dynamic"}, "dynamic is requested, TensorRT has no such engines: its INT8 has fixed sc"),
        (TRT_8, {"precision": "dynamic", "native": NATIVE}, "dynamic is requested, TensorRT has no such engines"),
        (RTX, {"dla_core": 1}, "DLA core 1 is requested, version 1.7.1 has no DLA; leave dla_core at -1"),
    ],
)
def test_what_a_generation_lacks(found: Capability, change: dict[str, Any], words: str) -> None:
    with pytest.raises(Unavailable) as caught:
        refuse(found, replace(BuildOptions("int8"), **change))
    assert words in str(caught.value)


@pytest.mark.parametrize("found", [TRT_8, TRT_10])
def test_native_int8_up_to_10(found: Capability) -> None:
    refuse(found, BuildOptions("int8", DYNAMIC, native=NATIVE))
    refuse(found, DLA)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (replace(DLA, precision="fp32", native=None), "fp32 is requested, DLA has FP16 and INT8; build one of these"),
        (replace(DLA, native=None), 'INT8 by Q/DQ nodes is requested, DLA takes none; take int8 = "native"'),
        (
            replace(DLA, shapes=DYNAMIC),
            "the shapes of 'x' go from (1, 3) to (8, 3), DLA takes one; give min, opt and max alike",
        ),
        (replace(DLA, more_shapes=(DYNAMIC,)), "the shapes of 'x' go from (1, 3) to (8, 3)"),
    ],
)
def test_what_dla_lacks(options: BuildOptions, words: str) -> None:
    with pytest.raises(Unavailable) as caught:
        refuse(TRT_10, options)
    assert str(caught.value).startswith("tensorrt, DLA core 0: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            BuildOptions(optimization_level=6),
            "tensorrt: optimization level 6 is requested, it goes from 0 to 5",
        ),
        (BuildOptions(workspace_mib=0), "tensorrt: workspace is 0 MiB; give at least 1"),
        (BuildOptions("fp16", native=NATIVE), "native INT8 is requested with precision fp16; ask for int8"),
    ],
)
def test_options_that_fit_no_generation(options: BuildOptions, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        refuse(TRT_10, options)


@pytest.mark.parametrize(
    ("platform", "options", "words"),
    [
        (
            Platform("GTX 1080 (compute capability 6.1)", has_fp16=False),
            BuildOptions("fp16"),
            "tensorrt: fp16 is requested, GTX 1080 (compute capability 6.1) has no fast arithmetic for it; build fp32 "
            "or int8 for it",
        ),
        (
            Platform(has_int8=False),
            BuildOptions("int8"),
            "int8 is requested, this GPU has no fast arithmetic for it",
        ),
        (
            Platform(),
            DLA,
            "DLA core 0 is requested, this machine has no DLA, or its TensorRT does not drive it",
        ),
        (Platform("Orin", num_dla_cores=2), replace(DLA, dla_core=2), "Orin has 2 of them, counted from 0; choose one"),
    ],
)
def test_what_a_gpu_lacks(platform: Platform, options: BuildOptions, words: str) -> None:
    with pytest.raises(Unavailable) as caught:
        refuse_platform(TRT_10, platform, options)
    assert words in str(caught.value)


def test_what_a_gpu_has() -> None:
    refuse_platform(TRT_10, Platform(), BuildOptions("int8"))
    refuse_platform(TRT_10, Platform(has_fp16=False, has_int8=False), BuildOptions("fp32"))
    refuse_platform(TRT_10, Platform("Orin", num_dla_cores=2), replace(DLA, dla_core=1))
