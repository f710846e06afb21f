"""The changes that are tried: which, and what they do to a sample."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.lint.changes import changes_for, channel_axis, other_layout

TORCH, CAFFE = "ImageNet's mean and std", "Caffe's preprocessing (BGR, 0..255, less the mean)"
SIGNED = "÷ 127.5 − 1 (or (x − 127) ÷ 128)"
RANGES = {"unit": (0, 1), "signed": (-1, 1), "bytes": (0, 255), "torch": (-2.1, 2.6), "caffe": (-123, 150)}


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0, 1, ["× 255", "× 2 − 1", TORCH, CAFFE]),
        (-1, 1, ["(x + 1) ÷ 2", "(x + 1) × 127.5", TORCH, CAFFE]),
        (-0.992, 1, ["(x + 1) ÷ 2", "(x + 1) × 127.5", TORCH, CAFFE]),
        (0, 255, ["÷ 255", SIGNED, TORCH, CAFFE]),
        (-2.1, 2.6, ["× ImageNet's std + mean", "(× std + mean) × 255", "(× std + mean) × 2 − 1", CAFFE]),
        (-120, 30, ["Caffe's mean added, as RGB", "Caffe's mean added, as RGB, ÷ 255",
                    "Caffe's mean added, as RGB, ÷ 127.5 − 1", "ImageNet's mean and std instead of Caffe's"]),
        (-700, 30, ["÷ 255", "× 255"]),
    ],
)  # fmt: skip
def test_scales_that_are_tried_follow_from_the_values(low: float, high: float, words: list[str]) -> None:
    for shape in ((8, 8, 3), (3, 8, 8)):
        sample = np.zeros(shape, np.float32)
        assert [c.words for c in changes_for(sample, low, high) if c.code == "range"] == words


def test_scales_by_channel_need_three_channels_and_the_simpler_changes_come_first() -> None:
    grey = np.zeros((1, 8, 8), np.float32)
    assert [c.words for c in changes_for(grey, 0, 255) if c.code == "range"] == ["÷ 255", SIGNED]
    assert [c.words for c in changes_for(grey, -2.1, 2.6) if c.code == "range"] == ["÷ 255", "× 255"]
    assert [c.words for c in changes_for(np.zeros(7, np.float32), -1, 1)] == [
        "(x + 1) ÷ 2", "(x + 1) × 127.5", "× 255"
    ]  # fmt: skip
    codes = [c.code for c in changes_for(np.zeros((8, 8, 3), np.float32), 0, 255)]
    assert codes == ["range", "range", "channels", "layout", "layout", "range", "range"]


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 8, 8)])
def test_from_every_scale_to_every_other_and_back(shape: tuple[int, ...]) -> None:
    """Pixels as NumPy computes them by the books, against what the changes make of each other."""
    pixels = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    axis = shape.index(3)
    mean, std, bgr = (
        np.array(values).reshape([3 if at == axis else 1 for at in range(3)])
        for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], [103.939, 116.779, 123.68])
    )
    stored = {
        "unit": pixels / 255,
        "bytes": pixels,
        "signed": pixels / 127.5 - 1,
        "torch": (pixels / 255 - mean) / std,
        "caffe": np.flip(pixels, axis) - bgr,
    }
    for scale, (low, high) in RANGES.items():
        made = [c.apply(stored[scale].astype(np.float32)) for c in changes_for(pixels, low, high) if c.code == "range"]
        for other in stored.keys() - {scale}:
            assert any(np.allclose(each, stored[other], rtol=1e-3, atol=1e-3) for each in made), (scale, other)
    near = pixels / 128 - 127 / 128
    assert np.abs(near - stored["signed"]).max() < 0.008, "(x - 127) / 128 is no scale of its own"


def test_bytes_have_but_one_scale() -> None:
    assert {c.code for c in changes_for(np.zeros((8, 8, 3), np.uint8), 0, 255)} == {"channels", "layout"}


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 8, 8)])
def test_every_change_keeps_shape_and_dtype(shape: tuple[int, ...]) -> None:
    for low, high in ((0, 1), (-1, 1), (0, 255), (-2.1, 2.6), (-120, 30)):
        sample = np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)
        for change in changes_for(sample, low, high):
            changed = change.apply(sample)
            assert (changed.shape, changed.dtype.name, changed.flags["C_CONTIGUOUS"]) == (shape, "float32", True)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((32, 32, 3), 2), ((3, 32, 32), 0), ((49, 10, 1), 2), ((1, 28, 28), 0), ((8, 8, 16), None), ((7,), None),
     ((3, 3, 3), None), ((4, 100), None)],
)  # fmt: skip
def test_the_axis_of_channels(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis


def test_the_other_layout_undoes_a_reshape() -> None:
    picture = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    np.testing.assert_array_equal(other_layout(planes.reshape(4, 5, 3), 2), picture)
    np.testing.assert_array_equal(other_layout(picture.reshape(3, 4, 5), 0), planes)
