"""Preprocessing: one function for calibration and evaluation, small enough to be written into every report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from calibration.arrays import AnyArray
from calibration.errors import DataError

Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "hamming", "lanczos"]
Fit = Literal["stretch", "letterbox"]
Channels = Literal["keep", "rgb", "bgr", "gray"]
Layout = Literal["keep", "nhwc", "nchw"]
Dtype = Literal["keep", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"]


@dataclass(frozen=True)
class Preprocess:
    """What is done to a batch before the model sees it. The defaults do nothing.

    The order is fixed: decode, resize, crop, channels, (to float32 where one of the next three is asked), × scale,
    − mean, ÷ std, layout, dtype. The means are thus in the units after scaling.
    """

    resize: tuple[int, ...] = ()
    """One number: the shorter side becomes this, the aspect stays (the longer side rounds down, as in torchvision).
    Two: height and width, whatever the aspect."""
    fit: Fit = "stretch"
    """With two numbers of ``resize``: ``letterbox`` keeps the aspect and fills the rest, an odd margin with its extra
    line below and to the right, as YOLO's detectors are trained."""
    fill: float = 114.0
    """What ``letterbox`` fills with, in the units of the stored samples."""
    crop: tuple[int, ...] = ()
    """Height and width cut from the centre; an odd margin leaves its extra line below and to the right."""
    interpolation: Interpolation = "bilinear"
    """As in Pillow, which smooths when it shrinks (cv2 and tf.image.resize by default do not). ``area`` is its BOX."""
    channels: Channels = "keep"
    """Stored samples are taken as gray (1 channel) or RGB (3). ``gray`` is the luma of ITU-R BT.601."""
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    """One number, or one for each channel (the last axis, before ``layout``)."""
    std: tuple[float, ...] = ()
    """One number, or one for each channel (the last axis, before ``layout``)."""
    layout: Layout = "keep"
    """Stored samples are (N, H, W, C); ``nchw`` makes them (N, C, H, W)."""
    dtype: Dtype = "keep"
    """Floats become integers by rounding to the nearest; values that do not fit are an error, never wrapped."""
    inputs: tuple[str, ...] = ()
    """The model inputs that are preprocessed; empty for all. The others pass as stored."""

    def __post_init__(self) -> None:
        """Refuse options that no sample can satisfy.

        Raises:
            DataError: naming the option and its value.
        """
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise DataError(f"preprocess: {name} is {value!r}, one of {', '.join(choices)} is expected; choose one")
        _check_sizes("resize", self.resize, (1, 2))
        _check_sizes("crop", self.crop, (2,))
        if self.fit == "letterbox" and len(self.resize) != 2:
            raise DataError(
                f'preprocess: fit is "letterbox", resize of two (height, width) is expected, it is '
                f"{_numbers(self.resize)}; correct it"
            )
        for name, values in {"fill": (self.fill,), "scale": (self.scale,), "mean": self.mean, "std": self.std}.items():
            if not all(math.isfinite(value) for value in values):
                raise DataError(f"preprocess: {name} is {_numbers(values)}, finite numbers are expected; correct it")
        for name, values in {"scale": (self.scale,), "std": self.std}.items():
            if 0 in values:
                raise DataError(f"preprocess: {name} is {_numbers(values)}, a 0 in it leaves no signal; correct it")

    def describe(self) -> str:
        """One line for a person: every step that does something, in order."""
        steps = []
        if self.resize:
            target = "×".join(map(str, self.resize))
            words = f"resize the shorter side to {target}" if len(self.resize) == 1 else f"resize to {target}"
            if self.fit == "letterbox":
                words = f"fit into {target}, filled with {self.fill:g}"
            steps.append(f"{words} ({self.interpolation})")
        if self.crop:
            steps.append("crop the centre " + "×".join(map(str, self.crop)))
        if self.channels != "keep":
            steps.append(f"channels {self.channels}")
        if self.scale != 1.0:
            steps.append(f"× {self.scale:g}")
        if self.mean:
            steps.append(f"− {_numbers(self.mean)}")
        if self.std:
            steps.append(f"÷ {_numbers(self.std)}")
        if self.layout != "keep":
            steps.append(f"layout {self.layout}")
        if self.dtype != "keep":
            steps.append(f"dtype {self.dtype}")
        if not steps:
            return "none, samples are used as stored"
        return ", ".join(steps) + (f" (inputs {', '.join(self.inputs)})" if self.inputs else "")

    def of_bytes(self) -> Preprocess:
        """What is left to do where the network does the rest: scale, mean, std, the order of channels, layout, dtype.

        It makes bytes of bytes: gray and RGB stay as they are made, and the order of ``bgr`` is the network's.
        """
        return Preprocess(
            resize=self.resize,
            fit=self.fit,
            fill=self.fill,
            crop=self.crop,
            interpolation=self.interpolation,
            channels="rgb" if self.channels == "bgr" else self.channels,
            inputs=self.inputs,
        )

    def __call__(self, array: AnyArray, *, where: str = "array") -> AnyArray:
        """All steps but decoding, on (N, H, W, C) samples or, where no step needs an image, on (N, ...) of any kind.

        ``where`` is the file or array that messages name.

        Raises:
            DataError: the samples and the options do not fit each other; with the numbers of both.
        """
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise DataError(
                f"{where}: is {array.dtype} {array.shape}, numbers with a batch axis are expected; convert it"
            )
        if self.resize or self.crop or self.channels != "keep" or self.layout != "keep":
            _check_image(array, where)
        if self.resize and self.fit == "letterbox":
            array = self._letterboxed(array, where)
        elif self.resize:
            array = _resized(array, self.resized_size(array.shape[1:3]), self.interpolation, where)
        if self.crop:
            array = _cropped(array, self.crop, where)
        if self.channels != "keep":
            array = _with_channels(array, self.channels, where)
        array = self._normalized(array, where)
        if self.layout == "nchw":
            array = array.transpose(0, 3, 1, 2)
        return array if self.dtype == "keep" else _cast(array, self.dtype, where)

    def resized_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Height and width to which ``resize`` brings a picture of a size; without what ``letterbox`` fills."""
        if not self.resize:
            return size[0], size[1]
        if self.fit == "letterbox":
            ratio = min(self.resize[0] / max(size[0], 1), self.resize[1] / max(size[1], 1))
            return max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        shorter = max(min(size), 1)
        return size[0] * self.resize[0] // shorter, size[1] * self.resize[0] // shorter

    def _letterboxed(self, array: AnyArray, where: str) -> AnyArray:
        """As Ultralytics' LetterBox."""
        num, height, width, num_channels = array.shape
        inside = self.resized_size((height, width))
        fitted = _resized(array, inside, self.interpolation, where)
        framed = np.full((num, *self.resize, num_channels), self.fill, array.dtype)
        top, left = (self.resize[0] - inside[0]) // 2, (self.resize[1] - inside[1]) // 2
        framed[:, top : top + inside[0], left : left + inside[1]] = fitted
        return framed

    def _normalized(self, array: AnyArray, where: str) -> AnyArray:
        """(array × scale − mean) ÷ std in float32; untouched where none of the three is asked."""
        if self.scale == 1.0 and not self.mean and not self.std:
            return array
        with np.errstate(over="ignore"):  # An overflow becomes Inf, which the check of the batches reports.
            result: npt.NDArray[np.float32] = array.astype(np.float32) * np.float32(self.scale)
            for name, values in {"mean": self.mean, "std": self.std}.items():
                num_channels = array.shape[-1] if array.ndim > 1 else 1
                if len(values) not in (0, 1, num_channels):
                    raise DataError(
                        f"{where}: {name} has {len(values)} numbers, the samples {array.shape} have {num_channels} "
                        f"channel{'s' * (num_channels != 1)} on the last axis; give 1 or {num_channels}"
                    )
            if self.mean:
                result -= np.asarray(self.mean, np.float32)
            if self.std:
                result /= np.asarray(self.std, np.float32)
        return result


