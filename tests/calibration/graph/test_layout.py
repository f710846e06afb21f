"""What stands between convolutions has its channels first as they do; what cannot be moved stays right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.graph.layout import join_transposes
from tests.calibration.graph.nets import answer_to, with_arrays

LAST, FIRST = "Transpose <perm = [0, 2, 3, 1]>", "Transpose <perm = [0, 3, 1, 2]>"
HARD_SWISH = f"""
c = Conv (x, w) t = {LAST} (c) a = Add (t, bias) b = Add (a, three) d = Clip (b, zero, six) e = Mul (d, sixth)
f = Mul (a, e) g = {FIRST} (f) y = Conv (g, w)
"""
"""As tf2onnx writes MobileNetV3's."""
GATED = f"""
c = Conv (x, w) t = {LAST} (c) r = Relu (t) m = ReduceMean <axes = [1, 2]> (r) n = {FIRST} (m) k = Conv (n, w)
l = {LAST} (k) s = Sigmoid (l) g = Mul (r, s) u = {FIRST} (g) y = Conv (u, w)
"""
PADDED = f"c = Conv (x, w) t = {LAST} (c) p = Pad (t, pads) u = {FIRST} (p) y = Conv (u, w)"
JOINED = f"""
c = Conv (x, w) t = {LAST} (c) r = Relu (t) j = Concat <axis = -1> (r, t) k = Sub (sixth, j) u = {FIRST} (k)
y = Conv (u, wide)
"""


def net(body: str, opset: int = 17) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> net (float[N,4,6,5] x) => (float[A,B,C,D] y) {{ {body} }}'
    )
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "w": random.normal(size=(4, 4, 1, 1)).astype(np.float32),
        "wide": random.normal(size=(4, 8, 1, 1)).astype(np.float32),
        "bias": random.normal(size=4).astype(np.float32),
        "map": random.normal(size=(6, 5, 1)).astype(np.float32),
        "pads": np.array([0, 1, 0, 0, 0, 2, 1, 0], np.int64),
        "axes": np.array([1, -2], np.int64),
        **{
            name: np.array(value, np.float32)
            for name, value in {"zero": 0, "three": 3, "six": 6, "sixth": 1 / 6}.items()
        },
    }
    return with_arrays(model, arrays)


def answer(model: onnx.ModelProto, folder: Path) -> np.ndarray[Any, Any]:
    return answer_to(np.random.default_rng(1).normal(size=(2, 4, 6, 5)).astype(np.float32), model, folder)


def num_transposes(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph.node)


@pytest.mark.parametrize("body", [HARD_SWISH, PADDED, JOINED, f"c = Conv (x, w) t = {LAST} (c) y = {FIRST} (t)"])
def test_channels_stay_first_with_the_same_bits(tmp_path: Path, body: str) -> None:
    model = net(body)
    made, num = join_transposes(model)
    assert (num, num_transposes(made)) == ((2, 0) if "y = Conv" in body else (0, 2))
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(answer(made, tmp_path), answer(model, tmp_path))


@pytest.mark.parametrize("opset", [17, 18])
def test_means_are_over_the_same_positions(tmp_path: Path, opset: int) -> None:
    model = net(GATED if opset < 18 else GATED.replace("<axes = [1, 2]> (r)", "(r, axes)"), opset)
    made, num = join_transposes(model)
    assert (num, num_transposes(made)) == (4, 0)
    np.testing.assert_allclose(answer(made, tmp_path), answer(model, tmp_path), rtol=1e-5, atol=1e-6)


def test_a_map_of_constants_turns_along(tmp_path: Path) -> None:
    model = net(f"c = Conv (x, w) t = {LAST} (c) a = Mul (map, t) u = {FIRST} (a) y = Conv (u, w)")
    made, num = join_transposes(model)
    assert num == 2
    np.testing.assert_array_equal(answer(made, tmp_path), answer(model, tmp_path))


def test_a_transpose_that_others_read_stays_for_them(tmp_path: Path) -> None:
    body = HARD_SWISH.replace(
        "y = Conv (g, w)", f"h = Softmax <axis = -1> (a) i = {FIRST} (h) j = Add (g, i) y = Conv (j, w)"
    )
    model = net(body)
    made, num = join_transposes(model)
    assert (num, num_transposes(made)) == (1, 2)
    np.testing.assert_array_equal(answer(made, tmp_path), answer(model, tmp_path))


@pytest.mark.parametrize(
    "body",
    [
        f"t = {LAST} (x) r = Relu (t) u = {FIRST} (r) y = Conv (u, w)",  # Behind no convolution.
        "c = Conv (x, w) t = Transpose <perm = [0, 2, 1, 3]> (c) r = Relu (t) u = Transpose <perm = [0, 2, 1, 3]> (r) "
        "y = Conv (u, w)",
        f"c = Conv (x, w) t = {LAST} (c) r = Softmax <axis = -1> (t) u = {FIRST} (r) y = Conv (u, w)",
        f"c = Conv (x, w) t = {LAST} (c) r = Relu (t) y = Neg (r)",
        f"c = Conv (x, w) t = {LAST} (c) m = ReduceMean <keepdims = 0, axes = [1]> (t) y = Unsqueeze (m, axes)",
    ],
)
def test_what_cannot_be_moved_stays(body: str) -> None:
    model = net(body)
    made, num = join_transposes(model)
    assert num == 0
    assert made is model
