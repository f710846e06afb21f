"""Which tensors each target wants quantized, said of graphs small enough to be read."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from calibration.errors import DataError
from calibration.graph.editing import named, opened
from calibration.precision.dynamic import dynamic_from_onnx
from calibration.precision.placement import NodeInput, PlacementOptions, PlacementTarget, QdqPlacement
from calibration.precision.qdq import Span, qdq_from_onnx


class _Ranges(dict[str, Span]):
    """A range for every tensor that is requested."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Span:
        return Span(amax=1.0, min=-1.0, max=1.0)


def _model(
    header: str, body: str, weights: Mapping[str, tuple[int, ...]] | None = None, opset: int = 17
) -> onnx.ModelProto:
    """A model from text, with random weights of the given shapes."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> net {header} {{ {body} }}')
    random = np.random.default_rng(0)
    for name, shape in (weights or {}).items():
        array = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def _place(
    model: onnx.ModelProto,
    target: PlacementTarget,
    ranges: Mapping[str, Span] | None = None,
    exclude: tuple[str, ...] = (),
) -> QdqPlacement:
    options = PlacementOptions(target=target, exclude=exclude)
    return qdq_from_onnx(model, _Ranges() if ranges is None else ranges, options).placement


def _readers(placement: QdqPlacement) -> dict[str, list[str]]:
    """Quantized tensor -> the nodes that read it dequantized."""
    return {tensor.tensor: [reader.node for reader in tensor.readers] for tensor in placement.tensors}


def _scales(placement: QdqPlacement) -> dict[str, float]:
    return {tensor.tensor: tensor.quantization.scale for tensor in placement.tensors}


CHAIN = _model(
    "(float[N,16,8,8] x) => (float[N,16,8,8] y)",
    """
    c = Conv <pads = [1,1,1,1]> (x, w, b)  r = Relu (c)
    d = Conv <pads = [1,1,1,1]> (r, v)     y = Softmax <axis = 1> (d)
    """,
    {"w": (16, 16, 3, 3), "b": (16,), "v": (16, 16, 3, 3)},
)
RESIDUAL = _model(
    "(float[N,16,8,8] x) => (float[N,16,8,8] y)",
    """
    a = Conv (x, w)  r = Relu (a)
    b = Conv (r, w)  c = Relu (b)  d = Conv (c, w)
    s = Add (r, d)   y = Relu (s)
    """,
    {"w": (16, 16, 1, 1)},
)
BOTH_FROM_CONV = _model(
    "(float[N,16,8,8] x) => (float[N,16,8,8] y)",
    "a = Conv (x, w)  b = Conv (x, w)  c = Relu (b)  d = Conv (c, w)  s = Add (d, a)  y = Relu (s)",
    {"w": (16, 16, 1, 1)},
)


def test_tensorrt_quantizes_inputs_and_weights_and_no_outputs_and_no_bias() -> None:
    placement = _place(CHAIN, "tensorrt")
    assert _readers(placement) == {"x": ["Conv_c"], "r": ["Conv_d"]}
    assert [(w.tensor, w.reader, w.axis, w.dtype) for w in placement.weights] == [
        ("w", NodeInput("Conv_c", 1), 0, "int8"),
        ("v", NodeInput("Conv_d", 1), 0, "int8"),
    ]
    assert placement.biases == ()
    assert {tensor.quantization.zero_point for tensor in placement.tensors} == {0}
    assert {tensor.quantization.dtype for tensor in placement.tensors} == {"int8"}


def test_tensorrt_leaves_the_branch_from_the_convolution_bare() -> None:
    readers = _readers(_place(RESIDUAL, "tensorrt"))
    assert readers == {"x": ["Conv_a"], "r": ["Conv_b", "Add_s"], "c": ["Conv_d"]}


def test_tensorrt_leaves_the_longer_branch_bare_if_both_are_convolutions() -> None:
    readers = _readers(_place(BOTH_FROM_CONV, "tensorrt"))
    assert readers == {"x": ["Conv_a", "Conv_b"], "c": ["Conv_d"], "a": ["Add_s"]}


def test_tensorrt_leaves_an_add_of_no_convolution_alone() -> None:
    model = _model(
        "(float[N,16,8,8] x) => (float[N,16,8,8] y)",
        "r = Relu (x)  s = Add (r, x)  y = Conv (s, w)",
        {"w": (16, 16, 1, 1)},
    )
    assert _readers(_place(model, "tensorrt")) == {"s": ["Conv_y"]}


def test_tensorrt_gives_the_inputs_of_a_concat_one_scale() -> None:
    model = _model(
        "(float[N,16,8,8] x) => (float[N,16,8,8] y)",
        "a = Conv (x, w)  c = Concat <axis = 1> (x, a)  d = Conv (a, w)  e = Conv (c, v)  y = Add (d, e)",
        {"w": (16, 16, 1, 1), "v": (16, 32, 1, 1)},
    )
    ranges = _Ranges(x=Span(1.0, -1.0, 1.0), a=Span(4.0, -4.0, 4.0), c=Span(3.0, -3.0, 3.0))
    scales = _scales(_place(model, "tensorrt", ranges))
    assert scales["x"] == scales["a"] == scales["c"] == float(np.float32(4.0 / 127))


@pytest.mark.parametrize(
    "mover",
    [
        "m = MaxPool <kernel_shape = [1,1]> (x)",
        "m = Transpose <perm = [0,1,3,2]> (x)",
        "m = Reshape (x, same)",
        "t = Transpose <perm = [0,1,3,2]> (x) u = MaxPool <kernel_shape = [1,1]> (t) m = Reshape (u, same)",
        "s = SpaceToDepth <blocksize = 2> (x) m = DepthToSpace <blocksize = 2> (s)",
        "h, k = Split <axis = 1> (x) m = Concat <axis = 1> (k, h)",
        "m = Identity (x)",
    ],
)
def test_tensorrt_gives_tensors_of_the_same_values_one_scale(mover: str) -> None:
    model = _model(
        "(float[N,16,8,8] x) => (float[N,16,8,8] y) <int64[4] same = {-1, 16, 8, 8}>",
        f"{mover}  d = Conv (x, w)  e = Conv (m, w)  y = Add (d, e)",
        {"w": (16, 16, 1, 1)},
    )
    ranges = _Ranges(x=Span(4.0, -4.0, 4.0), m=Span(3.0, -3.0, 3.0))
    scales = _scales(_place(model, "tensorrt", ranges))
    assert scales["m"] == scales["x"] == float(np.float32(4.0 / 127))


def test_tensorrt_quantizes_the_input_of_an_average_pool_but_not_of_a_softmax() -> None:
    model = _model(
        "(float[N,16,8,8] x) => (float[N,16,1,1] y)", "s = Softmax <axis = 1> (x)  y = GlobalAveragePool (s)"
    )
    assert _readers(_place(model, "tensorrt")) == {"s": ["GlobalAveragePool_y"]}


def test_tensorrt_quantizes_both_sides_of_squeeze_and_excite_but_no_swish() -> None:
    model = _model(
        "(float[N,16,8,8] x) => (float[N,16,8,8] y)",
        """
        h = Sigmoid (x)  z = Mul (x, h)
        p = GlobalAveragePool (z)  q = Conv (p, w)  g = Sigmoid (q)  y = Mul (z, g)
        """,
        {"w": (16, 16, 1, 1)},
    )
    readers = _readers(_place(model, "tensorrt"))
    assert readers == {"z": ["GlobalAveragePool_p", "Mul_y"], "p": ["Conv_q"], "g": ["Mul_y"]}


def test_tensorrt_quantizes_both_activations_of_a_matmul() -> None:
    model = _model("(float[4,8,16] x, float[4,16,8] z) => (float[4,8,8] y)", "y = MatMul (x, z)")
    assert _readers(_place(model, "tensorrt")) == {"x": ["MatMul_y"], "z": ["MatMul_y"]}


@pytest.mark.parametrize(
    ("header", "body", "shape", "axis"),
    [
        ("(float[N,16,8,8] x) => (float[N,32,8,8] y)", "y = Conv (x, w)", (32, 16, 1, 1), 0),
        ("(float[N,16,8,8] x) => (float[N,32,8,8] y)", "y = ConvTranspose <group = 2> (x, w)", (16, 16, 1, 1), 1),
        ("(float[N,16] x) => (float[N,32] y)", "y = MatMul (x, w)", (16, 32), 1),
        ("(float[2,4,16] x) => (float[2,4,32] y)", "y = MatMul (x, w)", (2, 16, 32), None),
        ("(float[N,16] x) => (float[N,32] y)", "y = Gemm (x, w)", (16, 32), 1),
        ("(float[N,16] x) => (float[N,32] y)", "y = Gemm <transB = 1> (x, w)", (32, 16), 0),
    ],
)
def test_weights_are_scaled_along_their_output_channels(
    header: str, body: str, shape: tuple[int, ...], axis: int | None
) -> None:
    placement = _place(_model(header, body, {"w": shape}), "tensorrt")
    assert [weight.axis for weight in placement.weights] == [axis]


@pytest.mark.parametrize(
    ("header", "body", "shape", "reason"),
    [
        ("(float[N,4,8,8] x) => (float[N,4,8,8] y)", "r = Relu (x)  y = Conv (r, w)", (4, 4, 1, 1), "too small"),
        ("(float[N,4,8,8] x) => (float[N,4,8,8] y)", "s = Mul (x, x) y = Conv (s, w)", (4, 4, 1, 1), "too small"),
        ("(float[N,3,8,8] x) => (float[N,64,8,7] y)", "y = Conv (x, w)", (64, 3, 1, 2), "kernel 1x2: too small"),
        ("(float[N,16,8,8] x) => (float[N,16,8,8] y)", "y = Conv <group = 16> (x, w)", (16, 1, 1, 1), "too small"),
        ("(float[1,16] x) => (float[1,32] y)", "y = MatMul (x, w)", (16, 32), "single row or column"),
        ("(float[N,16] x) => (float[N,1] y)", "y = Gemm (x, w)", (16, 1), "single row or column"),
    ],
)
def test_tensorrt_leaves_what_its_int8_kernels_do_not_serve(
    header: str, body: str, shape: tuple[int, ...], reason: str
) -> None:
    placement = _place(_model(header, body, {"w": shape}), "tensorrt")
    assert (placement.tensors, placement.weights, placement.nodes) == ((), (), ())
    assert len(placement.notes) == 1
    assert reason in placement.notes[0]


TURNED = "t = Transpose <perm = [0, 3, 1, 2]>"


@pytest.mark.parametrize(
    ("header", "body", "shape"),
    [
        ("(float[N,3,8,8] x) => (float[N,64,6,6] y)", "y = Conv (x, w)", (64, 3, 3, 3)),
        ("(float[N,8,8,8] x) => (float[N,8,6,6] y)", "y = Conv (x, w)", (8, 8, 3, 3)),
        ("(float[N,8,8,3] x) => (float[N,8,6,6] y)", f"{TURNED} (x) y = Conv (t, w)", (8, 3, 3, 3)),
        (
            "(uint8[N,8,8,3] x) => (float[N,8,6,6] y)",
            f"one = Constant <value_float = 1.0> () c = Cast <to = 1> (x) s = Sub (c, one){TURNED} (s) y = Conv (t, w)",
            (8, 3, 3, 3),
        ),
        ("(float[N,16,8,8] x) => (float[N,16,6,6] y)", "y = Conv <group = 16> (x, w)", (16, 1, 3, 3)),
    ],
)
def test_tensorrt_takes_first_layers_and_depthwise(header: str, body: str, shape: tuple[int, ...]) -> None:
    assert _place(_model(header, body, {"w": shape}), "tensorrt").nodes == ("Conv_y",)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_all_zero_data_leaves_its_reader_in_fp32_and_says_so(target: PlacementTarget) -> None:
    placement = _place(CHAIN, target, _Ranges(r=Span(0.0, 0.0, 0.0)))
    assert "Conv_d" not in placement.nodes
    assert any("'Conv_d' (Conv) stays FP32: 'r' was 0" in note for note in placement.notes)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_missing_range_is_an_error_that_names_node_and_tensor(target: PlacementTarget) -> None:
    with pytest.raises(DataError, match="'Conv_c' needs the range of 'x'"):
        _place(CHAIN, target, {"r": Span(1.0, 0.0, 1.0)})


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize(("name", "left"), [("Conv_d", ("Conv_c",)), ("Conv", ())])
def test_excluded_nodes_and_operators_stay_out(target: PlacementTarget, name: str, left: tuple[str, ...]) -> None:
    assert _place(CHAIN, target, exclude=(name,)).nodes == left


def test_an_excluded_name_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"exclude: 'Conv_q' .* nearest is 'Conv_[cd]'"):
        _place(CHAIN, "tensorrt", exclude=("Conv_q",))


def test_onnxruntime_wants_q_behind_the_relu_and_a_bias_in_int32() -> None:
    placement = _place(CHAIN, "onnxruntime")
    assert _readers(placement) == {"x": ["Conv_c"], "r": ["Conv_d"], "d": ["Softmax_y"]}
    assert [(bias.tensor, bias.data) for bias in placement.biases] == [("b", "x")]


def test_onnxruntime_keeps_a_residual_block_in_integers() -> None:
    placement = _place(RESIDUAL, "onnxruntime")
    assert set(_readers(placement)) == {"x", "r", "c", "d"}
    tail = _model(
        "(float[N,16,8,8] x) => (float[N,16,8,8] y)",
        "a = Conv (x, w)  r = Relu (a)  b = Conv (r, w)  s = Add (r, b)  t = Relu (s)  y = Conv (t, w)",
        {"w": (16, 16, 1, 1)},
    )
    assert set(_readers(_place(tail, "onnxruntime"))) == {"x", "r", "b", "t", "y"}


def test_onnxruntime_rounds_nothing_for_a_reader_in_float() -> None:
    model = _model(
        "(float[N,16,8,8] x) => (float[N,16,8,8] y)",
        "a = Conv (x, w)  b = Conv (x, w)  s = Add (a, b)  y = Softmax <axis = 1> (s)",
        {"w": (16, 16, 1, 1)},
    )
    assert "s" not in _readers(_place(model, "onnxruntime"))


def test_onnxruntime_gives_moved_data_the_scale_it_had() -> None:
    model = _model(
        "(float[N,16,8,8] x) => (float[N,16,4,4] y)",
        "a = Conv (x, w)  m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)  y = Conv (m, w)",
        {"w": (16, 16, 1, 1)},
    )
    ranges = _Ranges(a=Span(4.0, -4.0, 2.0), m=Span(3.0, -1.0, 2.0))
    placement = _place(model, "onnxruntime", ranges)
    found = {tensor.tensor: tensor.quantization for tensor in placement.tensors}
    assert found["m"] == found["a"]


def test_onnxruntime_leaves_the_classifier_output_in_float() -> None:
    model = _model(
        "(float[N,16] x) => (float[N,4] y)",
        "h = MatMul (x, w)  r = Relu (h)  m = MatMul (r, v)  s = Add (m, b)  y = Softmax (s)",
        {"w": (16, 16), "v": (16, 4), "b": (4,)},
    )
    assert set(_readers(_place(model, "onnxruntime"))) == {"x", "r"}


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = ConvTranspose (x, w)", {"w": (16, 16, 1, 1)}, "no integer kernel"),
        ("z = Relu (x)  y = Conv (x, z)", {}, "not a float32 constant"),
    ],
)
def test_onnxruntime_says_what_it_has_no_kernel_for(
    body: str, weights: dict[str, tuple[int, ...]], reason: str
) -> None:
    placement = _place(_model("(float[16,16,1,1] x) => (float[16,16,1,1] y)", body, weights), "onnxruntime")
    assert placement.nodes == ()
    assert reason in placement.notes[0]


def test_nodes_without_names_are_called_as_named_calls_them() -> None:
    names = [node.name for node in named(CHAIN).graph.node]
    assert [node.name for node in opened(CHAIN).graph] == names


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize(
    ("value", "factor", "why"),
    [
        (np.inf, 1.0, "its weight 'v' has values that are infinite or NaN, which no scale holds"),
        (np.nan, 1.0, "its weight 'v' has values that are infinite or NaN, which no scale holds"),
        (0.0, 1e-42, r"its weight 'v' reaches [\d.]*e-42, below what scales in float32 can hold"),
    ],
)
def test_weights_that_no_scale_holds_stay_float(target: PlacementTarget, value: float, factor: float, why: str) -> None:
    """They became INT8 of scale infinity, and a whole network's answers 0, in silence."""
    model = _model(
        "(float[N,64] x) => (float[N,64] y)",
        "a = MatMul (x, v)  b = Clip (a, low, high)  y = MatMul (b, w)",
        {"v": (64, 64), "w": (64, 64), "low": (), "high": ()},
    )
    array = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(factor)
    array[1, 2] = value
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "v"))
    placement = _place(model, target)
    assert placement.nodes == ("MatMul_y",)
    assert re.search(rf"node 'MatMul_a' \(MatMul\) stays FP32: {why}", " ".join(placement.notes))


