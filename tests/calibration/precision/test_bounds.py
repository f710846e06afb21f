"""What follows about tensors that nobody watched: never wrong, and enough for common networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from calibration.graph.editing import opened
from calibration.graph.watched_outputs import watch_tensors, watchable
from calibration.precision.bounds import implied_spans
from calibration.ranges.span import Span

HUGE, TINY = 32752.0, 2.0**-14


def model_of(body: str, weights: dict[str, npt.NDArray[np.float32]], shape: str = "N,4,6,6") -> onnx.ModelProto:
    """A model from x to y."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[?] y) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def seen(model: onnx.ModelProto, x: npt.NDArray[np.float32]) -> dict[str, Span]:
    """The exact span of every tensor, by onnx's own evaluator."""
    watched = watch_tensors(model, watchable(model))
    session = ReferenceEvaluator(watched)
    with np.errstate(over="ignore", invalid="ignore"):  # onnx's Sigmoid.
        found: Any = session.run(None, {"x": x})
    values: dict[str, npt.NDArray[np.float32]] = dict(zip(session.output_names, found)) | {"x": x}
    return {
        name: Span(float(np.abs(value).max()), float(value.min()), float(value.max())) for name, value in values.items()
    }


def implied(model: onnx.ModelProto, spans: dict[str, Span], largest: float = HUGE, smallest: float = TINY) -> list[str]:
    return sorted(implied_spans(opened(model).graph, spans, largest, smallest))


BLOCKS = {
    "relu": "h = Conv <pads = [1, 1, 1, 1]> (x, w, b)  y = Relu (h)",
    "relu6": "h = Conv <pads = [1, 1, 1, 1]> (x, w, b)  y = Clip (h, zero, six)",
    "swish": "h = Conv <pads = [1, 1, 1, 1]> (x, w, b)  s = Sigmoid (h)  y = Mul (h, s)",
    "residual": "h = Conv <pads = [1, 1, 1, 1]> (x, w, b)  s = Add (h, x)  y = Relu (s)",
    "pool": "h = Conv <pads = [1, 1, 1, 1]> (x, w, b)  p = Pad (h, pads)  y = MaxPool <kernel_shape = [2, 2]> (p)",
    "transposed": "h = ConvTranspose (x, w, b)  y = Relu (h)",
    "average": "h = Conv (x, w, b)  y = AveragePool <kernel_shape = [2, 2]> (h)",
    "softmax": "h = Mul (x, x)  y = Softmax <axis = 1> (h)",
    "shared": "h = Sub (x, six)  r = Relu (h)  c = Concat <axis = 1> (h, r)  y = Tanh (c)",
    "moved": "h = Conv (x, w, b)  t = Transpose <perm = [0, 2, 3, 1]> (h)  f = Flatten (t)  y = Relu (f)",
}


def weights_of(seed: int, scale: float) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return {
        "w": (random.standard_normal((4, 4, 3, 3)) * scale).astype(np.float32),
        "b": random.standard_normal(4).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "six": np.full((), 6.0, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }


@settings(max_examples=80)
@given(
    block=st.sampled_from(sorted(BLOCKS)),
    seed=st.integers(0, 1000),
    log_scale=st.integers(-24, 14),
    kept=st.sets(st.sampled_from(["h", "s", "r", "c", "t", "f", "p", "y"])),
)
def test_what_follows_is_true(block: str, seed: int, log_scale: int, kept: set[str]) -> None:
    model = model_of(BLOCKS[block], weights_of(seed, 2.0**log_scale))
    x = (np.random.default_rng(seed).standard_normal((3, 4, 6, 6)) * 2.0 ** (log_scale / 2)).astype(np.float32)
    truth = seen(model, x)
    spans = {name: span for name, span in truth.items() if name == "x" or name in kept}
    for name, span in implied_spans(opened(model).graph, spans, HUGE, TINY).items():
        assert name not in spans
        assert TINY <= truth[name].amax <= span.amax <= HUGE
        assert span.min <= truth[name].min
        assert truth[name].max <= span.max


@pytest.mark.parametrize(
    ("block", "watched", "follows"),
    [
        ("relu", ["x", "y"], ["h"]),
        ("relu6", ["x", "y"], ["h"]),
        ("swish", ["x", "y"], ["h", "s"]),
        ("residual", ["x", "y"], ["h", "s"]),
        ("pool", ["x", "y"], ["h", "p"]),
        ("transposed", ["x", "y"], ["h"]),
        ("moved", ["x", "y"], ["f", "h", "t"]),
    ],
)
def test_what_lies_within_common_blocks_follows(block: str, watched: list[str], follows: list[str]) -> None:
    model = model_of(BLOCKS[block], weights_of(0, 0.2))
    truth = seen(model, np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32))
    assert implied(model, {name: truth[name] for name in watched}) == follows


def test_nothing_follows_where_a_weight_could_overflow_fp16() -> None:
    weights = weights_of(0, 0.2) | {"b": np.array([1, 2, 3, 40000], np.float32)}
    model = model_of(BLOCKS["relu6"], weights)
    truth = seen(model, np.ones((1, 4, 6, 6), np.float32))
    assert implied(model, {name: truth[name] for name in ("x", "y")}) == []


def test_nothing_follows_where_relu_cut_everything() -> None:
    weights = weights_of(0, 1e-7) | {"b": np.zeros(4, np.float32)}
    model = model_of(BLOCKS["residual"], weights)
    truth = seen(model, -np.ones((1, 4, 6, 6), np.float32))
    assert implied(model, {name: truth[name] for name in ("x", "y")}) == []


def test_a_residual_branch_that_adds_nothing_stays_open() -> None:
    weights = weights_of(0, 1e-9) | {"b": np.zeros(4, np.float32)}
    model = model_of(BLOCKS["residual"], weights)
    truth = seen(model, np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32))
    assert implied(model, {name: truth[name] for name in ("x", "y")}) == ["s"]


def test_operators_of_other_domains_and_those_not_known_say_nothing() -> None:
    model = model_of("h = Erf (x)  y = Relu (h)", {})
    truth = seen(model, np.ones((1, 4, 6, 6), np.float32))
    assert implied(model, {name: truth[name] for name in ("x", "y")}) == []


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_takes_its_factors_and_its_layout_into_account(trans: int) -> None:
    weight = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]], np.float32)
    body = f"y = Gemm <alpha = 2.0, beta = 3.0, transB = {trans}> (x, w, b)"
    model = model_of(body, {"w": weight.T if trans else weight, "b": np.array([1, 1, 7], np.float32)}, "N,2")
    found = implied_spans(opened(model).graph, {"x": Span(4.0, -4.0, 2.0)}, 1e9, 0.0)
    assert found["y"].amax == pytest.approx(4 * 2 * (3 + 5) + 3 * 7, rel=2e-3)
