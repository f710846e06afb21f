"""FP16 is rounded to, as numpy does in FP16 node by node, and what overflows is infinite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from engines.backends import onnxruntime as ort
from engines.backends import reference
from engines.ort.half_rounding import with_rounding_written
from tests.engines.conftest import SaveModel

Array = npt.NDArray[np.float32]
HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y)'


def half(number: float) -> int:
    """A number in FP16 as ONNX's syntax has it: its bits."""
    return int(np.float16(number).view(np.uint16))


def simulated(path: Path, x: Array) -> npt.NDArray[np.generic]:
    with ort.load_simulation(path, num_threads=1) as runner:
        return np.asarray(runner.infer({"x": x})["y"])


def by_the_standard(path: Path, x: Array) -> npt.NDArray[np.generic]:
    with reference.load(path, num_threads=1) as runner:
        return np.asarray(runner.infer({"x": x})["y"])


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)


def test_what_overflows_in_the_middle_is_infinite(save_model: SaveModel) -> None:
    path = save_model(
        f"""{HEAD}<float16[1] small = {{{half(0.001)}}}>
        {{ h = Cast<to = 10>(x)  square = Mul(h, h)  back = Mul(square, small)  y = Cast<to = 1>(back) }}"""
    )
    assert simulated(path, np.full((1, 4), 300, np.float32)).tolist() == [[np.inf] * 4]
    assert np.isfinite(simulated(path, np.full((1, 4), 200, np.float32))).all()


