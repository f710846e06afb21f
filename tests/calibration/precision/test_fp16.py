"""FP16 where it can be, FP32 where it must be, valid ONNX throughout, and Casts only where types meet."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.numpy_helper import from_array, to_array

from calibration.errors import DataError
from calibration.precision.fp16 import (
    FP16_MAX,
    FP16_TINY,
    fp16_from_onnx,
    named,
    nodes_beyond_fp16,
    weights_beyond_fp16,
)
from calibration.ranges.span import Span

SMALL = Span(amax=1.0, min=-1.0, max=1.0)

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2,2] x) => (float[2,2] y)
<float[2,2] w = {1, 2, 3, 4}, float[2] b = {0.1, 0.2}>
{ m = MatMul (x, w)  a = Add (m, b)  r = Relu (a)  y = Add (r, b) }
"""


def _model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, as onnx infers it."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _run(model: onnx.ModelProto, **feed: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[Any]] = session.run(None, feed)
    return outputs


def test_all_is_fp16_but_the_edges() -> None:
    model = _model(NET)
    before = model.SerializeToString()
    half = fp16_from_onnx(model, ())
    assert model.SerializeToString() == before
    types = _types(half)
    assert (types["x"], types["y"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert {types[name] for name in ("m", "a", "r", "y_fp16", "w_fp16", "b_fp16")} == {TensorProto.FLOAT16}
    assert _operators(half) == {"Cast": 2, "MatMul": 1, "Add": 2, "Relu": 1}
    assert "w" not in types
    x = np.array([[1, -2], [0.5, 3]], np.float32)
    np.testing.assert_allclose(_run(half, x=x)[0], _run(model, x=x)[0], rtol=2e-3)


def test_a_kept_node_is_fp32_between_casts_and_shared_constants_are_stored_twice() -> None:
    half = fp16_from_onnx(_model(NET), ("Add_a",))
    types = _types(half)
    assert types["a"] == TensorProto.FLOAT
    assert (types["m"], types["r"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16)
    assert (types["b"], types["b_fp16"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    assert _operators(half)["Cast"] == 4


def test_neighbours_that_are_kept_need_no_cast_between_them() -> None:
    half = fp16_from_onnx(_model(NET), ("MatMul_m", "Add_a", "Relu_r"))
    assert _operators(half)["Cast"] == 2
    assert _types(half)["r_fp16"] == TensorProto.FLOAT16


def test_everything_kept_is_the_model_as_it_was() -> None:
    half = fp16_from_onnx(_model(NET), ("MatMul_m", "Add_a", "Relu_r", "Add_y"))
    assert _operators(half) == {"MatMul": 1, "Add": 2, "Relu": 1}


def test_one_cast_serves_all_readers() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2] x) => (float[2] y, float[2] z) { a = Relu (x)  b = Abs (x)  y = Neg (a)  z = Add (a, b) }
    """)
    assert _operators(fp16_from_onnx(model, ()))["Cast"] == 3
    half = fp16_from_onnx(model, ("Neg_y", "Add_z"))
    assert _operators(half)["Cast"] == 3


def test_an_output_in_the_middle_keeps_its_name_and_type() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2] x) => (float[2] m, float[2] y, float[2] z) { m = Relu (x)  y = Neg (m)  z = Exp (m) }
    """)
    half = fp16_from_onnx(model, ("Exp_z",))
    assert [value.name for value in half.graph.output] == ["m", "y", "z"]
    types = _types(half)
    assert {types[name] for name in "myz"} == {TensorProto.FLOAT}
    inputs = {node.op_type: node.input[0] for node in half.graph.node}
    assert inputs["Neg"] == "m_fp16"
    assert inputs["Exp"] == "m", "the FP32 copy that is there anyway"


def test_resize_keeps_its_scales_in_fp32() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1, 1, 2, 2}> { y = Resize <mode = "linear"> (x, , s) }
    """)
    half = fp16_from_onnx(model, ())
    types = _types(half)
    assert (types["s"], types["y_fp16"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(_run(half, x=x)[0], _run(model, x=x)[0], rtol=2e-3)


def test_operators_that_onnx_does_not_define_for_fp16_stay() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1,2,4] boxes, float[1,1,2] scores) => (int64[n,3] y)
    { b = Relu (boxes)  s = Sigmoid (scores)  y = NonMaxSuppression (b, s) }
    """)
    half = fp16_from_onnx(model, ())
    types = _types(half)
    assert types["b"] == types["s"] == TensorProto.FLOAT16
    suppression = next(node for node in half.graph.node if node.op_type == "NonMaxSuppression")
    assert {types[name] for name in suppression.input if name} == {TensorProto.FLOAT}


