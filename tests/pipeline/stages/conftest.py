"""What the tests of the stages share: a network, its ranges, and new folders to write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifact import OnnxModel, Ranges
from pipeline.stages.calibrate import Calibrate
from tests.pipeline.stages.networks import Out, samples_for, save

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 6, 6] image) => (float[N, 3] scores, float[N, 16] pooled_flat)
<float[16, 16, 3, 3] kernel, float[16, 3] dense>
{
    [conv] features = Conv <pads = [1, 1, 1, 1]> (image, kernel)
    [relu] active = Relu (features)
    [pool] pooled = GlobalAveragePool (active)
    [flat] pooled_flat = Flatten (pooled)
    [dense] scores = MatMul (pooled_flat, dense)
}
"""
"""Two outputs, the batch open, a convolution and a matrix product to quantize."""


@pytest.fixture
def net(tmp_path: Path) -> OnnxModel:
    return save(NET, tmp_path / "net.onnx", kernel=(16, 16, 3, 3), dense=(16, 3))


@pytest.fixture
def out(tmp_path: Path) -> Callable[[], Path]:
    """A new, empty folder at each call, as the store hands one to a stage."""
    numbers = iter(range(100))

    def make() -> Path:
        folder = tmp_path / f"out{next(numbers)}"
        folder.mkdir()
        return folder

    return make


@pytest.fixture
def ranges(net: OnnxModel, out: Out) -> Ranges:
    return Calibrate(method="minmax")(out(), net, samples_for(net))
