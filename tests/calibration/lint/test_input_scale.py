"""What a graph tells of the scale of its input, and what it does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.lint.input_scale import Rescaling, rescalings

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,4,3] x) => (float[N,4,4,3] y)'


def of(body: str, weights: str = "", head: str = HEAD) -> Rescaling | None:
    """What is found of the input of a graph with this body."""
    return rescalings(onnx.parser.parse_model(f"{head} <{weights}> {{ {body} }}")).get("x")


@pytest.mark.parametrize(
    ("body", "weights", "mean", "std"),
    [
        ("y = Div (x, a)", "float a = {255}", 0, 255),
        ("h = Mul (x, a) y = Relu (h)", "float a = {0.00392156862}", 0, 255),
        ("h = Mul (x, a) y = Sub (h, b)", "float a = {0.0078431372}, float[1] b = {1}", 127.5, 127.5),
        ("h = Mul (a, x) y = Add (b, h)", "float a = {2}, float b = {-1}", 0.5, 0.5),
        ("h = Sub (b, x) y = Div (h, a)", "float a = {0.25}, float b = {0.5}", 0.5, 0.25),
        ("y = Sub (x, b)", "float b = {116}", 116, 1),
        ("h = Identity (x) i = Cast <to = 1> (h) y = Div (i, a)", "float a = {255}", 0, 255),
        ("a = Constant <value = float {255}> () y = Div (x, a)", "", 0, 255),
    ],
)
def test_affine_starts_in_whatever_form(body: str, weights: str, mean: float, std: float) -> None:
    found = of(body, weights)
    assert found is not None
    assert np.median(found.mean) == pytest.approx(mean, abs=1e-4)
    assert np.median(found.std) == pytest.approx(std, rel=1e-5)
    assert np.median(found.rms) == pytest.approx(np.hypot(mean, std), rel=1e-5)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = Relu (x)", "float a = {255}"),
        ("h = Relu (x) y = Div (h, a)", "float a = {255}"),
        ("y = Mul (x, a)", "float a = {2}"),
        ("y = Sub (x, a)", "float a = {0.5}"),
        ("h = Add (x, a) y = Log (h)", "float a = {1e-9}"),
        ("h = Mul (x, a) y = Add (h, b)", "float a = {0.1}, float b = {1e-9}"),
        ("y = Mul (x, a)", "float a = {0}"),
        ("y = Div (x, a)", "float a = {0}"),
        ("y = Div (a, x)", "float a = {255}"),
        ("y = Mul (x, x)", "float a = {255}"),
        ("h = Div (x, a) i = Neg (x) y = Add (h, i)", "float a = {255}"),
    ],
)
def test_where_a_graph_tells_nothing_nothing_is_found(body: str, weights: str) -> None:
    assert of(body, weights) is None


def test_values_for_each_channel_stay_with_their_axis() -> None:
    found = of(
        "t = Transpose <perm = [0, 3, 1, 2]> (x) h = Sub (t, m) s = Div (h, d) y = Transpose <perm = [0, 2, 3, 1]> (s)",
        "float[3,1,1] m = {123, 117, 104}, float[3,1,1] d = {58, 57, 56}",
    )
    assert found is not None
    assert found.mean.shape == (1, 1, 1, 3)
    assert found.mean.ravel().tolist() == pytest.approx([123, 117, 104])
    assert found.std.ravel().tolist() == pytest.approx([58, 57, 56])
    assert found.describe() == "computes about (x − 117) ÷ 57 first (Sub, Div)"


def test_one_value_survives_a_reshape_and_values_by_channel_do_not() -> None:
    head = HEAD.replace("(float[N,4,4,3] y)", "(float[N,48] y)")
    assert of("f = Flatten (x) y = Div (f, a)", "float a = {255}", head) is not None
    assert of("f = Flatten (x) y = Div (f, a)", f"float[48] a = {{{', '.join(['255'] * 48)}}}", head) is None


def test_a_batch_norm_knows_what_it_saw_and_its_learned_part_does_not_count() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,4,4] x) => (float[N,2,4,4] y)'
    weights = "float[2] g = {9, 9}, float[2] b = {5, 5}, float[2] m = {3, -40}, float[2] v = {4, 100}"
    found = of("y = BatchNormalization <epsilon = 0.0> (x, g, b, m, v)", weights, head)
    assert found is not None
    assert found.mean.ravel().tolist() == pytest.approx([3, -40])
    assert found.std.ravel().tolist() == pytest.approx([2, 10])
    untrained = weights.replace("{3, -40}", "{0, 0}").replace("{4, 100}", "{1, 1}")
    assert of("y = BatchNormalization (x, g, b, m, v)", untrained, head) is None


def test_a_model_output_on_the_way_ends_the_search() -> None:
    head = HEAD.replace("(float[N,4,4,3] y)", "(float[N,4,4,3] h, float[N,4,4,3] y)")
    found = of("h = Div (x, a) y = Sub (h, b)", "float a = {255}, float b = {0.5}", head)
    assert found is not None
    assert found.nodes == ("Div",)


def test_weights_that_were_not_read_are_no_evidence() -> None:
    model = onnx.parser.parse_model(f"{HEAD} <float[1,1,1,3] a = {{255, 255, 255}}> {{ y = Div (x, a) }}")
    model.graph.initializer[0].ClearField("float_data")
    assert rescalings(model) == {}
