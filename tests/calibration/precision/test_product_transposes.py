"""Transposes around products go behind them, and keys are transposed by their last axes: the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.graph.attention import transpose_keys
from calibration.precision.fp16 import fp16_from_onnx, named
from calibration.precision.product_transposes import move_transposes
from engines import backend
from tests.calibration.graph.nets import answer_to, with_arrays


def net(body: str, shape: str = "N,3,4", out: str = "A,B,C") -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[{shape}] x) => (float[{out}] y) {{ {body} }}'
    )
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "w": random.normal(size=(4, 5)).astype(np.float32),
        "v": random.normal(size=(5, 6)).astype(np.float32),
        "b": random.normal(size=5).astype(np.float32),
        "wide": random.normal(size=(1, 2, 5)).astype(np.float32),
        "first": np.array([0], np.int64),
        "last": np.array([-1], np.int64),
        "heads": np.array([2], np.int64),
        "rest": np.array([5, 4], np.int64),
    }
    return with_arrays(model, arrays)


def data(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("t = Transpose <perm=[1,0,2]> (x) y = MatMul (t, w)", ["MatMul", "Transpose"]),
        ("t = Transpose <perm=[1,0,2]> (x) m = MatMul (t, w) y = Add (m, b)", ["MatMul", "Add", "Transpose"]),
        ("t = Transpose <perm=[1,0,2]> (x) m = MatMul (t, w) y = Add (b, m)", ["MatMul", "Add", "Transpose"]),
        (
            "t = Transpose <perm=[1,0,2]> (x) m = MatMul (t, w) a = Add (m, b) y = MatMul (a, v)",
            ["MatMul", "Add", "MatMul", "Transpose"],
        ),
        ("t = Transpose <perm=[1,0,2]> (x) m = MatMul (t, w) y = Add (m, wide)", ["MatMul", "Transpose", "Add"]),
    ],
)
def test_products_come_first(body: str, operators: list[str], tmp_path: Path) -> None:
    model = net(body)
    moved, num = move_transposes(model)
    assert num == operators.count("MatMul")
    assert [node.op_type for node in moved.graph.node] == operators
    assert [value.name for value in moved.graph.output] == ["y"]
    x = data(2, 3, 4)
    np.testing.assert_array_equal(answer_to(x, moved, tmp_path), answer_to(x, model, tmp_path))


def test_a_transpose_that_others_read_stays_for_them(tmp_path: Path) -> None:
    model = net("t = Transpose <perm=[1,0,2]> (x) r = Relu (t) m = MatMul (t, w) n = MatMul (r, w) y = Add (m, n)")
    moved, num = move_transposes(model)
    assert num == 1
    x = data(2, 3, 4)
    np.testing.assert_array_equal(answer_to(x, moved, tmp_path), answer_to(x, model, tmp_path))


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose <perm=[0,2,1]> (x) u = Transpose <perm=[0,2,1]> (t) y = MatMul (t, u)",
        "t = Transpose <perm=[0,1,2]> (x) y = MatMul (t, w)",
        "t = Transpose <perm=[1,0,2]> (x) s = Transpose <perm=[1,2,0]> (x) y = MatMul (t, s)",
    ],
)
def test_what_is_no_product_by_weights_behind_such_a_transpose_stays(body: str) -> None:
    model = net(body)
    assert move_transposes(model) == (model, 0)


KEYS = """
t = Transpose <perm=[0,2,1]> (x) s = Shape (x) n = Gather <axis=0> (s, first) two = Concat <axis=0> (last, heads, rest)
y = Reshape (t, two)
"""


def test_keys_are_transposed_by_their_last_axes(tmp_path: Path) -> None:
    model = net(f"{KEYS.replace('y =', 'k =')} y = Relu (k)", "N,4,5", "A,2,5,4")
    turned, num = transpose_keys(model)
    assert num == 1
    assert [node.op_type for node in turned.graph.node] == ["Reshape", "Transpose", "Relu"]
    x = data(6, 4, 5)
    np.testing.assert_array_equal(answer_to(x, turned, tmp_path), answer_to(x, model, tmp_path))


def test_a_reshape_to_other_last_axes_stays() -> None:
    model = net(
        "t = Transpose <perm=[0,2,1]> (x) shape = Concat <axis=0> (last, rest, heads) k = Reshape (t, shape) "
        "y = Relu (k)",
        "N,4,5",
        "A,5,4,2",
    )
    assert transpose_keys(model) == (model, 0)


def test_in_fp16_products_come_first_so_that_onnx_runtime_does_not_crash(tmp_path: Path) -> None:
    model = net("l = Sigmoid (x) t = Transpose <perm=[1,0,2]> (l) m = MatMul (t, w) y = Add (m, b)")
    half = fp16_from_onnx(named(model), keep_fp32=())
    operators = [node.op_type for node in half.graph.node if node.op_type != "Cast"]
    assert operators == ["Sigmoid", "MatMul", "Add", "Transpose"]
    onnx.save(half, tmp_path / "half.onnx")
    x = data(2, 3, 4)
    with backend("onnxruntime").load(tmp_path / "half.onnx", num_threads=1) as runner:
        answer = runner.infer({"x": x})["y"].astype(np.float32)
    np.testing.assert_allclose(answer, answer_to(x, model, tmp_path), rtol=0.01, atol=0.01)
