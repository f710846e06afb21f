"""Masks: pictures whose pixels are numbers of classes, brought to the size in which the network answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.picture_frame import Geometry, picture_size
from calibration.errors import DataError
from calibration.file_digest import file_digest

SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
"""Pictures that lose nothing; a JPEG's pixels are no numbers of classes."""
IGNORED = 255
"""The number of pixels that are not judged, as in Pascal VOC and Cityscapes; also of what a letterbox adds."""


@dataclass(frozen=True)
class MaskFiles:
    """One mask for each picture, read when it is asked for."""

    masks: tuple[Path, ...]
    pictures: tuple[Path, ...]
    geometry: Geometry
    """What is done to the pictures, and so to the masks, of whose pixels each then is the nearest."""

    def read(self) -> AnyArray:
        """(N, H, W) of uint8 or uint16.

        Raises:
            DataError: a mask is no picture of numbers, has another size than its picture, or than other masks after
                preprocessing.
        """
        framed = []
        for mask, picture in zip(self.masks, self.pictures, strict=True):
            pixels = _numbers_in(mask)
            width, height = picture_size(picture)
            if pixels.shape != (height, width):
                raise DataError(
                    f"{mask}: is {pixels.shape[1]} x {pixels.shape[0]} pixels, the picture {picture.name} is "
                    f"{width} x {height}; give a mask in the picture's size"
                )
            framed.append(self.geometry.of_mask(pixels, IGNORED, str(mask)))
            if framed[-1].shape != framed[0].shape:
                raise DataError(
                    f"{mask}: is {framed[-1].shape} after preprocessing, others are {framed[0].shape}, one size is "
                    "expected; set resize and crop in [data.preprocess]"
                )
        return np.stack([mask.astype(np.result_type(*{mask.dtype for mask in framed})) for mask in framed])

    def update(self, digest: hashlib._Hash) -> None:
        """Feed the files' digests into a hash."""
        for mask in self.masks:
            digest.update(file_digest(mask))


def mask_files(folder: Path, names: Sequence[str], root: Path, geometry: Geometry) -> MaskFiles:
    """The masks below a folder for pictures below a root: of the same name, but for its ending.

    Args:
        folder: with the masks.
        names: of the pictures, below the root, as POSIX paths.
        root: the pictures' folder.
        geometry: what is done to the pictures.

    Raises:
        DataError: a picture has no mask, or two.
    """
    by_stem: dict[str, Path] = {}
    for path in sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in by_stem:
            raise DataError(f"{path}: is a mask of the same name as {by_stem[stem].name}; move one of the two away")
        by_stem[stem] = path
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    if without := [stem for stem in stems if stem not in by_stem]:
        more = f", nor for {len(without) - 1} more" if len(without) > 1 else ""
        raise DataError(
            f"{folder}: has no mask for the picture '{without[0]}'{more}; give one of the same name, such as "
            f"{without[0]}.png"
        )
    return MaskFiles(tuple(by_stem[stem] for stem in stems), tuple(root / name for name in names), geometry)


def _numbers_in(path: Path) -> AnyArray:
    """(H, W): a palette's indices, or gray values."""
    from PIL import Image

    try:
        with Image.open(path) as stored:
            mode = stored.mode
            pixels = np.asarray(stored)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error …
        raise DataError(f"{path}: cannot be read as a mask ({error}); replace it") from error
    if mode in ("P", "L", "1"):
        return pixels.astype(np.uint8)
    if mode.startswith("I;16"):
        return pixels.astype(np.uint16)
    raise DataError(
        f"{path}: is a mask of mode '{mode}', numbers of classes as gray or palette are expected; convert colours to "
        "numbers"
    )
