"""Channels that a depthwise convolution reads: scaled to be alike, the function stays to the bit."""

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
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span
from calibration.weights.channels import factors_of, largest_by_channel, scale_channels, tensors_to_scale
from engines.backends import onnxruntime
from tests.calibration.graph.nets import answer_to, with_arrays

RANDOM = np.random.default_rng(6)
X = RANDOM.normal(size=(4, 16, 8, 8)).astype(np.float32)

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y)
{
    a = Conv (x, first, bias)
    b = Relu (a)
    c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, depthwise, bias)
    d = HardSwish (c)
    e = Mul (times, d)
    f = Add (e, plus)
    g = Conv <group = 16, pads = [1, 1, 1, 1]> (f, deep)
    h = Div (g, plus)
    i = Conv <group = 16> (h, last)
    y = Conv (i, dense)
}
"""
UNEVEN = np.geomspace(1e-1, 1e1, 16).reshape(-1, 1, 1, 1)


def net(text: str = NET) -> onnx.ModelProto:
    """Channels between the convolutions differ by two orders of magnitude; each is undone where it is read."""
    arrays = {
        "first": RANDOM.normal(size=(16, 16, 1, 1)) * UNEVEN,
        "bias": RANDOM.normal(size=16) * UNEVEN.ravel(),
        "depthwise": RANDOM.normal(size=(16, 1, 3, 3)) / UNEVEN,
        "times": np.array(1.5),
        "plus": np.array(0.25),
        "deep": RANDOM.normal(size=(16, 1, 3, 3)) * UNEVEN[::-1],
        "last": RANDOM.normal(size=(16, 1, 1, 1)) / UNEVEN[::-1],
        "dense": RANDOM.normal(size=(16, 16, 1, 1)),
    }
    return with_arrays(onnx.parser.parse_model(text), {name: a.astype(np.float32) for name, a in arrays.items()})


def values_of(model: onnx.ModelProto, folder: Path) -> dict[str, AnyArray]:
    """All tensors that are computed."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name != "y"]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnx.save(watched, folder / "watched.onnx")
    with onnxruntime.load_simulation(folder / "watched.onnx", num_threads=1) as runner:
        return {"x": X, **runner.infer({"x": X})}


def scaled(model: onnx.ModelProto, folder: Path) -> tuple[onnx.ModelProto, int]:
    return scale_channels(model, largest_by_channel([values_of(model, folder)], tensors_to_scale(model)))


def int8_sqnr_db(model: onnx.ModelProto, exact: AnyArray, folder: Path, target: PlacementTarget) -> float:
    seen = {name: histogram_from_values(array, name) for name, array in values_of(model, folder).items()}
    spans = {name: Span(each.amax, each.min, each.max) for name, each in seen.items()}
    quantized = qdq_from_onnx(model, spans, PlacementOptions(target, arithmetic="u8s8")).model
    return sqnr_db_of(exact, answer_to(X, quantized, folder))


def test_the_function_stays_to_the_bit(tmp_path: Path) -> None:
    model = net()
    assert tensors_to_scale(model) == ["b", "f", "h"]
    alike, num_tensors = scaled(model, tmp_path)
    assert num_tensors == 3
    exact = answer_to(X, model, tmp_path)
    np.testing.assert_array_equal(answer_to(X, alike, tmp_path), exact)
    before, after = (largest_by_channel([values_of(each, tmp_path)], ["b", "f", "h"]) for each in (model, alike))
    for name in ("b", "f", "h"):
        np.testing.assert_array_equal(after[name], before[name] * factors_of(before[name]))
        assert np.median(after[name]) > after[name].max() / 2


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_int8_loses_less(target: PlacementTarget, tmp_path: Path) -> None:
    model = net(NET.replace("h = Div (g, plus)", "h = Relu (g)"))
    alike, _ = scaled(model, tmp_path)
    exact = answer_to(X, model, tmp_path)
    assert int8_sqnr_db(alike, exact, tmp_path, target) > int8_sqnr_db(model, exact, tmp_path, target) + 6


def test_it_is_done_once() -> None:
    largest = np.geomspace(1, 100, 16)
    once, num_tensors = scale_channels(net(), {"b": largest})
    assert num_tensors == 1
    again, num_tensors = scale_channels(once, {"b": largest * factors_of(largest)})
    assert num_tensors == 0
    assert again is once


def test_a_constant_that_others_read_is_copied(tmp_path: Path) -> None:
    model = net()
    alike, _ = scaled(model, tmp_path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in alike.graph.initializer}
    second = next(node for node in alike.graph.node if node.output[0] == "c")
    np.testing.assert_array_equal(arrays[second.input[2]], net_bias(model))


def net_bias(model: onnx.ModelProto) -> AnyArray:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "bias")


@pytest.mark.parametrize(
    ("old", "new", "left"),
    [
        ("b = Relu (a)", "b = Sigmoid (a)", ["f", "h"]),  # f(s x) is not s f(x).
        ("b = Relu (a)", "b = LeakyRelu (a)", ["b", "f", "h"]),
        ("e = Mul (times, d)", "e = Mul (d, c)", ["b", "h"]),  # No constant.
        ("f = Add (e, plus)", "f = Add (e, e)", ["b", "h"]),
        ("h = Div (g, plus)", "h = Div (plus, g)", ["b", "f"]),  # 1 / (s x) is not s / x.
        ("h = Div (g, plus)", "h = Add (g, b)", ["f"]),  # Read twice.
        ("<group = 16> (h, last)", "(h, dense)", ["b", "f"]),  # Not depthwise.
    ],
)
def test_what_cannot_take_a_factor_stays(old: str, new: str, left: list[str], tmp_path: Path) -> None:
    assert NET.count(old) == 1
    model = net(NET.replace(old, new))
    assert tensors_to_scale(model) == left
    alike, _ = scaled(model, tmp_path)
    np.testing.assert_array_equal(answer_to(X, alike, tmp_path), answer_to(X, model, tmp_path))


def test_factors_are_powers_of_two_of_what_is_there() -> None:
    largest = np.array([8.0, 3.9, 4.0, 1e-9, 0.0])
    np.testing.assert_array_equal(factors_of(largest), [1, 2, 2, 256, 1])
    np.testing.assert_array_equal(factors_of(np.array([1.0, np.inf])), [1, 1])
    np.testing.assert_array_equal(factors_of(np.zeros(2)), [1, 1])


def test_the_largest_is_that_of_all_samples() -> None:
    samples = [{"a": np.array([[[1.0, -3.0]], [[2.0, 0.0]]]).reshape(1, 2, 2)}, {"a": np.full((1, 2, 2), 2.5)}]
    np.testing.assert_array_equal(largest_by_channel(samples, ["a"])["a"], [3.0, 2.5])
