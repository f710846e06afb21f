"""Batch norms, and the Mul and Add that converters leave of them, go into weights without changing the answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from calibration.graph.fold import fold_batch_norm, portable_names

CONV_MUL_ADD = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,2,3,3] x) => (float[N,2,3,3] y)
<float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {1, -1}, float[1,2,1,1] s = {2, 10}, float[1,2,1,1] t = {5, 7}>
{
  c = Conv (x, w, b)
  m = Mul (c, s)
  y = Add (m, t)
}
"""


def _model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def _run(model: onnx.ModelProto, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0], np.float32)  # type: ignore[index]


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def _weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def _same(model: onnx.ModelProto, folded: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(_run(folded, x), _run(model, x), rtol=1e-5, atol=1e-5)


def test_conv_with_bias_takes_the_mul_and_the_add() -> None:
    folded, num_folded = fold_batch_norm(_model(CONV_MUL_ADD))
    assert num_folded == 2
    assert _operators(folded) == ["Conv"]
    weights = _weights(folded)
    np.testing.assert_array_equal(weights["w_folded"].reshape(-1), [2, 4, 30, 40])
    np.testing.assert_array_equal(weights["b_folded"], [1 * 2 + 5, -1 * 10 + 7])
    assert [value.name for value in folded.graph.output] == ["y"]
    assert set(weights) == {"w_folded", "b_folded"}


def test_the_argument_is_not_changed() -> None:
    model = _model(CONV_MUL_ADD)
    before = model.SerializeToString()
    fold_batch_norm(model)
    portable_names(model)
    assert model.SerializeToString() == before


def test_depthwise_convolution_with_real_batch_norm() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2,4,4] x) => (float[N,2,2,2] y)
    <float[2,1,3,3] w = {1,2,3,4,5,6,7,8,9, -1,-2,-3,-4,-5,-6,-7,-8,-9}, float[2] g = {2, 3}, float[2] b = {1, -1},
     float[2] m = {0.5, -0.5}, float[2] v = {4, 9}>
    {
      c = Conv <group = 2> (x, w)
      y = BatchNormalization <epsilon = 0.001> (c, g, b, m, v)
    }
    """)
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (1, ["Conv"])
    _same(model, folded, (2, 2, 4, 4))


def test_transposed_convolution_with_groups() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,4,2,2] x) => (float[N,6,2,2] y)
    <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[6,1,1] s = {1,10,100,1000,10000,100000}>
    {
      c = ConvTranspose <group = 2> (x, w)
      y = Mul (s, c)
    }
    """)
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (1, ["ConvTranspose"])
    rows = [[1, 20, 300], [4, 50, 600], [7000, 80000, 900000], [10000, 110000, 1200000]]
    np.testing.assert_array_equal(_weights(folded)["w_folded"].reshape(4, 3), rows)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_keeps_alpha_and_folds_beta(trans_b: int) -> None:
    shape = "float[3,2]" if trans_b else "float[2,3]"
    model = _model(f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2] x) => (float[N,3] y)
    <{shape} w = {{1,2,3,4,5,6}}, float[3] c = {{1,2,3}}, float[3] s = {{2,4,8}}, float[1,3] t = {{7,8,9}}>
    {{
      g = Gemm <alpha = 0.5, beta = 3.0, transB = {trans_b}> (x, w, c)
      d = Div (g, s)
      y = Sub (t, d)
    }}
    """)
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (2, ["Gemm"])
    _same(model, folded, (3, 2))


def test_dense_with_bias_and_batch_norm_becomes_matmul_and_add() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2] x) => (float[N,2] y)
    <float[2,2] w = {1,2,3,4}, float[2] a = {1,-2}, float[2] g = {2,3}, float[2] b = {1,-1}, float[2] m = {0.5,-0.5},
     float[2] v = {4,9}>
    {
      p = MatMul (x, w)
      q = Add (a, p)
      y = BatchNormalization (q, g, b, m, v)
    }
    """)
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (1, ["MatMul", "Add"])
    _same(model, folded, (3, 2))


def test_batch_norm_straight_after_matmul_leaves_its_shift_as_add() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2] x) => (float[N,2] y)
    <float[2,2] w = {1,2,3,4}, float[2] g = {2,3}, float[2] b = {1,-1}, float[2] m = {0.5,-0.5}, float[2] v = {4,9}>
    {
      p = MatMul (x, w)
      n = BatchNormalization (p, g, b, m, v)
      y = Relu (n)
    }
    """)
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (1, ["MatMul", "Add", "Relu"])
    _same(model, folded, (3, 2))


def test_a_bias_add_alone_is_no_batch_norm() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] a = {1,-2}>
    { p = MatMul (x, w)  y = Add (p, a) }
    """)
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (0, ["MatMul", "Add"])


