"""A convolution of few channels is computed over groups of columns: other shapes, the same integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx.numpy_helper import from_array, to_array

from calibration.analysis.bisection import counterparts
from calibration.analysis.scale_check import scale_mismatches
from calibration.graph.editing import closed, opened
from calibration.precision.first_convolution import widen_convolutions
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span

Array = np.ndarray[Any, Any]


def written(
    attributes: str, size: int = 3, shape: tuple[int, int, int] = (3, 8, 16), changes: str = ""
) -> onnx.ModelProto:
    """A quantized convolution of 5 channels out; weights that two products of fit 16 bits, as on CPUs without VNNI."""
    num_in, height, width = shape
    columns = "W" if changes == "dynamic" else str(width)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,{num_in},{height},{columns}] x) => (float[N,5,A,B] y)
        <float s = {{0.02}}, uint8 z = {{100}}, float t = {{0.3}}, uint8 o = {{90}}, float low = {{0.0}}> {{
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear <axis = 0> (w, ws, wz) bd = DequantizeLinear <axis = 0> (b, bs, bz)
        c = Conv <{attributes}> (xd, wd, bd) {"r = Clip (c, low)" if changes == "clip" else "r = Relu (c)"}
        rq = QuantizeLinear (r, t, o) rd = DequantizeLinear (rq, t, o) y = Neg (rd) }}"""
    )
    if changes == "float":
        for node in model.graph.node:
            if node.output[0] == "y":
                node.input[0] = "r"
    random = np.random.default_rng(0)
    scales = random.uniform(0.01, 0.03, 5).astype(np.float32)
    arrays: dict[str, Array] = {
        "w": random.integers(-60, 61, (5, num_in, size, size)).astype(np.int8),
        "ws": scales,
        "wz": np.zeros(5, np.int8),
        "b": random.integers(-9000, 9000, 5).astype(np.int32),
        "bs": scales * np.float32(0.02),
        "bz": np.zeros(5, np.int32),
    }
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items())
    return model


def widened(model: onnx.ModelProto) -> onnx.ModelProto | None:
    open_model = opened(model)
    return closed(open_model) if widen_convolutions(open_model.graph) else None


def answer(model: onnx.ModelProto, shape: tuple[int, int, int] = (3, 8, 16)) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).uniform(-2, 3.1, (2, *shape)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("attributes", "size", "shape"),
    [
        ("pads = [0, 0, 1, 1], strides = [2, 2]", 3, (3, 8, 16)),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", 3, (3, 8, 16)),
        ("pads = [1, 1, 0, 0], strides = [1, 2]", 3, (3, 9, 4)),
        ("pads = [3, 3, 3, 3], strides = [2, 2]", 7, (3, 8, 16)),
        ("pads = [2, 2, 3, 3], strides = [2, 2]", 7, (3, 8, 16)),
        ("pads = [1, 1, 2, 2], strides = [2, 2]", 5, (3, 8, 12)),
        ("strides = [4, 4]", 4, (3, 8, 16)),
        ("strides = [8, 8]", 8, (3, 16, 16)),
        ("pads = [1, 1, 1, 1], strides = [4, 4]", 6, (3, 8, 16)),
        ("pads = [0, 0, 1, 1], strides = [2, 2]", 3, (1, 8, 16)),
        ("pads = [0, 0, 1, 1], strides = [2, 2]", 3, (2, 8, 16)),
    ],
)
def test_the_same_bits_from_a_multiple_of_four_channels(
    attributes: str, size: int, shape: tuple[int, int, int]
) -> None:
    model = written(attributes, size, shape)
    made = widened(model)
    assert made is not None
    onnx.checker.check_model(made, full_check=True)
    (conv,) = (node for node in made.graph.node if node.op_type == "Conv")
    arrays = {tensor.name: to_array(tensor) for tensor in made.graph.initializer}
    producers = {node.output[0]: node for node in made.graph.node}
    assert arrays[producers[conv.input[1]].input[0]].shape[1] % 4 == 0
    expected = answer(model, shape)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(answer(made, shape), expected)


