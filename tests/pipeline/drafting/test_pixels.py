"""What an input says of the pictures that it takes."""

from __future__ import annotations

import pytest

from calibration.data.source import InputSpec
from pipeline.drafting.pixels import SCALES, shape_of_pictures


@pytest.mark.parametrize(
    ("shape", "dtype", "resize", "channels", "layout"),
    [
        ((-1, 224, 192, 3), "float32", (224, 192), "rgb", "keep"),
        ((1, 3, 224, 192), "float32", (224, 192), "rgb", "nchw"),
        ((-1, 28, 28, 1), "uint8", (28, 28), "gray", "keep"),
        ((-1, 1, 32, 100), "float16", (32, 100), "gray", "nchw"),
        ((-1, 3, 32, 3), "float32", (3, 32), "rgb", "keep"),  # Ambiguous: as Keras and the plan's default have it.
    ],
)
def test_size_layout_and_channels(
    shape: tuple[int, ...], dtype: str, resize: tuple[int, ...], channels: str, layout: str
) -> None:
    known = shape_of_pictures(InputSpec("image", dtype, shape))
    options = known.options
    assert (options.resize, options.channels, options.layout, options.dtype) == (resize, channels, layout, dtype)
    assert known.questions == {}
    assert "if pictures were cropped in training" in known.notes[0]


def test_an_open_size_is_asked() -> None:
    known = shape_of_pictures(InputSpec("image", "float32", (-1, 3, -1, -1)))
    assert list(known.questions) == ["resize"]
    assert known.options.layout == "nchw"


def test_no_channels_are_a_question() -> None:
    assert list(shape_of_pictures(InputSpec("image", "float32", (-1, 8, 8, 5))).questions) == ["layout"]


def test_the_usual_scales_take_bytes_where_their_names_say() -> None:
    ends = {}
    for scale in SCALES:
        mean, std = (scale.mean or (0.0,))[0], (scale.std or (1.0,))[0]
        ends[scale.name] = tuple(round((byte * scale.scale - mean) / std, 2) for byte in (0, 255))
    assert ends["0 to 255"] == (0, 255)
    assert ends["0 to 1"] == (0, 1)
    assert ends["-1 to 1"] == (-1, 1)
    assert ends["ImageNet's mean and std, as torchvision"] == (-2.12, 2.25)
    assert ends["ImageNet's mean, BGR, as Caffe"] == (-103.94, 151.06)
