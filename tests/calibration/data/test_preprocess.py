"""Preprocessing: each step alone on numbers one can check by eye, the order of the steps, and every refusal."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calibration.arrays import AnyArray
from calibration.data.preprocess import Preprocess, decode_image
from calibration.errors import DataError

RGB = np.array([[[[10, 20, 30], [40, 50, 60]]]], np.uint8)  # (1, 1, 2, 3): two pixels


def test_the_defaults_do_nothing() -> None:
    assert Preprocess()(RGB) is RGB
    assert Preprocess().describe() == "none, samples are used as stored"


def test_describe_names_every_step_in_the_order_it_is_done() -> None:
    everything = Preprocess(
        resize=(256,),
        crop=(224, 200),
        interpolation="bicubic",
        channels="bgr",
        scale=0.5,
        mean=(1.0, 2.0, 3.0),
        std=(4.0,),
        layout="nchw",
        dtype="float16",
        inputs=("image",),
    )
    assert everything.describe() == (
        "resize the shorter side to 256 (bicubic), crop the centre 224×200, channels bgr, × 0.5, − [1, 2, 3], ÷ [4], "
        "layout nchw, dtype float16 (inputs image)"
    )
    assert Preprocess(resize=(8, 6)).describe() == "resize to 8×6 (bilinear)"


def test_it_is_plain_data_for_a_report() -> None:
    assert json.loads(json.dumps(asdict(Preprocess(mean=(1.5,)))))["mean"] == [1.5]


def test_scale_comes_before_mean_and_mean_before_std() -> None:
    result = Preprocess(scale=0.1, mean=(1.0,), std=(2.0,))(RGB)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[0, 0, 0], [0.0, 0.5, 1.0], atol=1e-6)


def test_mean_and_std_go_by_channel_before_the_layout_changes() -> None:
    result = Preprocess(mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 3.0), layout="nchw")(RGB)
    assert result.shape == (1, 3, 1, 2)
    np.testing.assert_array_equal(result[0, :, 0, 1], [30.0, 15.0, 10.0])


def test_mean_goes_by_the_channels_after_they_were_swapped() -> None:
    result = Preprocess(channels="bgr", mean=(30.0, 20.0, 10.0))(RGB)
    np.testing.assert_array_equal(result[0, 0, 0], [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("channels", "stored", "expected"),
    [
        ("rgb", RGB[:, :, :1], [[10, 20, 30]]),
        ("bgr", RGB[:, :, :1], [[30, 20, 10]]),
        ("gray", RGB[:, :, :1], [[18]]),  # 0.299·10 + 0.587·20 + 0.114·30 = 18.15
        ("rgb", RGB[:, :, :1, :1], [[10, 10, 10]]),
        ("bgr", RGB[:, :, :1, :1], [[10, 10, 10]]),
        ("gray", RGB[:, :, :1, :1], [[10]]),
    ],
)
def test_channels(channels: Any, stored: AnyArray, expected: list[list[int]]) -> None:
    result = Preprocess(channels=channels)(stored)
    assert result.dtype == np.uint8
    assert result[0, 0].tolist() == expected


def test_gray_of_floats_is_not_rounded() -> None:
    result = Preprocess(channels="gray")(RGB.astype(np.float32))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[0, 0, 0], [18.15], rtol=1e-6)


def test_gray_is_pillows_gray() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    ours = Preprocess(channels="gray")(pixels[None])[0, :, :, 0].astype(int)
    theirs = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)
    assert np.abs(ours - theirs).max() <= 1  # Pillow works in 16-bit fixed point.


def test_crop_takes_the_centre() -> None:
    rows = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1).repeat(4, axis=2)  # (1, 5, 4, 1): value = row
    result = Preprocess(crop=(2, 2))(rows)
    assert result.shape == (1, 2, 2, 1)
    assert result[0, :, 0, 0].tolist() == [1.0, 2.0]  # The odd line of the margin stays below.


@pytest.mark.parametrize(
    ("stored", "resize", "expected"),
    [
        ((6, 4), (2,), (3, 2)),
        ((4, 6), (2,), (2, 3)),
        ((5, 7), (3,), (3, 4)),  # 7 · 3 / 5 = 4.2, rounded down
        ((6, 4), (3, 8), (3, 8)),
        ((6, 4), (4,), (6, 4)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_shapes(stored: tuple[int, int], resize: tuple[int, ...], expected: tuple[int, int], dtype: Any) -> None:
    result = Preprocess(resize=resize)(np.full((2, *stored, 3), 7, dtype))
    assert result.shape == (2, *expected, 3)
    assert result.dtype == dtype
    assert (result == 7).all()


def test_area_is_the_mean_of_the_pixels_and_nearest_is_one_of_them() -> None:
    pixels = np.array([[0, 10], [20, 30]], np.float32).reshape(1, 2, 2, 1)
    assert Preprocess(resize=(1, 1), interpolation="area")(pixels).item() == 15.0
    assert Preprocess(resize=(1, 1), interpolation="nearest")(pixels).item() in (0.0, 10.0, 20.0, 30.0)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "area", "hamming", "lanczos"])
def test_resize_of_an_array_is_pillows_resize_of_the_image(interpolation: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    ours = Preprocess(resize=(4, 5), interpolation=interpolation)(pixels[None])[0]
    filters = {"area": "BOX"}
    kind = Image.Resampling[filters.get(interpolation, interpolation.upper())]
    np.testing.assert_array_equal(ours, np.asarray(Image.fromarray(pixels).resize((5, 4), kind)))


def test_arrays_that_are_no_images_are_normalized_too() -> None:
    mfcc = np.full((2, 49, 10, 1), 4.0, np.float64)
    result = Preprocess(scale=0.5, mean=(1.0,), std=(2.0,))(mfcc)
    assert result.dtype == np.float32
    assert result.shape == (2, 49, 10, 1)
    np.testing.assert_array_equal(result, 0.5)
    assert Preprocess(mean=(1.0, 2.0))(np.array([[1, 2]], np.int32)).tolist() == [[0.0, 0.0]]
    assert Preprocess(scale=2.0)(np.array([3], np.int64)).tolist() == [6.0]


def test_a_cast_to_integers_rounds_and_never_wraps() -> None:
    assert Preprocess(dtype="uint8")(np.array([[0.4, 0.6, 255.4]])).tolist() == [[0, 1, 255]]
    assert Preprocess(dtype="int8")(np.array([[-128, 127]], np.int64)).tolist() == [[-128, 127]]
    with pytest.raises(DataError, match=r"pixels: has values from 0 to 256 .* uint8 holds 0 to 255"):
        Preprocess(dtype="uint8")(np.array([[0.0, 255.6]]), where="pixels")
    with pytest.raises(DataError, match="int64 holds"):
        Preprocess(dtype="int64")(np.array([[2.0**63]]))
    with pytest.raises(DataError, match="uint8 holds"):
        Preprocess(dtype="uint8")(np.array([[np.nan]]))


@given(st.lists(st.floats(-1e4, 1e4), min_size=1), st.sampled_from(["int8", "uint8", "int16"]))
def test_a_cast_is_the_nearest_integer_or_an_error(values: list[float], dtype: Any) -> None:
    stored = np.array([values])
    bounds = np.iinfo(dtype)
    if np.rint(stored).min() >= bounds.min and np.rint(stored).max() <= bounds.max:
        assert np.abs(Preprocess(dtype=dtype)(stored).astype(float) - stored).max() <= 0.5
    else:
        with pytest.raises(DataError, match="holds"):
            Preprocess(dtype=dtype)(stored)


def test_an_overflow_to_infinity_is_left_for_the_check_of_the_batches() -> None:
    assert np.isinf(Preprocess(dtype="float16")(np.array([1e6]))).all()
    assert np.isinf(Preprocess(scale=1e30)(np.array([1e30]))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": (1, 2, 3)}, r"resize is \[1, 2, 3\], one number or two \(height, width\)"),
        ({"resize": (0,)}, r"resize is \[0\]"),
        ({"resize": (8,), "fit": "letterbox"}, r'fit is "letterbox", resize of two \(height, width\)'),
        ({"fill": float("nan")}, r"fill is \[nan\], finite"),
        ({"crop": (224,)}, r"crop is \[224\], two \(height, width\)"),
        ({"crop": (4, -1)}, r"crop is \[4, -1\]"),
        ({"std": (1.0, 0.0, 1.0)}, r"std is \[1, 0, 1\], a 0 in it"),
        ({"scale": 0.0}, r"scale is \[0\], a 0 in it"),
        ({"scale": float("nan")}, r"scale is \[nan\], finite"),
        ({"mean": (float("inf"),)}, r"mean is \[inf\], finite"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic', one of nearest, bilinear, bicubic"),
        ({"channels": "bgra"}, "channels is 'bgra', one of keep, rgb"),
        ({"layout": "chw"}, "layout is 'chw', one of keep, nhwc"),
        ({"dtype": "fp32"}, "dtype is 'fp32', one of keep, float16"),
    ],
)
def test_options_that_nothing_can_satisfy_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^preprocess: {message}"):
        Preprocess(**options)


@pytest.mark.parametrize(
    ("options", "stored", "message"),
    [
        ({"crop": (3, 1)}, RGB, r"is 1×2 pixels before the crop, at least 3×1"),
        ({"crop": (1, 3)}, RGB, r"at least 1×3 is expected"),
        ({"mean": (1.0, 2.0, 3.0)}, RGB[..., :1], r"mean has 3 numbers, the samples \(1, 1, 2, 1\) have 1 channel on"),
        ({"std": (1.0, 2.0)}, RGB, r"std has 2 numbers, .* have 3 channels .* give 1 or 3"),
        ({"channels": "rgb"}, RGB[..., :2], r"has 2 channels .* takes 1 \(gray\) or 3"),
        (
            {"resize": (2,)},
            RGB[0],
            r"is uint8 \(1, 2, 3\), resize, crop, channels and layout take images \(N, H, W, C\)",
        ),
        ({"layout": "nchw"}, np.zeros((2, 10), np.float32), r"is float32 \(2, 10\), .* take images"),
        ({"resize": (2,)}, np.zeros((1, 3, 8, 8), np.uint8), r"looks like \(N, C, H, W\)"),
        ({"resize": (2,)}, RGB.astype(np.float64), "is float64, resize takes uint8, uint16 or float32"),
        ({"resize": (2,)}, np.zeros((1, 0, 3, 1), np.uint8), "no pixels to resize"),
        ({}, np.array(["a"]), "numbers with a batch axis are expected"),
        ({}, np.float32(1.0), "numbers with a batch axis are expected"),
    ],
)
def test_samples_that_do_not_fit_are_named_with_both_numbers(options: Any, stored: AnyArray, message: str) -> None:
    with pytest.raises(DataError, match=rf"^calib\.npz: .*{message}"):
        Preprocess(**options)(np.asarray(stored), where="calib.npz")


def png(folder: Path, pixels: AnyArray, mode: str | None = None, **options: Any) -> Path:
    """A PNG file of these pixels, converted to a mode of Pillow."""
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(folder / "image.png", **options)
    return folder / "image.png"


def test_gray_and_rgb_images_stay_what_they_are(tmp_path: Path) -> None:
    gray = decode_image(png(tmp_path, RGB[0, :, :, 0]), "keep", "image.png")
    assert gray.dtype == np.uint8
    assert gray.tolist() == [[[[10], [40]]]]
    np.testing.assert_array_equal(decode_image(png(tmp_path, RGB[0]), "keep", "image.png"), RGB)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_other_modes_are_converted_only_where_channels_are_asked(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).convert(mode).save(path)
    with pytest.raises(DataError, match=rf"cat: is an image of mode '{mode}', gray or RGB is expected; set channels"):
        decode_image(path, "keep", "cat")
    np.testing.assert_array_equal(decode_image(path, "rgb", "cat"), np.full((1, 4, 4, 3), 255))


def test_a_transparent_palette_is_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(RGB[0]).convert("P")
    image.save(tmp_path / "p.png", transparency=bytes([0, 128]))
    assert decode_image(tmp_path / "p.png", "rgb", "p").shape == (1, 1, 2, 3)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 65536, (6, 8), dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(stored).save(tmp_path / name)
        pixels = decode_image(tmp_path / name, "keep", name)
        assert pixels.dtype == np.uint16
        np.testing.assert_array_equal(pixels[0, :, :, 0], stored)
    half = Preprocess(resize=(3, 4), interpolation="area")(pixels)
    assert half.dtype == np.uint16
    np.testing.assert_allclose(
        half[0, :, :, 0].astype(np.float64), stored.reshape(3, 2, 4, 2).mean(axis=(1, 3)), atol=0.51
    )


def test_thirty_two_bits_are_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match="8 or 16 bits a channel are expected"):
        decode_image(tmp_path / "deep.tif", "keep", "deep.tif")


@pytest.mark.parametrize(
    ("stored", "inside", "at"), [((40, 80), (5, 10), (2, 0)), ((80, 40), (10, 5), (0, 2)), ((20, 20), (10, 10), (0, 0))]
)
def test_letterbox_keeps_the_aspect_and_fills_the_rest(
    stored: tuple[int, int], inside: tuple[int, int], at: tuple[int, int]
) -> None:
    framed = Preprocess(resize=(10, 10), fit="letterbox")(np.full((1, *stored, 3), 200, np.uint8))
    expected = np.full((10, 10, 3), 114, np.uint8)
    expected[at[0] : at[0] + inside[0], at[1] : at[1] + inside[1]] = 200
    np.testing.assert_array_equal(framed[0], expected)


def test_letterbox_fills_with_what_is_asked_for() -> None:
    preprocess = Preprocess(resize=(4, 2), fit="letterbox", fill=0.5)
    framed = preprocess(np.ones((1, 2, 2, 1), np.float32))
    assert framed[0, :, :, 0].tolist() == [[0.5, 0.5], [1, 1], [1, 1], [0.5, 0.5]]
    assert preprocess.describe() == "fit into 4×2, filled with 0.5 (bilinear)"


def test_exif_turns_the_image_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: rotate by 270 degrees to view.
    path = png(tmp_path, RGB[0], exif=exif)
    assert decode_image(path, "keep", "image.png")[0, :, 0].tolist() == [[10, 20, 30], [40, 50, 60]]


@pytest.mark.parametrize("num_kept", [0, 20, 200])
def test_a_cut_image_is_one_sentence(tmp_path: Path, num_kept: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(stream.getvalue()[:num_kept])
    with pytest.raises(DataError, match=r"^data/cut\.jpg: cannot be read as an image .* replace the file or drop it$"):
        decode_image(tmp_path / "cut.jpg", "keep", "data/cut.jpg")


def test_an_image_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = png(tmp_path, np.zeros((64, 64), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"^bomb\.png: is too large an image"):
        decode_image(path, "keep", "bomb.png")
