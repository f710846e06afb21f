"""A GELU in whatever pieces is written in those that runtimes know; what is none stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array

from calibration.graph.activations import write_gelus
from tests.calibration.graph.nets import answer_to

NUMBERS = {"half": 0.5, "one": 1.0, "two": 2.0, "root": math.sqrt(2), "r": math.sqrt(0.5), "minus": -math.sqrt(0.5)}
KERAS = "h = Mul (x, half) n = Neg (x) z = Mul (n, r) e = Erf (z) s = Sub (one, e) y = Mul (h, s)"
KNOWN = "h = Mul (x, half) z = Div (x, root) e = Erf (z) s = Add (e, one) y = Mul (h, s)"


def net(body: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N,9] x) => (float[A,B] y) {{ {body} }}'
    )
    read = {name for node in model.graph.node for name in node.input}
    numbers = {name: np.array(value, np.float32) for name, value in NUMBERS.items()}
    numbers["many"] = np.full(9, 0.5, np.float32)
    model.graph.initializer.extend(from_array(array, name) for name, array in numbers.items() if name in read)
    return model


def answer(model: onnx.ModelProto, folder: Path) -> np.ndarray[Any, Any]:
    return answer_to(np.random.default_rng(1).uniform(-6, 6, (50, 9)).astype(np.float32), model, folder)


@pytest.mark.parametrize(
    "body",
    [
        KERAS,
        "z = Mul (minus, x) e = Erf (z) s = Sub (one, e) h = Mul (half, x) y = Mul (s, h)",
        "n = Neg (x) z = Div (n, root) e = Erf (z) s = Sub (one, e) p = Mul (x, s) y = Mul (p, half)",
        "z = Mul (x, r) n = Neg (z) e = Erf (n) s = Sub (one, e) h = Div (x, two) y = Mul (h, s)",
        "z = Mul (x, r) e = Erf (z) s = Add (one, e) p = Mul (s, x) y = Mul (half, p)",
    ],
)
def test_it_is_written_in_the_pieces_that_runtimes_know(tmp_path: Path, body: str) -> None:
    model = net(body)
    made, num = write_gelus(model)
    assert num == 1
    operators = [node.op_type for node in made.graph.node]
    assert [operators.count(each) for each in ("Erf", "Add", "Sub", "Neg")] == [1, 1, 0, 0]
    assert len(operators) == 5
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(answer(made, tmp_path), answer(model, tmp_path), rtol=1e-5, atol=1e-6)
    assert write_gelus(made)[1] == 0


def test_onnx_runtime_knows_it_as_one_operator(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    operators = {}
    for name, model in {"before": net(KERAS), "after": write_gelus(net(KERAS))[0]}.items():
        settings = ort.SessionOptions()
        settings.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        optimized = onnx.load(tmp_path / f"{name}.onnx")
        operators[name] = [node.op_type for node in optimized.graph.node]
    assert operators["after"] == ["Gelu"]
    assert len(operators["before"]) > 4


def test_two_share_their_numbers(tmp_path: Path) -> None:
    first = KERAS.replace("y =", "u =")
    model = net(f"{first} i = Mul (u, half) m = Neg (u) w = Mul (m, r) f = Erf (w) t = Sub (one, f) y = Mul (i, t)")
    made, num = write_gelus(model)
    assert num == 2
    assert sorted(tensor.name for tensor in made.graph.initializer) == ["half", "one_of_gelu", "root_of_two"]
    np.testing.assert_allclose(answer(made, tmp_path), answer(model, tmp_path), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        KNOWN,
        KERAS.replace("Mul (n, r)", "Mul (n, half)"),
        KERAS.replace("Sub (one, e)", "Sub (e, one)"),
        KERAS.replace("Sub (one, e)", "Add (one, e)"),
        KERAS.replace("Sub (one, e)", "Sub (two, e)"),
        KERAS.replace("Mul (x, half)", "Mul (x, two)"),
        KERAS.replace("y = Mul (h, s)", "y = Add (h, s)"),
        KERAS.replace("y = Mul (h, s)", "p = Mul (h, s) y = Mul (p, e)"),  # Read by another too.
        "z = Mul (x, r) e = Erf (z) s = Add (one, e) y = Mul (s, x)",
        "z = Mul (x, r) e = Erf (z) s = Add (one, e) p = Mul (s, x) y = Mul (many, p)",
    ],
)
def test_what_is_none_stays(body: str) -> None:
    model = net(body)
    made, num = write_gelus(model)
    assert num == 0
    assert made is model
