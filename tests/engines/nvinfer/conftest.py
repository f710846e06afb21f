"""A pretended GPU and library for the tests of TensorRT's runner."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.engines.nvinfer.pretended import PretendedContext, PretendedGpu, pretended_trt


@pytest.fixture
def gpu() -> PretendedGpu:
    return PretendedGpu()


@pytest.fixture
def trt(gpu: PretendedGpu) -> ModuleType:
    return pretended_trt(gpu, lambda: PretendedContext(gpu))