_CHOICES: dict[str, tuple[str, ...]] = {
    "interpolation": get_args(Interpolation),
    "fit": get_args(Fit),
    "channels": get_args(Channels),
    "layout": get_args(Layout),
    "dtype": get_args(Dtype),
}
_PILLOW_FILTER = {"area": "BOX"}
"""Pillow's name of a filter, where it is not ours in capitals."""


def decode_image(path: Path, channels: Channels, where: str) -> AnyArray:
    """A picture as uint8 (1, H, W, 1) or (1, H, W, 3), turned upright as its EXIF orientation says.

    With ``channels="keep"`` gray stays gray and RGB stays RGB, and anything else (palette, alpha, CMYK) is an error;
    with any other choice such a picture is first made RGB by Pillow, which drops alpha. Gray of 16 bits is uint16.

    Raises:
        DataError: not a whole image, or of a mode that would have to be guessed at.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as stored:
            mode, has_transparency = stored.mode, "transparency" in stored.info
            upright = ImageOps.exif_transpose(stored)
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: is too large an image ({error}); make it smaller") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error …
        raise DataError(f"{where}: cannot be read as an image ({error}); replace the file or drop it") from error
    if mode in ("L", "RGB"):
        picture = upright
    elif mode.startswith("I;16"):
        pixels = np.asarray(upright).astype(np.uint16)
        return pixels.reshape(1, *pixels.shape, 1)
    elif mode.startswith(("I", "F")):
        raise DataError(f"{where}: has pixels of mode '{mode}', 8 or 16 bits a channel are expected; convert the file")
    elif channels == "keep":
        raise DataError(f"{where}: is an image of mode '{mode}', gray or RGB is expected; set channels = \"rgb\"")
    else:
        picture = (upright.convert("RGBA") if has_transparency else upright).convert("RGB")
    pixels = np.asarray(picture)
    return pixels.reshape(1, *pixels.shape[:2], -1)


def _numbers(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _check_sizes(name: str, sizes: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    """An option that gives pixels: so many numbers, each at least 1."""
    if sizes and (len(sizes) not in lengths or min(sizes) < 1):
        expected = " or ".join("one number" if length == 1 else "two (height, width)" for length in lengths)
        raise DataError(f"preprocess: {name} is {_numbers(sizes)}, {expected} of at least 1 is expected; correct it")


def _check_image(array: AnyArray, where: str) -> None:
    if array.ndim != 4:
        raise DataError(
            f"{where}: is {array.dtype} {array.shape}, resize, crop, channels and layout take images (N, H, W, C); "
            "add the missing axis, or drop these options"
        )
    if array.shape[-1] > 4 and array.shape[1] in (1, 3, 4):
        raise DataError(
            f"{where}: is {array.dtype} {array.shape}, which looks like (N, C, H, W); resize, crop, channels and "
            "layout take (N, H, W, C); transpose the stored samples"
        )


def _resized(array: AnyArray, size: tuple[int, int], interpolation: str, where: str) -> AnyArray:
    """Every image to the asked size, channel by channel, in its own dtype."""
    from PIL import Image

    num, height, width, num_channels = array.shape
    if height == 0 or width == 0:
        raise DataError(f"{where}: is {array.dtype} {array.shape}, which has no pixels to resize; drop it")
    to_height, to_width = size
    if (to_height, to_width) == (height, width):
        return array
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise DataError(f"{where}: is {array.dtype}, resize takes uint8, uint16 or float32; convert the stored samples")
    kind = Image.Resampling[_PILLOW_FILTER.get(interpolation, interpolation.upper())]
    result = np.empty((num, to_height, to_width, num_channels), array.dtype)
    for i in range(num):
        for c in range(num_channels):
            plane = np.ascontiguousarray(array[i, :, :, c])
            wide = array.dtype == np.uint16  # Which Pillow's filters do not take.
            image = Image.fromarray(plane.astype(np.float32) if wide else plane)
            scaled = np.asarray(image.resize((to_width, to_height), kind))
            result[i, :, :, c] = np.clip(np.rint(scaled), 0, 65535) if wide else scaled
    return result


def _cropped(array: AnyArray, crop: tuple[int, ...], where: str) -> AnyArray:
    height, width = array.shape[1:3]
    if crop[0] > height or crop[1] > width:
        raise DataError(
            f"{where}: is {height}×{width} pixels before the crop, at least {crop[0]}×{crop[1]} is expected; "
            "make crop smaller, or resize first"
        )
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return array[:, top : top + crop[0], left : left + crop[1], :]


def _with_channels(array: AnyArray, channels: str, where: str) -> AnyArray:
    """Gray or RGB to the asked channels."""
    num_channels = array.shape[-1]
    if num_channels not in (1, 3):
        raise DataError(
            f'{where}: has {num_channels} channels {array.shape}, channels = "{channels}" takes 1 (gray) or 3 (RGB) on '
            "the last axis; drop the option, or store (N, H, W, C)"
        )
    if channels == "gray":
        return array if num_channels == 1 else _luma(array)
    if num_channels == 1:
        return np.repeat(array, 3, axis=-1)
    return array if channels == "rgb" else array[..., ::-1]


def _luma(array: AnyArray) -> AnyArray:
    """ITU-R BT.601 luma of RGB; integers are rounded to the nearest."""
    luma: npt.NDArray[np.float64] = (array.astype(np.float64) * (0.299, 0.587, 0.114)).sum(axis=-1, keepdims=True)
    return (luma if array.dtype.kind == "f" else np.rint(luma)).astype(array.dtype)


def _cast(array: AnyArray, dtype: str, where: str) -> AnyArray:
    """To the asked dtype, with an error where a value would not survive."""
    target = np.dtype(dtype)
    if target.kind == "f" or array.dtype == target:
        with np.errstate(over="ignore"):  # An overflow becomes Inf, which the check of the batches reports.
            return array.astype(target)
    rounded = np.rint(array) if array.dtype.kind == "f" else array
    bounds = np.iinfo(target)
    low, high = (rounded.min(), rounded.max()) if array.size else (0, 0)
    # Python's exact comparison: 2**63 as a float is above int64's largest value, though NumPy rounds them to equal.
    if not (math.isfinite(low) and math.isfinite(high) and int(low) >= bounds.min and int(high) <= bounds.max):
        raise DataError(
            f"{where}: has values from {low:g} to {high:g} after preprocessing, {dtype} holds {bounds.min} to "
            f"{bounds.max}; correct scale and mean, or choose another dtype"
        )
    return rounded.astype(target)