def test_pixels_are_cast_straight_to_fp16() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (uint8[2] x) => (float[2] y) { f = Cast <to = 1> (x)  y = Neg (f) }
    """)
    half = fp16_from_onnx(model, ())
    assert _operators(half) == {"Cast": 2, "Neg": 1}
    assert _types(half)["f"] == TensorProto.FLOAT16


def test_casts_of_the_model_that_become_idle_go() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float16[2] x) => (float16[2] y) { f = Cast <to = 1> (x)  n = Neg (f)  y = Cast <to = 10> (n) }
    """)
    half = fp16_from_onnx(model, ())
    assert half.graph.node[0].op_type == "Neg"
    assert _types(half)["y"] == TensorProto.FLOAT16


def test_arithmetic_on_shapes_stays_exact() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[n] x) => (int64[1] y, float[n] z) <float[1] k = {3}>
    { s = Shape (x)  f = Cast <to = 1> (s)  g = Mul (f, k)  y = Cast <to = 7> (g)  z = Mul (x, k) }
    """)
    half = fp16_from_onnx(model, ())
    types = _types(half)
    assert types["f"] == types["g"] == TensorProto.FLOAT
    shapes = next(node for node in half.graph.node if node.op_type == "Shape")
    assert shapes.input[0] == "x", "no cast for a reader that only wants the shape"
    y, z = _run(half, x=np.ones(30001, np.float32))
    assert y.tolist() == [90003]
    assert z.dtype == np.float32


def test_a_node_with_subgraphs_stays_fp32_with_all_it_reads_from_outside() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2] x, bool p) => (float[2] y) <float[2] k = {2, 3}>
    {
      a = Mul (x, k)
      b = If (p) <then_branch = t () => (float[2] u) { u = Mul (a, k) },
                  else_branch = e () => (float[2] v) { v = Abs (a) }>
      y = Neg (b)
    }
    """)
    half = fp16_from_onnx(model, ())
    assert _types(half)["a"] == TensorProto.FLOAT16
    assert _types(half)["b"] == TensorProto.FLOAT
    x = np.array([1, -4], np.float32)
    for p in (True, False):
        np.testing.assert_allclose(_run(half, x=x, p=np.array(p))[0], _run(model, x=x, p=np.array(p))[0], rtol=2e-3)


def test_generated_constants_stay_fp32_and_are_cast() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2] x) => (float[2] y)
    { s = Shape (x)  c = ConstantOfShape <value = float[1] {5}> (s)  y = Add (x, c) }
    """)
    half = fp16_from_onnx(model, ())
    np.testing.assert_array_equal(_run(half, x=np.array([1, 2], np.float32))[0], [6, 7])


def test_weights_that_fp16_cannot_hold_keep_their_node_fp32() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2] x) => (float[2] y)
    <float[1] large = {70000}, float[1] epsilon = {1e-12}, float[2] mixed = {1, 1e-12}, float[1] zero = {0}>
    { a = Add (x, epsilon)  b = Mul (a, large)  c = Mul (b, mixed)  y = Add (c, zero) }
    """)
    beyond = weights_beyond_fp16(model)
    assert beyond == {
        "Add_a": "its constant 'epsilon' is at most 1e-12",
        "Mul_b": "its constant 'large' reaches 7e+04",
    }
    types = _types(fp16_from_onnx(model, ()))
    assert types["a"] == types["b"] == TensorProto.FLOAT
    assert types["c"] == TensorProto.FLOAT16


def test_infinity_is_a_number_of_fp16() -> None:
    model = _model(NET)
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array([-np.inf, 1], np.float32), "b"))
    assert weights_beyond_fp16(model) == {}
    stored = {t.name: to_array(t) for t in fp16_from_onnx(model, ()).graph.initializer}
    assert stored["b_fp16"].tolist() == [-np.inf, 1]


@pytest.mark.parametrize(
    ("largest", "named_nodes"),
    [
        (FP16_MAX, {"Relu_r", "Add_a"}),
        (FP16_MAX / 1.9, {"Relu_r", "Add_a"}),
        (FP16_MAX / 2.1, set()),
        (FP16_TINY / 2, {"Relu_r", "Add_a"}),
        (FP16_TINY, set()),
        (0.0, set()),
    ],
)
def test_nodes_that_touch_values_beyond_fp16_are_named(largest: float, named_nodes: set[str]) -> None:
    spans = dict.fromkeys("xmry", SMALL) | {"a": Span(amax=1.0, min=-largest, max=0.0)}
    assert set(nodes_beyond_fp16(_model(NET), spans)) == named_nodes


