"""What TensorRT and TensorRT-RTX share in building: flags by generation, and the tail of the log.

The stand-ins below are generations' enumerations, no library: that real engines come out is shown by
``test_tensorrt_rtx_backend.py``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engines import nvinfer
from engines.contract import BuildOptions, Precision
from engines.errors import Unavailable

TRT_8 = SimpleNamespace(
    NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
    BuilderFlag=SimpleNamespace(FP16="FP16", INT8="INT8", TF32="TF32"),
    MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
)
TRT_10 = SimpleNamespace(
    NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1),
    BuilderFlag=SimpleNamespace(FP16="FP16", INT8="INT8", TF32="TF32"),
)
TRT_11 = SimpleNamespace(
    NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=0), BuilderFlag=SimpleNamespace(TF32="TF32")
)


class Config:
    """Writes down what it is told; TF32 is on, as in TensorRT."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.pools: dict[str, int] = {}

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def get_flag(self, flag: str) -> bool:
        return flag == "TF32"

    def set_memory_pool_limit(self, pool: str, num_bytes: int) -> None:
        self.pools[pool] = num_bytes


@pytest.mark.parametrize(("trt", "flags"), [(TRT_8, 0b01), (TRT_10, 0b11), (TRT_11, 0b01)])
def test_network_flags(trt: Any, flags: int) -> None:
    assert nvinfer._network_flags(trt) == flags


@pytest.mark.parametrize(
    ("trt", "precision", "flags"),
    [
        (TRT_8, "fp32", []),
        (TRT_8, "fp16", ["FP16"]),
        (TRT_8, "int8", ["FP16", "INT8"]),
        (TRT_10, "fp16", []),
        (TRT_10, "int8", []),
        (TRT_11, "int8", []),
    ],
)
def test_precision_flags(trt: Any, precision: Precision, flags: list[str]) -> None:
    config = Config()
    notes = nvinfer._set_precision(trt, config, BuildOptions(precision))
    assert config.flags == flags
    assert any(note.startswith("Weakly typed") for note in notes) == bool(flags)
    assert any(note.startswith("TF32 is on") for note in notes) == (precision != "fp16")


def test_optimization_level_where_there_is_none() -> None:
    family = nvinfer.Family("tensorrt", TRT_8, {}, lambda config, options: None, lambda plan, found: (0, ()))
    config = Config()
    nvinfer._configure(family, config, BuildOptions(workspace_mib=64))
    assert config.pools == {"WORKSPACE": 64 * 1024 * 1024}
    with pytest.raises(Unavailable, match=r"optimization level 5 is asked for, this version has none; leave it at 3"):
        nvinfer._configure(family, config, BuildOptions(optimization_level=5))


def test_the_tail_of_the_log() -> None:
    tail = nvinfer.ErrorTail()
    assert tail.text() == "it gave no reason"
    tail.add("first")
    tail.add("second\n  line")
    tail.add("[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)")
    tail.add("third")
    assert tail.text() == "second line; third"
    tail.clear()
    tail.add("catchCudaError: error 35")
    assert tail.text() == "catchCudaError: error 35"


def test_parser_errors_of_old_and_new_generations() -> None:
    old = SimpleNamespace(desc=lambda: "not\n supported", node=lambda: 4)
    new = SimpleNamespace(
        desc=lambda: "not supported", node=lambda: 4, node_name=lambda: "c", node_operator=lambda: "Conv"
    )
    cut = SimpleNamespace(desc=lambda: "cut short", node=lambda: -1, node_name=lambda: "", node_operator=lambda: "")
    told = [
        nvinfer._parser_error(SimpleNamespace(num_errors=1, get_error=lambda index, e=e: e), nvinfer.ErrorTail())
        for e in (old, new, cut)
    ]
    assert told == ["node 4: not supported", "node 'c', Conv: not supported", "cut short"]
