"""Each generation of TensorRT as its real bindings are: what it can do, and our classes as instances of its own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines.python38 import python38, with_bindings

ROOT = Path(__file__).resolve().parents[3]
CALLS = Path(__file__).with_name("generation_calls.py")

LIKE_8 = {
    "name": "tensorrt",
    "explicit_batch": True,
    "strong_typing": False,
    "weak_typing": True,
    "native_int8": True,
    "ahead_of_time": False,
    "optimization_level": True,
    "hardware": ["ampere_plus"],
    "version_compatible": True,
    "stripped": False,
    "progress": False,
    "timing_cache": True,
    "dla": True,
    "external_kernels": True,
    "core_without_libraries": True,
    "native_norm": True,
    "parser_parts": False,
    "profile_sharing": True,
}
LIKE_10 = LIKE_8 | {"strong_typing": True, "stripped": True, "progress": True, "core_without_libraries": False}
LIKE_10 |= {"parser_parts": True}
LATE_10 = LIKE_10 | {"hardware": ["same_compute_capability", "ampere_plus"]}
LIKE_11 = LATE_10 | {"explicit_batch": False, "weak_typing": False, "native_int8": False, "external_kernels": False}
LIKE_11 |= {"profile_sharing": False}
NOT_RTX = {"dla", "timing_cache", "stripped", "version_compatible"}
RTX = LIKE_11 | {"name": "tensorrt_rtx", "ahead_of_time": True, "hardware": []} | dict.fromkeys(NOT_RTX, False)

LIKE_8_5 = {**LIKE_8, "hardware": [], "native_norm": False, "profile_sharing": False}
LIKE_8_5 |= dict.fromkeys(("optimization_level", "version_compatible"), False)
JETPACK_5 = "8.5.3.1"
"""Next to its 8.5.2, for Python 3.8 alone, in which all of this runs."""

GENERATIONS: dict[str, dict[str, Any]] = {
    JETPACK_5: LIKE_8_5,
    "8.6.1": LIKE_8,
    "10.3.0": LIKE_10,
    "10.16.1.11": LATE_10,
    "11.4.0.106": LIKE_11,
    "rtx-1.4.0.76": RTX | {"explicit_batch": True, "profile_sharing": True},
}


@functools.cache
def facts(generation: str) -> dict[str, Any]:
    """What a process with that generation's bindings says."""
    if generation == JETPACK_5:
        return _said([str(python38()), "-W", "error", str(CALLS), "tensorrt"], with_bindings())
    folder = ROOT / ".venv" / "bindings" / generation
    if not folder.is_dir():
        pytest.skip(f"TensorRT's bindings {generation} are not there; scripts/bindings gets them")
    paths = {"PYTHONPATH": f"{folder}:{ROOT}", "LD_LIBRARY_PATH": str(folder / "stubs")}
    module = "tensorrt_rtx" if "rtx" in generation else "tensorrt_bindings"
    return _said([sys.executable, "-W", "error", str(CALLS), module], os.environ | paths)


