"""Where a picture lies in what the network sees of it after resize, letterbox and crop, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError

TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations of pictures that lie on their side."""


@dataclass(frozen=True)
class PictureFrame:
    """A picture in the network's input, all in pixels: input = picture × scale + offset."""

    width: float
    height: float
    """Of the picture."""
    input_width: float
    input_height: float
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


@dataclass(frozen=True)
class Geometry:
    """What preprocessing does to the places of a picture."""

    preprocess: Preprocess

    def frame(self, width: int, height: int) -> PictureFrame:
        """Where a picture of a size, upright, goes."""
        wanted = self.preprocess
        size = self.preprocess.resized_size((height, width))
        scale_y, scale_x = size[0] / height, size[1] / width
        top = left = 0
        if wanted.resize and wanted.fit == "letterbox":
            top, left = (wanted.resize[0] - size[0]) // 2, (wanted.resize[1] - size[1]) // 2
            size = wanted.resize[0], wanted.resize[1]
        if wanted.crop:
            top, left = top - (size[0] - wanted.crop[0]) // 2, left - (size[1] - wanted.crop[1]) // 2
            size = wanted.crop[0], wanted.crop[1]
        return PictureFrame(width, height, size[1], size[0], scale_x, scale_y, left, top)

    def of_mask(self, pixels: AnyArray, fill: int, where: str) -> AnyArray:
        """(H, W) numbers as the picture is resized, filled and cropped, each pixel the nearest."""
        whole = self.preprocess
        places = Preprocess(
            resize=whole.resize, fit=whole.fit, fill=float(fill), crop=whole.crop, interpolation="nearest"
        )
        return places(pixels[np.newaxis, :, :, np.newaxis], where=where)[0, :, :, 0]


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture, upright as its EXIF orientation says; its pixels are not decoded.

    Raises:
        DataError: it is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as stored:
            width, height = stored.size
            lies = stored.getexif().get(0x0112) in TRANSPOSED
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error …
        raise DataError(f"{path}: cannot be read as an image ({error}); replace the file or drop it") from error
    return (height, width) if lies else (width, height)