@pytest.mark.parametrize(
    ("why", "body", "constant"),
    [
        ("somebody else reads it", "c = Conv (x, w)  m = Mul (c, s)  y = Add (m, c)", "float[1,2,1,1] s = {2, 3}"),
        ("one value for each pixel", "c = Conv (x, w)  y = Mul (c, s)", "float[1,1,3,3] s = {1,2,3,4,5,6,7,8,9}"),
        ("one value for each column", "c = Conv (x, w)  y = Mul (c, s)", "float[3] s = {1, 2, 3}"),
        ("not a constant", "c = Conv (x, w)  y = Mul (c, x)", "float[1] s = {1}"),
        ("division by it", "c = Conv (x, w)  y = Div (s, c)", "float[1,2,1,1] s = {1, 2}"),
        ("overflow", "c = Conv (x, w)  y = Mul (c, s)", "float[1,2,1,1] s = {3e38, 1}"),
    ],
)
def test_what_cannot_be_folded_stays(why: str, body: str, constant: str) -> None:
    model = _model(f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[2,2,1,1] w = {{1,2,3,4}}, {constant}> {{ {body} }}
    """)
    folded, num_folded = fold_batch_norm(model)
    assert num_folded == 0, why
    assert _operators(folded) == _operators(model), why


def test_a_model_output_between_stays_readable() -> None:
    text = CONV_MUL_ADD.replace("(float[N,2,3,3] y)", "(float[N,2,3,3] y, float[N,2,3,3] c)", 1)
    folded, num_folded = fold_batch_norm(_model(text))
    assert num_folded == 0
    assert [value.name for value in folded.graph.output] == ["y", "c"]


def test_a_shared_weight_is_folded_for_one_reader_only() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[2,2,1,1] w = {1,2,3,4}, float[1,2,1,1] s = {2, 10}>
    { c = Conv (x, w)  m = Mul (c, s)  r = Relu (m)  y = Conv (r, w) }
    """)
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (1, ["Conv", "Relu", "Conv"])
    _same(model, folded, (1, 2, 3, 3))


def test_identity_and_constant_nodes_go() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[2,2,1,1] w = {1,2,3,4}>
    {
      i = Identity (x)
      c = Conv (i, w)
      j = Identity (c)
      s = Constant <value = float[1,2,1,1] {2, 3}> ()
      m = Mul (j, s)
      y = Identity (m)
    }
    """)
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (1, ["Conv"])
    assert folded.graph.output[0].name == "y"
    _same(model, folded, (1, 2, 3, 3))


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    chain=st.lists(st.sampled_from(["Mul", "Add", "Sub", "Div"]), min_size=1, max_size=4),
)
def test_any_chain_of_channel_arithmetic_keeps_the_answer(seed: int, chain: list[str]) -> None:
    model = _model(CONV_MUL_ADD)
    del model.graph.node[1:]
    random = np.random.default_rng(seed)
    for index, operator in enumerate(chain):
        value = random.uniform(0.5, 2.0, size=(2, 1, 1)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f"k{index}"))
        name = "y" if index == len(chain) - 1 else f"t{index}"
        inputs = [model.graph.node[-1].output[0], f"k{index}"]
        model.graph.node.append(onnx.helper.make_node(operator, inputs, [name]))
    folded, num_folded = fold_batch_norm(model)
    assert (num_folded, _operators(folded)) == (len(chain), ["Conv"])
    _same(model, folded, (1, 2, 3, 3))


def test_portable_names_lose_their_colons_and_are_told() -> None:
    model = _model(CONV_MUL_ADD)
    renamed = {"x": "image:0", "c": "image", "m": "a:b:0", "y": "probs:0"}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = "image:0", "probs:0"
    portable, names = portable_names(model)
    assert names == {"image_1": "image:0", "probs": "probs:0", "a_b": "a:b:0"}
    assert [value.name for value in (*portable.graph.input, *portable.graph.output)] == ["image_1", "probs"]
    assert [list(node.output) for node in portable.graph.node] == [["image"], ["a_b"], ["probs"]]


def test_portable_names_reach_into_subgraphs() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2] x, bool p) => (float[2] y)
    {
      y = If (p) <then_branch = a () => (float[2] u) { u = Neg (x) },
                  else_branch = b () => (float[2] v) { v = Abs (x) }>
    }
    """)
    model.graph.input[0].name = "x:0"
    for attribute in model.graph.node[0].attribute:
        attribute.g.node[0].input[0] = "x:0"
    portable, names = portable_names(model)
    assert names == {"x": "x:0"}
    feed = {"x": np.array([1, -2], np.float32), "p": np.array(True)}
    (y,) = ReferenceEvaluator(portable).run(None, feed)
    np.testing.assert_array_equal(y, [-1, 2])