def _said(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "TensorRT saw an exception"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_it_can_do(generation: str) -> None:
    found = dict(facts(generation)["capability"])
    assert found.pop("version") == generation.removeprefix("rtx-")
    assert found == GENERATIONS[generation]


@pytest.mark.parametrize(
    ("generation", "by_nodes", "native"),
    [
        (JETPACK_5, ["EXPLICIT_BATCH"], ["EXPLICIT_BATCH"]),
        ("8.6.1", ["EXPLICIT_BATCH"], ["EXPLICIT_BATCH"]),
        ("10.3.0", ["EXPLICIT_BATCH", "STRONGLY_TYPED"], ["EXPLICIT_BATCH"]),
        ("10.16.1.11", ["EXPLICIT_BATCH", "STRONGLY_TYPED"], ["EXPLICIT_BATCH"]),
        ("11.4.0.106", ["STRONGLY_TYPED"], ["STRONGLY_TYPED"]),
        ("rtx-1.4.0.76", ["EXPLICIT_BATCH", "STRONGLY_TYPED"], ["EXPLICIT_BATCH", "STRONGLY_TYPED"]),
    ],
)
def test_networks_are_strongly_typed_unless_a_calibrator_chooses(
    generation: str, by_nodes: list[str], native: list[str]
) -> None:
    assert facts(generation)["flags"] == {"int8": by_nodes, "native": native}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_our_logger_is_one_of_its_own(generation: str) -> None:
    assert facts(generation)["logged"] == {"real": True, "error": "it broke", "warnings": ["it may break"]}


@pytest.mark.parametrize("generation", [name for name, found in GENERATIONS.items() if found["progress"]])
def test_our_progress_monitor_is_one_of_its_own(generation: str) -> None:
    found = facts(generation)["progressed"]
    assert found["real"]
    assert found["told"] == [["Building", 0, 2], ["Building", 1, 2], ["Building", 2, 2]]
    assert found["goes_on"] == [True, True, True], "whoever listens cannot end a build by an error"


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        (
            "8.6.1",
            "model.onnx: has FP16 scales, tensorrt 8.6.1 takes FP32 scales and puts the rest into FP16 by itse",
        ),
        ("10.3.0", "tensorrt: the builder does not start"),
        ("11.4.0.106", "tensorrt: the builder does not start"),
    ],
)
def test_fp16_scales_are_for_strongly_typed_networks(generation: str, words: str) -> None:
    assert facts(generation)["half scales"].startswith(words)


DOWN = "write it in opset 17 (`trtforge export --opset 17`, or [export] opset), or update TensorRT"


@pytest.mark.parametrize(
    ("generation", "model", "words"),
    [
        ("8.6.1", "ReduceMean 18", f"model.onnx: is in opset 18, tensorrt 8.6.1 reads up to 17; {DOWN}"),
        (
            "8.6.1",
            "ReduceMean 17",
            "model.onnx: node 'mean' reduces over axes that are an input, tensorrt 8.6.1 takes no notice of them; "
            + DOWN,
        ),
        ("8.6.1", "ReduceSum 17", "tensorrt: the builder does not start"),
        (JETPACK_5, "ReduceMean 18", f"model.onnx: is in opset 18, tensorrt 8.5.3.1 reads up to 17; {DOWN}"),
        (JETPACK_5, "ReduceSum 17", "tensorrt: the builder does not start"),
        ("10.3.0", "ReduceMean 18", "tensorrt: the builder does not start"),
        ("11.4.0.106", "ReduceMean 18", "tensorrt: the builder does not start"),
    ],
)
def test_what_its_parser_does_not_read_is_refused(generation: str, model: str, words: str) -> None:
    assert facts(generation)[model].startswith(words)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_our_profiler_is_one_of_its_own(generation: str) -> None:
    assert facts(generation)["profiled"] == {"real": True, "times_ms": {"conv": [0.5, 1.0], "copy": [0.5, 0.5]}}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_our_allocator_is_one_of_its_own(generation: str) -> None:
    found = dict(facts(generation)["allocated"])
    on_stream = found.pop("on a stream", None)
    assert on_stream == (None if generation.startswith("8") else [256, True])
    assert found == {
        "real": True,
        "apart": 256,
        "in use": 900,
        "nothing": [None, None, None],  # too much, no bytes, a size that would have to grow in place
        "given back": [True, False, True],  # the second time it was not ours any more; no address is no mistake
        "left": 0,
        "peak": 900,
        "freed": 2 if generation.startswith("8") else 3,
    }


@pytest.mark.parametrize("generation", [name for name in GENERATIONS if "rtx" not in name])
def test_a_runtime_that_does_not_start_is_one_sentence(generation: str) -> None:
    module = "tensorrt" if generation == JETPACK_5 else "tensorrt_bindings"
    assert facts(generation)["runtime"] == (
        f"engine.plan: {module} {generation} does not start (it gave no reason); its CUDA may be newer than "
        "the driver: check nvidia-smi, update the driver or take an older version"
    )
