"""Profiles on real networks of TensorRT for RTX: what a calibrator would run in, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx.parser
import pytest

from engines.backends import tensorrt_rtx
from engines.contract import Array, BuildOptions, GivenBatches, GivenScales, ShapeRange
from engines.errors import EngineError
from engines.nvinfer.builder import logger
from engines.nvinfer.shape_profiles import calibration_profile, calibration_shapes

if tensorrt_rtx.why_not_build():
    pytest.skip(tensorrt_rtx.why_not_build(), allow_module_level=True)

TWO = """<ir_version: 8, opset_import: ["" : 17]>
two (float[N, 3, H, 8] image, float[2, 4] size) => (float[N, 3, H, 8] y) {
  s = ReduceSum <keepdims = 0> (size)  y = Mul (image, s)
}"""
SHAPES = {"image": ShapeRange((1, 3, 4, 8), (8, 3, 16, 8), (32, 3, 64, 8))}


@pytest.fixture
def parsed() -> Any:
    """Builder and network; what owns them lives as long."""
    import tensorrt_rtx as trt

    log = logger(trt)[0]
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(onnx.parser.parse_model(TWO).SerializeToString()), parser.get_error(0).desc()
    yield builder, network
    del parser


def given(batch_size: int) -> GivenBatches:
    def none() -> list[dict[str, Array]]:
        return []

    return GivenBatches(none, batch_size, Path("a.cache"))


def test_scales_that_are_given_are_for_the_usual_shapes(parsed: Any) -> None:
    builder, network = parsed
    shapes = calibration_shapes(network, BuildOptions("int8", SHAPES, native=GivenScales(b"")))
    assert shapes == {"image": (8, 3, 16, 8), "size": (2, 4)}
    profile = calibration_profile(builder, network, shapes)
    assert [tuple(shape) for shape in profile.get_shape("image")] == [(8, 3, 16, 8)] * 3


def test_samples_are_taken_in_batches_of_their_own_size(parsed: Any) -> None:
    builder, network = parsed
    shapes = calibration_shapes(network, BuildOptions("int8", SHAPES, native=given(2)))
    assert shapes == {"image": (2, 3, 16, 8), "size": (2, 4)}
    assert tuple(calibration_profile(builder, network, shapes).get_shape("image")[1]) == (2, 3, 16, 8)


def test_batches_of_another_size_than_an_input_has_are_refused(parsed: Any) -> None:
    _, network = parsed
    words = r"^input 'size' is \(2, 4\), calibration batches have 8 samples; set native_batch_size = 2$"
    with pytest.raises(EngineError, match=words):
        calibration_shapes(network, BuildOptions("int8", SHAPES, native=given(8)))
