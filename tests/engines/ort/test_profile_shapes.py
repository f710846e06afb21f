"""Shape ranges for the inputs of segments, whichever these are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.contract import BuildOptions, ShapeRange
from engines.errors import EngineError
from engines.ort.profile_shapes import profile_options

SaveModel = Callable[[str], Path]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
MIDDLE = f"""{HEAD} g (float[N, 3, H, 8] image, float[4] fixed) => (float[N, 2] y, int64[2, K] where)
<float[6, 3, 1, 1] w = {{{", ".join("1" * 18)}}}, int64[2] to = {{0, -1}},
 int64[2] first = {{0, 0}}, int64[2] second = {{9, 2}}, int64[2] axes = {{0, 1}}>
{{
    [conv] c = Conv(image, w)
    [flat] f = Reshape(c, to)
    [cut] y = Slice(f, first, second, axes)
    [non] where = NonZero(y)
}}"""
RANGE = ShapeRange((1, 3, 4, 8), (2, 3, 8, 8), (9, 3, 16, 8))


def parsed(text: str) -> dict[str, list[str]]:
    """As the provider reads it: parts between commas, name and shape between which the first colon stands."""
    shapes: dict[str, list[str]] = {}
    for part in text.split(","):
        name, _, shape = part.partition(":")
        shapes.setdefault(name, []).append(shape)
    return shapes


@pytest.fixture
def middle(save_model: SaveModel) -> Path:
    return save_model(MIDDLE)


def test_every_tensor_that_varies_has_a_range(middle: Path) -> None:
    found = profile_options(middle, BuildOptions(shapes={"image": RANGE}))
    assert parsed(found["trt_profile_min_shapes"]) == {
        "image": ["1x3x4x8"],
        "c": ["1x6x4x8"],
        "f": ["1x192"],
        "y": ["1x2"],
    }
    assert parsed(found["trt_profile_opt_shapes"]) == {
        "image": ["2x3x8x8"],
        "c": ["2x6x8x8"],
        "f": ["2x384"],
        "y": ["2x2"],
    }
    assert parsed(found["trt_profile_max_shapes"]) == {
        "image": ["9x3x16x8"],
        "c": ["9x6x16x8"],
        "f": ["9x768"],
        "y": ["9x2"],
    }


def test_what_depends_on_values_has_none(middle: Path) -> None:
    assert "where" not in profile_options(middle, BuildOptions(shapes={"image": RANGE}))["trt_profile_max_shapes"]


def test_several_profiles_stand_one_after_the_other(middle: Path) -> None:
    more = {"image": ShapeRange((16, 3, 4, 8), (32, 3, 4, 8), (64, 3, 4, 8))}
    found = profile_options(middle, BuildOptions(shapes={"image": RANGE}, more_shapes=(more,)))
    assert {name: parsed(text)["c"] for name, text in found.items()} == {
        "trt_profile_min_shapes": ["1x6x4x8", "16x6x4x8"],
        "trt_profile_opt_shapes": ["2x6x8x8", "32x6x4x8"],
        "trt_profile_max_shapes": ["9x6x16x8", "64x6x4x8"],
    }


def test_fixed_shapes_need_none(save_model: SaveModel) -> None:
    assert (
        profile_options(save_model(f"{HEAD} g (float[2, 3] x) => (float[2, 3] y) {{ y = Relu(x) }}"), BuildOptions())
        == {}
    )


def test_an_input_without_a_range_is_named(middle: Path) -> None:
    with pytest.raises(
        EngineError, match=r"input 'image' is \(\?, 3, \?, 8\), and no shape range is given for it; give"
    ):
        profile_options(middle, BuildOptions())


def test_a_name_that_the_provider_could_not_read(save_model: SaveModel) -> None:
    import onnx

    model = save_model(f"{HEAD} g (float[N, 3] x) => (float[N, 3] y) {{ [r] y = Relu(x) [s] z = Neg(x) }}")
    proto = onnx.load(model)
    proto.graph.node[1].output[0] = "z:0"
    onnx.save(proto, model)
    shapes = {"x": ShapeRange((1, 3), (2, 3), (4, 3))}
    assert "z" not in profile_options(model, BuildOptions(shapes=shapes))["trt_profile_min_shapes"]
    proto.graph.input[0].name = proto.graph.node[0].input[0] = proto.graph.node[1].input[0] = "x:0"
    onnx.save(proto, model)
    with pytest.raises(
        EngineError, match=r"input 'x:0' is .* cannot be told ranges of a name with ':' or ','; export it"
    ):
        profile_options(model, BuildOptions(shapes={"x:0": shapes["x"]}))
