"""A hard sigmoid in pieces becomes one operator; what is none stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array

from calibration.graph.activations import write_hard_sigmoids
from tests.calibration.graph.nets import answer_to

NUMBERS = {"zero": 0.0, "one": 1.0, "three": 3.0, "minus": -3.0, "six": 6.0, "sixth": 1 / 6, "fifth": 0.2, "none": -1.0}
KERAS = "a = Add (x, three) b = Clip (a, zero, six) c = Mul (b, sixth) y = Mul (x, c)"


def net(body: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N,9] x) => (float[A,B] y) {{ {body} }}'
    )
    read = {name for node in model.graph.node for name in node.input}
    numbers = {name: np.array(value, np.float32) for name, value in NUMBERS.items()}
    numbers["many"] = np.full(9, 3, np.float32)
    model.graph.initializer.extend(from_array(array, name) for name, array in numbers.items() if name in read)
    return model


def answer(model: onnx.ModelProto, folder: Path) -> np.ndarray[Any, Any]:
    return answer_to(np.random.default_rng(1).uniform(-5, 5, (4, 9)).astype(np.float32), model, folder)


@pytest.mark.parametrize(
    "body",
    [
        KERAS,
        "a = Sub (x, minus) b = Clip (a, zero, six) y = Div (b, six)",
        "a = Add (three, x) b = Clip (a, zero, six) c = Mul (sixth, b) y = Neg (c)",
        "a = Add (x, one) b = Clip (a, zero, one) y = Mul (b, one)",
    ],
)
def test_it_is_written_as_one_operator(tmp_path: Path, body: str) -> None:
    model = net(body)
    made, num = write_hard_sigmoids(model)
    assert num == 1
    assert {node.op_type for node in made.graph.node} <= {"HardSigmoid", "Mul", "Neg"}
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(answer(made, tmp_path), answer(model, tmp_path), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        KERAS.replace("sixth", "fifth"),
        KERAS.replace("zero, six", "none, six"),
        KERAS.replace("three", "many"),
        KERAS.replace("y = Mul (x, c)", "d = Mul (x, c) y = Add (d, a)"),  # Read by another too.
        "a = Add (x, three) b = Clip (a, zero, six) y = Div (six, b)",
        "a = Sub (three, x) b = Clip (a, zero, six) y = Mul (b, sixth)",
        "a = Add (x, three) b = Clip (a, zero) y = Mul (b, sixth)",
        "b = Clip (x, zero, six) y = Mul (b, sixth)",
    ],
)
def test_what_is_none_stays(body: str) -> None:
    model = net(body)
    made, num = write_hard_sigmoids(model)
    assert num == 0
    assert made is model
