"""What a format does to numbers, written into a model: bit for bit where that can be said, and by size elsewhere."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from calibration.analysis.rounding import (
    FP16,
    FP32,
    TF32,
    Format,
    Rounded,
    integer_feed,
    placing_for,
    rounded_from_onnx,
    steps_feed,
    unrounded_feed,
)
from calibration.precision.placement import PlacementOptions
from calibration.ranges.span import Span
from engines.backends import reference

Floats = npt.NDArray[np.float32]

RELU = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }'

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16, 6, 6] x) => (float[N, 16, 6, 6] features, float[N, 4] scores) {
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    s = Add (c2, r1)
    features = Relu (s)
    pooled = GlobalAveragePool (features)
    flat = Flatten (pooled)
    product = MatMul (flat, dense)
    scores = Add (product, bias)
}"""


def network() -> onnx.ModelProto:
    """A residual block and a classifier, its weights drawn once and for all."""
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(NETWORK)
    for name, shape in {"w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "dense": (16, 4), "bias": (4,)}.items():
        values = (random.standard_normal(shape) * 0.1).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def images(num: int = 8) -> Floats:
    return np.random.default_rng(1).standard_normal((num, 16, 6, 6)).astype(np.float32)


SPANS = {name: Span(4.0, -4.0, 4.0) for name in ("x", "c1", "c2", "s", "product", "scores", "product_gemm")}
SPANS |= {name: Span(4.0, 0.0, 4.0) for name in ("r1", "features", "pooled", "flat")}


def answers(model: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Floats]:
    session = ReferenceEvaluator(model)
    found: Any = session.run(None, feed)
    return dict(zip(session.output_names, found))


def noise(rounded: Rounded, x: Floats, name: str = "scores", seed: int = 0) -> float:
    """Noise to signal, dB, of an output with the roundings drawn by the seed."""
    exact = answers(network(), {"x": x})[name]
    found = answers(rounded.model, {"x": x, **rounded.draw(np.random.default_rng(seed))})[name]
    return float(10 * np.log10(np.square(found - exact).sum() / np.square(exact).sum()))


def test_eleven_bits_are_those_of_fp16() -> None:
    rounded = rounded_from_onnx(onnx.parser.parse_model(RELU), FP16, None)
    x = (np.random.default_rng(2).standard_normal((64, 4)) * 100).astype(np.float32)
    found = answers(rounded.model, {"x": x, **dict.fromkeys(rounded.phases, np.float32(1))})["y"]
    assert np.array_equal(found, np.maximum(x, 0).astype(np.float16).astype(np.float32))


def test_what_a_format_holds_exactly_gets_no_noise_whatever_the_phase() -> None:
    rounded = rounded_from_onnx(onnx.parser.parse_model(RELU), FP16, None)
    zeros = np.zeros((1, 4), np.float32)
    assert not answers(rounded.model, {"x": zeros, **rounded.draw(np.random.default_rng(0))})["y"].any()


def test_what_gives_back_values_does_not_round_them_again() -> None:
    rounded = rounded_from_onnx(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
            { a = Mul(x, x)  b = Relu(a)  c = Identity(b)  y = Clip(b)  d = Concat<axis = 0>(b, x)  z = Mul(b, x) }"""
        ),
        FP16,
        None,
    )
    assert rounded.phases == ("x_phase", "a_phase", "c_phase", "z_phase")
    x = np.random.default_rng(2).standard_normal((64, 4)).astype(np.float32)
    values = answers(rounded.model, {"x": x, **rounded.draw(np.random.default_rng(0))})
    squares = [node.input[0] for node in rounded.model.graph.node if node.op_type == "Relu"]
    assert squares == [rounded.cut["a"]]
    assert np.array_equal(values["y"], values["y"].clip(0))


def test_the_largest_numbers_stay_numbers() -> None:
    rounded = rounded_from_onnx(onnx.parser.parse_model(RELU), FP16, None)
    x = np.full((1, 4), np.finfo(np.float32).max, np.float32)
    with np.errstate(over="ignore"):
        found = answers(rounded.model, {"x": x, **rounded.draw(np.random.default_rng(0))})["y"]
    assert np.isfinite(found).all()
    assert (found > 1e29).all()


def test_int8_is_rounded_and_clipped_in_the_steps_of_its_range() -> None:
    options = PlacementOptions(target="tensorrt")
    rounded = rounded_from_onnx(network(), FP32, placing_for(SPANS, options))
    model = onnx.ModelProto()
    model.CopyFrom(rounded.model)
    shown = rounded.placed["x"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(shown, onnx.TensorProto.FLOAT, None))
    x = images()
    x[0, 0, 0] = [-9.0, 9.0, 0.0, 4.0, -4.0, 1.0]
    feed = {name: np.float32(1) for name in rounded.phases}
    for prefix, how in rounded.steps.items():
        feed |= {f"{prefix}_step": np.float32(how.scale)}
        feed |= {f"{prefix}_low": np.float32(-128), f"{prefix}_high": np.float32(127)}
    found = answers(model, {"x": x, **feed})[shown]
    step = np.float32(4 / 127)
    assert np.array_equal(found, np.clip(np.rint(x / step), -128, 127).astype(np.float32) * step)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_integers_give_what_the_arithmetic_gives_to_the_bit(target: Any, tmp_path: Path) -> None:
    placing = placing_for(SPANS, PlacementOptions(target=target))
    arithmetic = rounded_from_onnx(network(), None, placing)
    integers = rounded_from_onnx(network(), None, placing, inputs="integers")
    assert {node.op_type for node in integers.model.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    x = 4 * images()
    expected = answers(arithmetic.model, {"x": x, **steps_feed(arithmetic.steps, None)})
    onnx.save(integers.model, tmp_path / "model.onnx")
    with reference.load(tmp_path / "model.onnx", num_threads=1) as runner:
        for name, array in runner.infer({"x": x, **integer_feed(integers.steps)}).items():
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_each_draw_is_another_sound_engine(target: Any) -> None:
    rounded = rounded_from_onnx(network(), FP32, placing_for(SPANS, PlacementOptions(target=target)))
    first, again, other = (rounded.draw(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first.keys() == {value.name for value in rounded.model.graph.input} - {"x"}
    assert all(first[name] != other[name] for name in first if name.endswith(("_step", "_phase")))
    for prefix, how in rounded.steps.items():
        step, low, high = (float(other[f"{prefix}_{end}"]) for end in ("step", "low", "high"))
        assert 2**-0.25 <= step / how.scale <= 2**0.25
        limits = np.iinfo(how.dtype)
        assert step * low == pytest.approx((limits.min - how.zero_point) * how.scale, abs=step)
        assert step * high == pytest.approx((limits.max - how.zero_point) * how.scale, abs=step)
    apart = {round(noise(rounded, images(), seed=seed), 3) for seed in range(4)}
    assert len(apart) == 4
    assert max(apart) - min(apart) < 6


def test_the_models_own_names_stay() -> None:
    rounded = rounded_from_onnx(network(), FP16, placing_for(SPANS, PlacementOptions(target="onnxruntime")))
    assert [value.name for value in rounded.model.graph.output] == ["features", "scores"]
    assert rounded.model.graph.input[0].name == "x"
    assert set(rounded.exact) >= {"x", "c1", "r1", "features", "scores"}


def test_an_input_that_is_given_out_keeps_its_name() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] x, float[N, 4] y) { y = Relu (x) }'
    )
    rounded = rounded_from_onnx(model, FP16, None)
    assert rounded.model.graph.input[0].name == "x"
    assert [value.name for value in rounded.model.graph.output] == ["x", "y"]


def test_the_formats_are_as_coarse_as_they_should_be() -> None:
    """From fine to coarse, and none by less than what one bit is."""
    int8 = rounded_from_onnx(network(), FP32, placing_for(SPANS, PlacementOptions()))
    formats = [rounded_from_onnx(network(), form, None) for form in (FP32, TF32, FP16)]
    x = images()
    found = [noise(rounded, x) for rounded in (*formats, int8)]
    assert all(before + 6 < after for before, after in pairwise(found)), found


def test_one_bit_is_six_db() -> None:
    x = images(32)
    found = [noise(rounded_from_onnx(network(), Format(bits, 24), None), x) for bits in (9, 12)]
    assert found[0] - found[1] == pytest.approx(18, abs=4)


def test_noise_of_rounding_is_a_twelfth_of_the_step_squared() -> None:
    """Widrow and Kollár: the input alone is rounded, which the first convolution hands on."""
    model = network()
    del model.graph.node[1:]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("c1", onnx.TensorProto.FLOAT, None))
    del model.graph.output[1]
    rounded = rounded_from_onnx(model, FP32, placing_for(SPANS, PlacementOptions()))
    x = images(32)
    exact = answers(model, {"x": x})["c1"]
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    errors = []
    for seed in range(8):
        feed = rounded.draw(np.random.default_rng(seed))
        (step,) = (float(value) for name, value in feed.items() if name.endswith("_step"))
        inner = (answers(rounded.model, {"x": x, **feed})["c1"] - exact)[:, :, 1:-1, 1:-1]
        of_weight = (0.1 * 3 / 127) ** 2 / 12 * weight[0].size  # Of unit-variance input, roughly: a tenth of the rest.
        expected = step**2 / 12 * np.square(weight).sum() / 16 + of_weight
        errors.append(float(np.square(inner).mean() / expected))
    assert np.mean(errors) == pytest.approx(1, abs=0.25)


def test_the_rounding_of_a_weight_can_be_switched_off() -> None:
    placing = placing_for(SPANS, PlacementOptions(target="tensorrt"))
    switched, fixed = (rounded_from_onnx(network(), None, placing, inputs=each) for each in ("switched", "drawn"))
    assert not fixed.switches
    off = unrounded_feed(switched.steps)
    exact = {name: np.float32(1) for name in switched.switches.values()}
    rounded = {name: np.float32(0) for name in switched.switches.values()}
    expected, x = answers(network(), {"x": images()}), images()
    for name, value in answers(switched.model, {"x": x, **off, **exact}).items():
        assert np.allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    by_switch, for_good = answers(switched.model, {"x": x, **off, **rounded}), answers(fixed.model, {"x": x, **off})
    assert all(np.array_equal(by_switch[name], for_good[name]) for name in expected)
    assert not np.allclose(by_switch["scores"], expected["scores"], rtol=1e-5, atol=1e-6)


def test_what_follows_from_shapes_is_not_cut() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 1, H, W] x) => (float[N, 1, H, W] y)
    <int64 axis = {3}, float from = {0}, float by = {1}, float half = {0.5}> {
        sizes = Shape (x)
        size = Gather (sizes, axis)
        wide = Cast <to = 1> (size)
        grid = Range (from, wide, by)
        anchors = Add (grid, half)
        y = Add (x, anchors)
    }""")
    rounded = rounded_from_onnx(model, FP16, None)
    assert set(rounded.exact) == {"x", "wide", "grid", "anchors", "y"}
    assert {name for name, cut in rounded.cut.items() if cut == name} >= {"wide", "grid", "anchors"}
    assert len(rounded.phases) == 2
    x = np.zeros((1, 1, 20, 20), np.float32)
    runner = ReferenceEvaluator(rounded.model)
    for seed in range(20):
        outputs: Any = runner.run(["y"], {"x": x, **rounded.draw(np.random.default_rng(seed))})
        y = outputs[0]
        np.testing.assert_allclose(y[0, 0, 0], np.arange(20.0) + 0.5, rtol=2.0**-10)
