"""What is done to a picture's bytes goes into the network: it answers to bytes as it did to what was made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

from calibration.data.preprocess import Preprocess
from calibration.errors import ModelError
from calibration.weights.pixels import PixelInput, PixelSteps, fold_pixels
from pipeline.stages.export import pixels_from

BYTES = np.random.default_rng(5).integers(0, 256, (2, 6, 5, 3), np.uint8)
MEANS, STDS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIRST = "float[N,3,6,5] x"
LAST = "float[N,6,5,3] x"
TURNED = "t = Transpose <perm = [0, 3, 1, 2]> (x) y = Conv "


def network(takes: str, body: str, weight: float = 1.0) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net ({takes}) => (float[A,B,C,D] y) {{{body}}}'
    )
    random = np.random.default_rng(6)
    arrays = {
        "w": random.normal(size=(4, 3, 3, 3)) * weight,
        "narrow": random.normal(size=(4, 3, 1, 1)),
        "grouped": random.normal(size=(3, 1, 3, 3)),
        "b": random.normal(size=4),
        "dense": random.normal(size=(3, 4)),
    }
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(from_array(a.astype(np.float32), name) for name, a in arrays.items() if name in read)
    return model


def answer(model: onnx.ModelProto, x: Any) -> Any:
    return ReferenceEvaluator(model).run(None, {"x": x})[0]  # type: ignore[index]


def folded(model: onnx.ModelProto, how: Preprocess) -> tuple[onnx.ModelProto, PixelInput]:
    """The network that takes bytes, which answers as the other did to what the preprocessing makes of them."""
    made, (about,) = fold_pixels(model, pixels_from(how).steps)
    expected = answer(model, how(BYTES))
    np.testing.assert_allclose(answer(made, BYTES), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    (value,) = made.graph.input
    assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] == [6, 5, 3]
    return made, about


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def constants(model: onnx.ModelProto, part: str) -> Any:
    return next(to_array(tensor) for tensor in model.graph.initializer if part in tensor.name)


IMAGENET = Preprocess(channels="bgr", scale=1 / 255, mean=MEANS, std=STDS, layout="nchw", dtype="float32")


@pytest.mark.parametrize("bias", ["", ", b"])
def test_a_convolution_that_does_not_pad_takes_all_in(bias: str) -> None:
    made, about = folded(network(FIRST, f"y = Conv (x, w{bias})"), IMAGENET)
    assert operators(made) == ["Cast", "Transpose", "Conv"]
    assert (about.name, about.dtype, about.shape) == ("x", "float32", (-1, 3, 6, 5))
    assert "what is subtracted is in the bias of 'Conv_y'" in about.words
    assert "the order of the channels is in the weights of 'Conv_y'" in about.words


def test_one_that_pads_has_what_is_subtracted_in_front_of_it() -> None:
    made, about = folded(network(FIRST, "y = Conv <pads = [1, 1, 1, 1]> (x, w, b)"), IMAGENET)
    assert operators(made) == ["Cast", "Sub", "Transpose", "Conv"]
    np.testing.assert_allclose(constants(made, "pixel_mean"), np.array(MEANS[::-1]) * 255, rtol=1e-6)
    assert "is subtracted in front of it, as it pads with zeros" in about.words


@pytest.mark.parametrize(
    ("attributes", "pads"),
    [
        ("<auto_pad = 'VALID'> (x, w)", False),
        ("<auto_pad = 'SAME_UPPER'> (x, w)", True),
        ("<auto_pad = 'SAME_UPPER'> (x, narrow)", False),
        ("<pads = [0, 0, 0, 1]> (x, narrow)", True),
    ],
)
def test_when_a_convolution_pads(attributes: str, pads: bool) -> None:
    text = "y = Conv " + attributes.replace("'", '"')
    made, _ = folded(network(FIRST, text), Preprocess(mean=(127.0,), layout="nchw", dtype="float32"))
    assert ("Sub" in operators(made)) is pads


def test_behind_the_transpose_of_a_tensorflow_network_the_input_stays_as_it_was_stored() -> None:
    how = Preprocess(scale=0.0078125, mean=(0.9921875,), dtype="float32")
    made, about = folded(network(LAST, f"{TURNED}<pads = [1, 1, 1, 1]> (t, w)"), how)
    assert operators(made) == ["Cast", "Sub", "Transpose", "Conv"]
    assert constants(made, "pixel_mean") == np.float32(127), "one number, exactly"
    assert about.shape == (-1, 6, 5, 3)
    assert about.words.startswith("× 0.0078125 is in the weights of 'Conv_y'")


def test_one_channel_that_a_reshape_brings_to_the_front() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N,6,5,1] x) => (float[A,B,C,D] y)'
        "<int64[4] first = {-1, 1, 6, 5}> { t = Reshape (x, first) y = Conv <pads = [1, 1, 1, 1]> (t, w) }"
    )
    model.graph.initializer.append(from_array(np.ones((2, 1, 3, 3), np.float32), "w"))
    made, _ = fold_pixels(model, PixelSteps(scale=1 / 255))
    assert operators(made) == ["Cast", "Reshape", "Conv"]
    np.testing.assert_allclose(answer(made, BYTES[..., :1]), answer(model, BYTES[..., :1] / np.float32(255)), rtol=1e-5)


@pytest.mark.parametrize(
    ("takes", "body"),
    [
        (LAST, "y = MatMul (x, dense)"),
        (FIRST, "y = Conv <group = 3> (x, grouped)"),
        (FIRST, "a = Conv (x, narrow) c = Relu (x) e = Conv (c, narrow) y = Add (a, e)"),
        (FIRST, "r = Relu (x) y = Conv (r, w)"),
        (FIRST, "y = Identity (x)"),
        (FIRST, "m = ReduceMean <keepdims = 1> (w) k = Mul (w, m) y = Conv (x, k)"),
    ],
)
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_where_no_convolution_can_the_steps_are_computed_to_the_bit(takes: str, body: str, channels: Any) -> None:
    layout: Any = "nchw" if takes == FIRST else "keep"
    how = Preprocess(channels=channels, scale=1 / 255, mean=MEANS, std=STDS, layout=layout, dtype="float32")
    model = network(takes, body)
    made, about = fold_pixels(model, pixels_from(how).steps)
    assert ("Gather" in operators(made)) is (channels == "bgr")
    assert about[0].words.endswith("scale, mean, std: computed as written")
    np.testing.assert_array_equal(answer(made, BYTES), answer(model, how(BYTES)))


def test_a_weight_that_others_read_stays_theirs() -> None:
    body = "c = Conv (x, w) f = ReduceSum <keepdims = 0> (w) y = Mul (c, f)"
    made, _ = folded(network(FIRST, body), IMAGENET)
    assert "Gather" not in operators(made)
    assert {tensor.name for tensor in made.graph.initializer} >= {"w", "Conv_c_pixel_weight"}


def test_small_weights_keep_the_bits_that_fp16_has_for_them() -> None:
    how = Preprocess(scale=1 / 255, layout="nchw", dtype="float32")
    ample, _ = folded(network(FIRST, "y = Conv (x, w)"), how)
    assert operators(ample) == ["Cast", "Transpose", "Conv"]
    small, about = folded(network(FIRST, "y = Conv (x, w)", weight=2.0**-9), how)
    assert operators(small) == ["Cast", "Mul", "Transpose", "Conv"]
    assert about.words == "scale: computed as written"


def test_an_input_of_fp16_gets_what_it_took() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float16[N,3,6,5] x) => (float16[N,3,6,5] y) { y = Neg (x) }'
    )
    how = Preprocess(scale=1 / 255, mean=MEANS, layout="nchw", dtype="float16")
    made, about = fold_pixels(model, pixels_from(how).steps)
    assert about[0].dtype == "float16"
    np.testing.assert_array_equal(answer(made, BYTES), answer(model, how(BYTES)))


def test_only_the_named_inputs() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N,3] x, float[N,3] state) => (float[N,3] y)'
        "{ y = Add (x, state) }"
    )
    made, about = fold_pixels(model, PixelSteps(scale=0.5), ("x",))
    assert [each.name for each in about] == ["x"]
    assert [value.type.tensor_type.elem_type for value in made.graph.input] == [2, 1]
    with pytest.raises(ModelError, match="there is no input 'z', the network's are 'x', 'state'"):
        fold_pixels(model, PixelSteps(), ("z",))


@pytest.mark.parametrize(
    ("takes", "steps", "sentence"),
    [
        ("int64[N,3,6,5] x", PixelSteps(), "input 'x' is INT64, one of floating point is expected"),
        ("uint8[N,3,6,5] x", PixelSteps(), "input 'x' is UINT8, one of floating point is expected"),
        ("float[N] x", PixelSteps(), "input 'x' has not the axes of pictures"),
        ("float[N,6,5] x", PixelSteps(to_nchw=True), "input 'x' has not the axes of pictures"),
        ("float[N,6,5,1] x", PixelSteps(reverses=True), "input 'x' has 1 channels, and 3 are brought into order"),
        ("float[N,6,5,3] x", PixelSteps(mean=(1.0, 2.0)), "input 'x' has 3 channels, and mean has 2 numbers"),
        ("float[N,6,5,3] x", PixelSteps(std=(1.0, 2.0)), "input 'x' has 3 channels, and std has 2 numbers"),
    ],
)
def test_what_is_no_picture_is_refused(takes: str, steps: PixelSteps, sentence: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net ({takes}) => (int64[R] y) {{ y = Shape (x) }}'
    )
    with pytest.raises(ModelError, match=sentence.replace("(", r"\(")):
        fold_pixels(model, steps)