def test_pictures_with_their_channels_last_are_read_as_they_come() -> None:
    model = written("pads = [0, 0, 1, 1], strides = [2, 2]")
    turned = onnx.parser.parse_graph("g (float[N,8,16,3] x) => () { xt = Transpose <perm = [0, 3, 1, 2]> (x) }")
    model.graph.input[0].CopyFrom(turned.input[0])
    model.graph.node[0].input[0] = "xt"
    model.graph.node.insert(0, turned.node[0])
    made = widened(model)
    assert made is not None
    assert made.graph.node[0].op_type == "QuantizeLinear"
    assert made.graph.node[0].input[0] == "x"
    np.testing.assert_array_equal(answer(made, (8, 16, 3)), answer(model, (8, 16, 3)))


@pytest.mark.parametrize(
    ("attributes", "size", "shape", "changes"),
    [
        ("pads = [1, 1, 1, 1]", 3, (3, 8, 16), ""),  # Four times the multiplications.
        ("pads = [0, 0, 1, 1], strides = [2, 2]", 3, (3, 8, 14), ""),
        ("pads = [0, 0, 1, 1], strides = [2, 2]", 3, (3, 8, 15), ""),
        ("strides = [2, 2]", 3, (3, 8, 16), ""),  # One column fewer.
        ("pads = [0, 0, 1, 1], strides = [2, 2]", 3, (4, 8, 16), ""),
        ("pads = [1, 1, 2, 2], strides = [2, 2], dilations = [2, 2]", 3, (3, 8, 16), ""),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', 3, (3, 8, 16), ""),
        ("pads = [0, 0, 1, 1], strides = [2, 3]", 3, (3, 8, 12), ""),
        ("pads = [0, 0, 1, 1], strides = [2, 2]", 3, (3, 8, 16), "dynamic"),
        ("pads = [0, 0, 1, 1], strides = [2, 2]", 3, (3, 8, 16), "float"),
    ],
)
def test_what_does_not_fit_stays(attributes: str, size: int, shape: tuple[int, int, int], changes: str) -> None:
    assert widened(written(attributes, size, shape, changes)) is None


def test_a_clip_goes_along() -> None:
    model = written("pads = [0, 0, 1, 1], strides = [2, 2]", changes="clip")
    made = widened(model)
    assert made is not None
    np.testing.assert_array_equal(answer(made), answer(model))


NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,8,16] x) => (float[N,4,4,8] y, float[N,4,4,8] z) {
    c = Conv <pads = [0, 0, 1, 1], strides = [2, 2]> (x, w) r = Relu (c)
    y = Conv (r, v) z = Conv (r, v)
}"""
SPANS = {"x": Span(1.0, -1.0, 1.0), "r": Span(1.0, 0.0, 1.0), "y": Span(3.0, -3.0, 3.0), "z": Span(3.0, -3.0, 3.0)}
SPANS["c"] = Span(1.0, -1.0, 1.0)


def network() -> onnx.ModelProto:
    model = onnx.parser.parse_model(NETWORK)
    random = np.random.default_rng(2)
    for name, shape in {"w": (4, 3, 3, 3), "v": (4, 4, 1, 1)}.items():
        model.graph.initializer.append(from_array(random.normal(size=shape).astype(np.float32) / 5, name))
    return model


def shape_of_first(model: onnx.ModelProto) -> list[int]:
    """Of the weight that has more than one position."""
    (shape,) = (list(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[2] > 1)
    return shape


def test_only_for_onnxruntime_and_where_products_are_added_in_32_bits() -> None:
    shapes = {
        options: shape_of_first(qdq_from_onnx(network(), SPANS, options).model)
        for options in (
            PlacementOptions("onnxruntime", arithmetic="u8s8"),
            PlacementOptions("onnxruntime", arithmetic="u8s7"),
            PlacementOptions("tensorrt"),
        )
    }
    assert list(shapes.values()) == [[8, 12, 3, 2], [4, 3, 3, 3], [4, 3, 3, 3]]


def test_who_looks_for_faults_knows_what_has_the_old_shape_alone() -> None:
    made = qdq_from_onnx(network(), SPANS, PlacementOptions("onnxruntime", arithmetic="u8s8")).model
    assert list(scale_mismatches(made, SPANS)) == []
    matched = counterparts(network(), made)
    assert matched["r"] == "r"
    assert matched["y"] == "y"
    assert "c" not in matched
    (known,) = (value for value in onnx.shape_inference.infer_shapes(made).graph.value_info if value.name == "r")
    assert [dimension.dim_value for dimension in known.type.tensor_type.shape.dim[1:]] == [4, 4, 8]
