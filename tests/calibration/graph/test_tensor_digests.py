"""The digests of a model's tensors: equal where the values must be equal, and different from where models part."""

from __future__ import annotations

import onnx
import pytest

from calibration.graph.tensor_digests import differing, tensor_digests

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3] x) => (float[N, 2] y)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {0.5, -0.5}>
{
    h = MatMul(x, w)
    r = LeakyRelu<alpha = 0.5>(h)
    y = Add(r, b)
}"""


def of(text: str) -> dict[str, str]:
    return tensor_digests(onnx.parser.parse_model(text))


def test_each_tensor_has_one_in_the_order_of_computation() -> None:
    assert list(of(TEXT)) == ["x", "h", "r", "y"]
    assert len(set(of(TEXT).values())) == 4
    assert of(TEXT) == of(TEXT)


CHANGES = {
    "{1, 2, 3, 4, 5, 6}": ("{1, 2, 3, 4, 5, 7}", ["h", "r", "y"]),
    "{0.5, -0.5}": ("{0.5, 0.5}", ["y"]),
    "alpha = 0.5": ("alpha = 0.25", ["r", "y"]),
    "Add(r, b)": ("Add(b, r)", ["y"]),
    "= MatMul": ("= Gemm", ["h", "r", "y"]),
    '"" : 17': ('"" : 16', ["h", "r", "y"]),
    "float[N, 3]": ("float[5, 3]", []),
    "g (": ("another_name (", []),
}


@pytest.mark.parametrize("old", CHANGES)
def test_a_change_shows_from_where_it_stands(old: str) -> None:
    new, expected = CHANGES[old]
    assert old in TEXT
    assert differing(of(TEXT), of(TEXT.replace(old, new))) == expected


def test_names_of_tensors_and_weights_in_between_do_not_count() -> None:
    renamed = TEXT.replace(" h", " hidden").replace("(h", "(hidden").replace(" w", " weight")
    assert of(renamed)["y"] == of(TEXT)["y"]


def test_how_a_weight_is_stored_does_not_count() -> None:
    model = onnx.parser.parse_model(TEXT)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    assert all(tensor.HasField("raw_data") for tensor in model.graph.initializer)
    assert tensor_digests(model) == of(TEXT)


def test_weights_within_a_branch_and_read_from_outside_count() -> None:
    branches = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}>
{
    y = If(c) <
        then_branch = t () => (float[2] a) <float[2] v = {3, 4}> { a = Add(x, v) },
        else_branch = e () => (float[2] b) { b = Mul(x, w) }
    >
}"""
    for old, new in (("{3, 4}", "{3, 5}"), ("{1, 2}", "{1, 3}"), ("Mul", "Add")):
        assert differing(of(branches), of(branches.replace(old, new))) == ["y"]
