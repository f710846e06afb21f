"""Which weights become zero."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.weights.masks import Prunable, mask_of, prunable_weights
from tests.calibration.graph.nets import with_arrays

HOW = Prunable("node", "w", 0, 1, "x", 1)
RANDOM = np.random.default_rng(2)


def test_of_each_output_channel_the_same_share_becomes_zero() -> None:
    weight = RANDOM.normal(size=(8, 6, 3, 3)) * np.geomspace(1e-3, 1e3, 8).reshape(-1, 1, 1, 1)
    keeps = mask_of(weight, HOW, None, 0.5, "any")
    assert (~keeps).reshape(8, -1).sum(axis=1).tolist() == [27] * 8
    for row, kept_row in zip(np.abs(weight).reshape(8, -1), keeps.reshape(8, -1)):
        assert row[~kept_row].max() < row[kept_row].min()


def test_what_multiplies_small_inputs_goes_first() -> None:
    weight = np.ones((1, 4))
    keeps = mask_of(weight, HOW, np.array([3.0, 0.1, 0.2, 5.0]), 0.5, "any")
    assert keeps.tolist() == [[True, False, False, True]]


def test_two_of_four_input_channels_at_each_position() -> None:
    weight = RANDOM.normal(size=(5, 8, 3, 3))
    keeps = mask_of(weight, HOW, None, 0.5, "2:4")
    fours = keeps.reshape(5, 2, 4, 3, 3).sum(axis=2)
    assert (fours == 2).all()


def test_the_axes_of_a_matrix_product_are_the_other_way_round() -> None:
    weight = np.array([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, 6.0]])
    keeps = mask_of(weight, Prunable("node", "w", 1, 0, "x", -1), None, 0.5, "any")
    assert keeps.tolist() == [[False, True], [False, True], [True, False], [True, False]]


NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 2] y)
{
    a = Conv (x, first)
    b = Conv <group = 8> (a, depthwise)
    c = Conv (b, second)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    y = Gemm <transB = 1> (e, last)
}
"""


def net() -> onnx.ModelProto:
    shapes = {"first": (8, 3, 3, 3), "depthwise": (8, 1, 3, 3), "second": (4, 8, 1, 1), "last": (2, 4)}
    arrays = {name: RANDOM.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return with_arrays(onnx.parser.parse_model(NET), arrays)


def test_depthwise_weights_stay_dense() -> None:
    weights = prunable_weights(net(), (), "any").weights
    assert {name: (w.output_axis, w.input_axis, w.data) for name, w in weights.items()} == {
        "first": (0, 1, "x"), "second": (0, 1, "b"), "last": (0, 1, "e"),
    }  # fmt: skip


@pytest.mark.parametrize("exclude", [("Conv",), ("Conv_a", "Conv_c")])
def test_what_is_excluded_stays_dense(exclude: tuple[str, ...]) -> None:
    assert list(prunable_weights(net(), exclude, "any").weights) == ["last"]


def test_three_channels_cannot_have_two_of_four() -> None:
    found_weights = prunable_weights(net(), (), "2:4")
    assert list(found_weights.weights) == ["second", "last"]
    assert found_weights.notes == ("node 'Conv_a' has 3 input channels, 2:4 needs a multiple of 4: it stays dense",)
