"""The benchmark of INT8 on the CPU: how multiply-adds are counted, and what its page says of times."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from benchmarks.cpu_int8 import FP32, NNCF, OURS, OWN, TIMED, Raced, count_multiply_adds, page

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4, 8, 8] x) => (float[N, 10] y) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, full) b = Conv <group = 6> (a, depth)
    c = GlobalAveragePool (b) d = Flatten (c) e = MatMul (d, dense) f = MatMul (e, e2) y = Gemm (f, last)
}"""


def test_multiply_adds_of_one_sample() -> None:
    model = onnx.parser.parse_model(NET)
    shapes = {"full": (6, 4, 3, 3), "depth": (6, 1, 3, 3), "dense": (6, 5), "e2": (5, 7), "last": (7, 10)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()
    )
    assert (
        count_multiply_adds(model, np.zeros((1, 4, 8, 8), np.float32)) == 4 * 4 * 6 * 36 + 2 * 2 * 6 * 9 + 30 + 35 + 70
    )


def test_the_page_has_ratios_shares_and_what_could_not_be_made() -> None:
    blocks = {FP32: [8.0, 8.0, 80.0], OURS: [4.0, 4.0, 40.0], TIMED: [2.0, 2.0, 20.0], OWN: [3.0, 3.0, 30.0]}
    raced = Raced(
        "Net",
        200_000_000,
        blocks,
        {NNCF: "does not know the operator"},
        ["trtforge: timed.onnx: placement by time: 3 nodes"],
    )
    text = page([raced], 4e11, "onnxruntime 1")
    assert "| Net | 2.00 | 0.75 | – | – | 2.00 |" in text
    assert "| ours, INT8, placement by time | 2.00 (2.00 to 11.00) | 4.00 | 25 % |" in text
    assert "| ONNX Runtime, FP32 | 8.00 (8.00 to 44.00) | 1.00 |  |" in text
    assert "OpenVINO + NNCF, INT8: none (does not know the operator)." in text
    assert "Ours: placement by time: 3 nodes." in text
    assert "400 G of 8 bits" in text
