"""Cross-layer equalization: the same function, with weights that are alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from calibration.analysis.sqnr import sqnr_db_of
from calibration.arrays import AnyArray
from calibration.histogram.histogram import histogram_from_values
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span
from calibration.weights.equalize import equalize_layers
from engines.backends import onnxruntime
from tests.calibration.graph.nets import answer_to, with_arrays

RANDOM = np.random.default_rng(6)
X = RANDOM.normal(size=(4, 16, 8, 8)).astype(np.float32)

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, first, bias)
    b = Relu (a)
    c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, depthwise)
    d = LeakyRelu (c)
    y = Conv (d, second)
}
"""


def chain() -> onnx.ModelProto:
    """A network whose channels differ by five orders of magnitude, and undo it."""
    first, depthwise, second = (RANDOM.normal(size=s) for s in ((16, 16, 3, 3), (16, 1, 3, 3), (16, 16, 1, 1)))
    bias, one, two = RANDOM.normal(size=16), np.geomspace(1e-2, 1e3, 16), np.geomspace(1e2, 1e-2, 16)
    arrays = {
        "first": first * one.reshape(-1, 1, 1, 1),
        "bias": bias * one,
        "depthwise": depthwise * (two / one).reshape(-1, 1, 1, 1),
        "second": second / two.reshape(1, -1, 1, 1),
    }
    return with_arrays(onnx.parser.parse_model(CHAIN), {name: a.astype(np.float32) for name, a in arrays.items()})


def int8_sqnr_db(model: onnx.ModelProto, exact: AnyArray, folder: Path) -> float:
    names = [name for node in model.graph.node for name in node.output]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
    onnx.save(watched, folder / "watched.onnx")
    with onnxruntime.load_simulation(folder / "watched.onnx", num_threads=1) as runner:
        values = {"x": X, **runner.infer({"x": X})}
    seen = {name: histogram_from_values(array, name) for name, array in values.items()}
    spans = {name: Span(each.amax, each.min, each.max) for name, each in seen.items()}
    quantized = qdq_from_onnx(model, spans, PlacementOptions("tensorrt")).model
    return sqnr_db_of(exact, answer_to(X, quantized, folder))


def test_the_function_stays_and_int8_loses_less(tmp_path: Path) -> None:
    model = chain()
    equalized, num_pairs = equalize_layers(model)
    assert num_pairs == 2
    exact = answer_to(X, model, tmp_path)
    assert sqnr_db_of(exact, answer_to(X, equalized, tmp_path)) > 100
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in equalized.graph.initializer}
    largest = np.abs(arrays["first"]).reshape(16, -1).max(axis=1)
    assert largest.max() / largest.min() < 30, "before it was a hundred thousand"
    assert int8_sqnr_db(equalized, exact, tmp_path) > int8_sqnr_db(model, exact, tmp_path) + 10


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("b = Relu (a)", "b = Sigmoid (a)"),  # f(s x) is not s f(x).
        ("b = Relu (a)", "b = Clip (a, low, high)"),
        ("c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, depthwise)", "e = Relu (b)\n c = Add (b, e)"),  # Read twice.
    ],
)
def test_what_is_no_pair_is_left_alone(old: str, new: str, tmp_path: Path) -> None:
    model = chain()
    text = CHAIN.replace(old, new)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    arrays |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    changed = with_arrays(onnx.parser.parse_model(text), arrays)
    equalized, num_pairs = equalize_layers(changed)
    assert num_pairs <= 1
    exact = answer_to(X, changed, tmp_path)
    assert sqnr_db_of(exact, answer_to(X, equalized, tmp_path)) > 100


def test_a_channel_of_zeros_stays(tmp_path: Path) -> None:
    model = chain()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    assert model.graph.initializer[0].name == "first"
    weight[3] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "first"))
    equalized, _ = equalize_layers(model)
    exact, answer = answer_to(X, model, tmp_path), answer_to(X, equalized, tmp_path)
    assert np.isfinite(answer).all()
    assert sqnr_db_of(exact, answer) > 100


def test_equal_channels_are_not_touched() -> None:
    model = chain()
    once, _ = equalize_layers(model)
    again, num_pairs = equalize_layers(once)
    assert num_pairs == 0
    assert again is once