def test_a_bias_that_no_scale_holds_keeps_its_product_in_float() -> None:
    model = _model("(float[N,8] x) => (float[N,8] y)", "y = Gemm (x, w, b)", {"w": (8, 8), "b": (8,)})
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.full(8, -np.inf, np.float32), "b"))
    placement = _place(model, "onnxruntime")
    assert placement.nodes == ()
    assert "its bias has values that are infinite or NaN, which no scale holds" in placement.notes[0]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_the_weights_of_recurrent_layers_stay_and_that_is_said(target: PlacementTarget) -> None:
    body = """
        [layer] states = GRU <hidden_size = 8> (x, w, r)
        [drop] sequence = Squeeze (states, axis)
        [dense] y = MatMul (sequence, v)"""
    header = "(float[S, N, 8] x) => (float[S, N, 4] y) <int64[1] axis = {1}>"
    model = _model(header, body, {"w": (1, 24, 8), "r": (1, 24, 8), "v": (8, 4)})
    kept = "node 'layer' (GRU) stays FP32: no recurrent layer is placed in INT8, so that its weights of 2 KiB stay"
    placement = _place(model, target)
    assert (placement.nodes, placement.notes) == (("dense",), (kept,))
    assert dynamic_from_onnx(model, (), "u8s8").notes == (kept,)
    assert _place(model, target, exclude=("GRU",)).notes == (), "who excludes it knows"