CHAINS = {
    "arithmetic": "a = Mul(h, c)  b = Add(a, h)  d = Sub(b, c)  z = Div(d, c)",
    "an activation behind": "a = Mul(h, c)  b = Relu(a)  z = Mul(b, c)",
    "bounds": "a = Mul(h, c)  b = Clip(a, low, high)  z = Mul(b, c)",
    "an activation and another reader": "a = Mul(h, c)  b = Relu(a)  d = Mul(b, c)  z = Add(d, a)",
    "by an attribute": f"n = Constant <value = float16[1] {{{half(0.3)}}}> ()  a = Mul(h, n)  z = Mul(a, c)",
    "there and back": "f = Cast<to = 1>(h)  g = Mul(f, third)  k = Cast<to = 10>(g)  z = Mul(k, c)",
    "moved": "a = Mul(h, c)  b = Transpose<perm = [1, 0]>(a)  d = Transpose<perm = [1, 0]>(b)  z = Mul(d, c)",
    "the type of another": "a = Mul(h, c)  f = Cast<to = 1>(a)  g = Mul(f, third)  k = CastLike(g, h)  z = Mul(k, c)",
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_each_node_gives_what_numpy_gives_in_fp16(save_model: SaveModel, chain: str, x: Array) -> None:
    constants = f"float16[1] c = {{{half(1.1)}}}, float16 low = {{{half(-0.7)}}}, float16 high = {{{half(0.7)}}}"
    constants += ", float[1] third = {0.333}"
    path = save_model(f"{HEAD}<{constants}> {{ h = Cast<to = 10>(x) {chain} y = Cast<to = 1>(z) }}")
    np.testing.assert_array_equal(simulated(path, x), by_the_standard(path, x))
    with ort.load(path, num_threads=1) as runner:  # Which is why there is this at all.
        plain = runner.infer({"x": x})["y"]
    assert (plain != simulated(path, x)).any() or chain == CHAINS["an activation behind"]


@pytest.mark.parametrize("swapped", [False, True])
def test_swish_is_one_operation(save_model: SaveModel, swapped: bool, x: Array) -> None:
    factors = "h, gate" if swapped else "gate, h"
    path = save_model(f"{HEAD} {{ h = Cast<to = 10>(x)  gate = Sigmoid(h)  z = Mul({factors})  y = Cast<to = 1>(z) }}")
    h = x.astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(simulated(path, x), (h / (1 + np.exp(-h))).astype(np.float16).astype(np.float32))


def test_a_gate_of_another_tensor_is_rounded(save_model: SaveModel, x: Array) -> None:
    path = save_model(
        f"{HEAD} {{ h = Cast<to = 10>(x)  gate = Sigmoid(h)  b = Relu(h)  z = Mul(gate, b)  y = Cast<to = 1>(z) }}"
    )
    h = x.astype(np.float16).astype(np.float64)
    gate = (1 / (1 + np.exp(-h))).astype(np.float16)
    np.testing.assert_array_equal(simulated(path, x), (gate * np.maximum(h, 0).astype(np.float16)).astype(np.float32))


def test_inputs_and_outputs_keep_their_names_and_types(save_model: SaveModel) -> None:
    path = save_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float16[N, 4] x) => (float16[N, 4] y, float16[N, 4] a)
        <float16[1] c = {{{half(1.1)}}}> {{ a = Mul(x, c)  b = Relu(a)  y = Mul(b, c) }}"""
    )
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float16)
    with ort.load_simulation(path, num_threads=1) as runner:
        assert [(spec.name, spec.dtype) for spec in runner.inputs] == [("x", "float16")]
        outputs = runner.infer({"x": x})
    c = np.float16(1.1)
    assert {name: array.dtype for name, array in outputs.items()} == dict.fromkeys("ya", np.dtype(np.float16))
    np.testing.assert_array_equal(outputs["a"], x * c)
    np.testing.assert_array_equal(outputs["y"], np.maximum(x * c, 0) * c)


def test_weights_in_a_file_beside_the_model(tmp_path: Path, x: Array) -> None:
    model = onnx.parser.parse_model(
        f"{HEAD}<float16[4, 4] w = {{{', '.join(str(half(0.1)) for _ in range(16))}}}> "
        "{ h = Cast<to = 10>(x)  a = MatMul(h, w)  z = Mul(a, a)  y = Cast<to = 1>(z) }"
    )
    onnx.save(model, tmp_path / "inside.onnx")
    onnx.save(model, tmp_path / "beside.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    inside, beside = (simulated(tmp_path / f"{name}.onnx", x) for name in ("inside", "beside"))
    np.testing.assert_array_equal(beside, inside)
    exact = by_the_standard(tmp_path / "inside.onnx", x).astype(np.float64)
    np.testing.assert_allclose(beside.astype(np.float64), exact, rtol=4e-3, atol=1e-4)  # Its sums are in FP16.


def test_integers_with_scales_in_fp16(save_model: SaveModel, x: Array) -> None:
    path = save_model(
        f"""<ir_version: 9, opset_import: ["" : 19]> g (float[N, 4] x) => (float[N, 4] y)
        <float16 s = {{{half(0.03)}}}, int8 zero = {{0}}, float16[1] c = {{{half(1.1)}}}>
        {{ h = Cast<to = 10>(x)  q = QuantizeLinear(h, s, zero)  d = DequantizeLinear(q, s)  z = Mul(d, c)
          y = Cast<to = 1>(z) }}"""
    )
    step = np.float32(np.float16(0.03))
    levels = np.clip(np.rint(x.astype(np.float16).astype(np.float32) / step), -128, 127)
    expected = (levels * step).astype(np.float16) * np.float16(1.1)
    np.testing.assert_array_equal(simulated(path, x), expected.astype(np.float32))


BRANCH = """{ h = Cast<to = 10>(x)  yes = ReduceMax<keepdims = 0>(x)  is = Cast<to = 9>(yes)
  z = If(is) <then_branch = t () => (float16[N, 4] a) { a = Add(h, h) },
              else_branch = e () => (float16[N, 4] b) { b = Mul(h, h) }>  y = Cast<to = 1>(z) }"""


@pytest.mark.parametrize(
    "of_the_model",
    [
        pytest.param(lambda: onnx.parser.parse_model(HEAD + BRANCH), id="a branch"),
        pytest.param(
            lambda: onnx.parser.parse_model(
                """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[N, 4] x) => (float[N, 4] y)
                { h = Cast<to = 10>(x)  z = com.microsoft.Gelu(h)  y = Cast<to = 1>(z) }"""
            ),
            id="an operator that onnx does not know",
        ),
    ],
)
def test_what_has_no_types_runs_as_before(
    of_the_model: Callable[[], onnx.ModelProto], save_model: SaveModel, tmp_path: Path, x: Array
) -> None:
    model = of_the_model()
    before = model.SerializeToString()
    assert with_rounding_written(model) is None
    assert model.SerializeToString() == before
    onnx.save(model, tmp_path / "model.onnx")
    assert np.isfinite(simulated(tmp_path / "model.onnx", x).astype(np.float64)).all()


def test_names_that_are_taken(save_model: SaveModel, x: Array) -> None:
    path = save_model(
        f"""{HEAD}<float16[1] h_in_fp32 = {{{half(1.1)}}}, float16[1] z_unrounded = {{{half(0.9)}}}>
        {{ h = Cast<to = 10>(x)  z = Mul(h, h_in_fp32)  w = Mul(z, z_unrounded)  y = Cast<to = 1>(w) }}"""
    )
    np.testing.assert_array_equal(simulated(path, x), by_the_standard(path, x))