def test_the_reason_has_tensor_and_number() -> None:
    spans = dict.fromkeys("xmry", SMALL) | {"a": Span(amax=1.0, min=0.0, max=1e6)}
    assert nodes_beyond_fp16(_model(NET), spans)["Add_a"] == "'a' reaches 1e+06, FP16 ends at 65504"


def test_a_tensor_without_range_is_an_error() -> None:
    with pytest.raises(DataError, match=r"'MatMul_m' has 'm', for which calibration has no range"):
        nodes_beyond_fp16(_model(NET), {"x": SMALL})


def test_the_sum_inside_an_average_counts() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,1,112,112] x) => (float[N,1,1,1] y) { y = GlobalAveragePool (x) }
    """)
    quiet = {"x": Span(6.0, 0.0, 6.0), "y": Span(0.5, 0.0, 0.5)}
    loud = {"x": Span(6.0, 0.0, 6.0), "y": Span(5.0, 0.0, 5.0)}
    signed = {"x": Span(6.0, -6.0, 6.0), "y": Span(0.5, 0.0, 0.5)}
    assert nodes_beyond_fp16(model, quiet) == {}
    assert "the sum of 12544 values" in nodes_beyond_fp16(model, loud)["GlobalAveragePool_y"]
    assert "GlobalAveragePool_y" in nodes_beyond_fp16(model, signed)


def test_the_square_inside_a_norm_counts() -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2,8] x) => (float[2,1] y) { y = ReduceL2 <axes = [1]> (x) }
    """)
    assert nodes_beyond_fp16(model, {"x": Span(180.0, 0.0, 180.0), "y": Span(180.0, 0.0, 180.0)}) == {}
    assert "square of 'x'" in nodes_beyond_fp16(model, dict.fromkeys("xy", Span(200.0, 0.0, 200.0)))["ReduceL2_y"]


def test_what_is_named_can_be_kept() -> None:
    model = named(_model(NET))
    spans = dict.fromkeys("xmry", SMALL) | {"a": Span(amax=1.0, min=0.0, max=1e6)}
    half = fp16_from_onnx(model, nodes_beyond_fp16(model, spans))
    assert _types(half)["a"] == TensorProto.FLOAT


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"keep_fp32: 'Add_q' .* nearest is 'Add_[ay]'"):
        fp16_from_onnx(_model(NET), ("Add_q",))


@pytest.mark.parametrize(
    "text",
    [
        "float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { a = Relu (x) y = GridSample (a, g) }",
        "float[1,1,4,4] x, float[1,4] g) => (float[n,1,2,2] y) <int64[1] b = {0}> "
        "{ a = Relu (x) y = RoiAlign <output_height = 2, output_width = 2> (a, g, b) }",
        "float[1,1,4,4] x, float[1,5] g) => (float[1,1,2,2] y) "
        "{ a = Relu (x) y = MaxRoiPool <pooled_shape = [2, 2]> (a, g) }",
    ],
)
def test_what_reads_coordinates_stays_fp32_as_a_whole(text: str) -> None:
    half = fp16_from_onnx(_model(f'<ir_version: 8, opset_import: ["" : 17]> net ({text}'), ())
    types = _types(half)
    node = next(node for node in half.graph.node if node.op_type in ("GridSample", "RoiAlign", "MaxRoiPool"))
    assert {types[name] for name in (*node.input[:2], *node.output)} == {TensorProto.FLOAT}
    relu = next(node for node in half.graph.node if node.op_type == "Relu")
    assert types[relu.output[0]] == TensorProto.FLOAT16


def test_a_cast_goes_behind_the_transposes_that_read_it() -> None:
    """ONNX Runtime 1.32 dies of Cast, Transpose of the batch, MatMul; this one runs, and answers."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,12,16] x) => (float[12,N,4] y, float[16,12,N] z)
    { t = Transpose <perm = [1,0,2]> (x)  y = MatMul (t, w)  u = Transpose (x)  z = Mul (u, u) }
    """
    model = _model(text)
    random = np.random.default_rng(0)
    model.graph.initializer.append(from_array(random.normal(size=(16, 4)).astype(np.float32), "w"))
    half = fp16_from_onnx(model, keep_fp32=())
    types = _types(half)
    assert (types["t"], types["u"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert _operators(half)["Cast"] == 4, "behind each Transpose, and in front of each output"
    x = random.normal(size=(8, 12, 16)).astype(np.float32)
    for expected, found in zip(_run(model, x=x), _run(half, x=x), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.05)
