"""Strides of 1x1 convolutions move up, with the same bits and fewer multiplications; what would change stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array

from calibration.graph.strides import raise_strides
from tests.calibration.graph.nets import answer_to

STRIDED = "<strides = [2, 2]>"
BLOCK = f"""
a = Conv <pads = [1, 1, 1, 1]> (x, k1) b = Relu (a)
c = Conv (b, p1) d = Relu (c) e = Conv <pads = [1, 1, 1, 1]> (d, k2) f = Relu (e) g = Conv (f, p2)
s = Add (g, b) t = Relu (s)
u = Conv {STRIDED} (t, p3) v = Conv {STRIDED} (t, p4) y = Add (u, v)
"""


def net(body: str, height: int = 9) -> onnx.ModelProto:
    """k… are kernels of 3 x 3, p… of 1 x 1, all of 4 channels."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N,4,{height},8] x) => (float[N,4,A,B] y) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name in sorted(set(re.findall(r"\b[kp]\d\b", body))):
        size = 3 if name[0] == "k" else 1
        model.graph.initializer.append(from_array(rng.normal(size=(4, 4, size, size)).astype(np.float32) / 4, name))
    return model


def answer(model: onnx.ModelProto, folder: Path, height: int = 9) -> np.ndarray[Any, Any]:
    return answer_to(np.random.default_rng(1).normal(size=(2, 4, height, 8)).astype(np.float32), model, folder)


def strides(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Of each node that has any, by its output."""
    return {
        node.output[0]: list(attribute.ints)
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "strides" and max(attribute.ints) > 1
    }


@pytest.mark.parametrize("height", [8, 9])
def test_a_stage_of_a_resnet_computes_what_is_read(tmp_path: Path, height: int) -> None:
    model = net(BLOCK, height)
    made, num_moved = raise_strides(model)
    assert num_moved == 2  # Up to g, and from g to e.
    assert strides(made) == {"e": [2, 2], "b_strided": [2, 2]}
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(answer(made, tmp_path, height), answer(model, tmp_path, height))


@pytest.mark.parametrize(
    ("body", "strided"),
    [
        (f"a = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, k1) y = Conv {STRIDED} (a, p1)", {"a": [4, 2]}),
        (f"a = Conv <dilations = [2, 2]> (x, k1) y = Conv {STRIDED} (a, p1)", {"a": [2, 2]}),
        ("a = Conv (x, k1) y = Conv <strides = [3, 1]> (a, p1)", {"a": [3, 1]}),
        (
            f"a = Conv (x, k1) b = Conv (x, k2) s = Add (a, b) y = Conv {STRIDED} (s, p1)",
            {"a": [2, 2], "b": [2, 2]},
        ),
    ],
)
def test_other_ways_up(tmp_path: Path, body: str, strided: dict[str, list[int]]) -> None:
    model = net(body)
    made, _ = raise_strides(model)
    assert strides(made) == strided
    np.testing.assert_array_equal(answer(made, tmp_path), answer(model, tmp_path))


@pytest.mark.parametrize(
    "body",
    [
        f"y = Conv {STRIDED} (x, p1)",
        f"a = Conv (x, k1) b = Conv {STRIDED} (a, p1) c = GlobalAveragePool (a) y = Add (b, c)",
        f"a = Conv (x, k1) y = Conv {STRIDED} (a, k2)",
        f"a = Conv (x, k1) b = Conv {STRIDED} (a, p1) c = Conv <strides = [2, 1]> (a, p2) d = GlobalAveragePool (c) "
        "y = Add (b, d)",
        "a = Conv (x, k1) y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (a, p1)",
        f'a = Conv <auto_pad = "SAME_UPPER"> (x, k1) y = Conv {STRIDED} (a, p1)',
        f"a = AveragePool <kernel_shape = [2, 2]> (x) y = Conv {STRIDED} (a, p1)",
        f"a = Conv (x, k1) m = GlobalAveragePool (a) s = Add (a, m) y = Conv {STRIDED} (s, p1)",
    ],
)
def test_what_others_read_or_what_cannot_be_left_out_stays(body: str) -> None:
    model = net(body)
    made, num_moved = raise_strides(model)
    assert num_moved == 0
    assert made is model


def test_a_long_way_up(tmp_path: Path) -> None:
    steps = " ".join(f"r{at + 1} = Relu (r{at})" for at in range(1500))
    model = net(f"r0 = Conv (x, k1) {steps} y = Conv {STRIDED} (r1500, p1)")
    made, num_moved = raise_strides(model)
    assert (num_moved, strides(made)) == (1, {"r0": [2, 2]})
    np.testing.assert_array_equal(answer(made, tmp_path), answer(model, tmp_path))
