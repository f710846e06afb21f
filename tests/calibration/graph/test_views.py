"""A Reshape back to a shape that there was before goes, with the same bits; one that changes the shape stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.graph.views import drop_views
from tests.calibration.graph.nets import answer_to, with_arrays

FORKED = """
a = Reshape (x, turned) b = Reshape (a, whole) c = Relu (b) d = Relu (a) e = Reshape (d, whole) y = Add (c, e)
"""
EXCITATION = """
mean = GlobalAveragePool (x) flat = Flatten (mean) one = Reshape (flat, nchw)
reduced = Conv (one, w) sigmoid = Sigmoid (reduced) swish = Mul (reduced, sigmoid) two = Reshape (swish, nchw)
gate = Conv (two, w) y = Mul (x, gate)
"""
"""As Keras's squeeze and excitation is exported."""


def net(body: str, shape: str = "N,4,5,6") -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[{shape}] x) => (float[A,B,C,D] y) {{ {body} }}'
    )
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "w": np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32),
        "nchw": np.array([-1, 4, 1, 1], np.int64),
        "same": np.array([0, 0, 5, 6], np.int64),
        "flattened": np.array([-1, 120], np.int64),
        "turned": np.array([-1, 4, 6, 5], np.int64),
        "whole": np.array([-1, 4, 5, 6], np.int64),
        "axes": np.array([2, 3], np.int64),
    }
    return with_arrays(model, arrays)


def answer(model: onnx.ModelProto, folder: Path) -> np.ndarray[Any, Any]:
    return answer_to(np.random.default_rng(1).normal(size=(2, 4, 5, 6)).astype(np.float32), model, folder)


@pytest.mark.parametrize(
    ("body", "num", "left"),
    [
        (EXCITATION, 2, 0),
        ("a = Relu (x) b = Reshape (a, same) y = Relu (b)", 1, 0),
        ("a = Reshape (x, flattened) b = Reshape (a, whole) y = Relu (b)", 1, 0),
        ("a = Reshape (x, flattened) b = Reshape (a, turned) c = Reshape (b, whole) y = Relu (c)", 1, 0),
        ("a = Reshape (x, turned) b = Reshape (a, whole) r = Relu (b) z = Reshape (a, whole) y = Add (r, z)", 2, 0),
        ("m = GlobalAveragePool (x) a = Squeeze (m, axes) b = Reshape (a, nchw) y = Mul (b, x)", 1, 0),
        (FORKED, 1, 2),
    ],
)
def test_a_view_that_leads_back_goes(tmp_path: Path, body: str, num: int, left: int) -> None:
    model = net(body)
    made, num_dropped = drop_views(model)
    assert num_dropped == num
    assert sum(node.op_type in ("Reshape", "Flatten", "Squeeze") for node in made.graph.node) == left
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(answer(made, tmp_path), answer(model, tmp_path))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("a = Reshape (x, turned) y = Relu (a)", "N,4,5,6"),
        ("a = Reshape (x, turned) b = Relu (a) c = Reshape (b, whole) y = Relu (c)", "N,4,5,6"),
        ("a = Reshape (x, flattened) y = Reshape (a, whole)", "N,4,5,6"),
        ("a = Reshape (x, flattened) b = Reshape (a, whole) y = Relu (b)", "N,C,H,6"),
        ("a = Transpose <perm = [0, 1, 3, 2]> (x) b = Reshape (a, whole) y = Relu (b)", "N,4,5,6"),
    ],
)
def test_what_changes_the_values_order_or_shape_or_is_an_output_stays(body: str, shape: str) -> None:
    model = net(body, shape)
    made, num_dropped = drop_views(model)
    assert num_dropped == 0
    assert made is model
