"""Masks: numbers of classes as pictures, brought through the pictures' preprocessing, refused with a sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.arrays import AnyArray
from calibration.data.batches import DataSource, InputSpec, Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError

HALVES = np.repeat([[0, 0, 3, 3]], 8, axis=0).repeat(3, axis=1).astype(np.uint8)
"""8 x 12 pixels: the left half is class 0, the right one 3."""
AS_STORED = Preprocess()


def scene(folder: Path, name: str, mask: AnyArray, size: tuple[int, int] = (8, 12)) -> None:
    for part, pixels in (("pictures", np.zeros((*size, 3), np.uint8)), ("masks", mask)):
        path = folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def opened(folder: Path, preprocess: Preprocess = AS_STORED, labels: str = "masks") -> Samples:
    spec = (InputSpec("x", "uint8", (-1, -1, -1, 3)),)
    return open_samples(DataSource(str(folder / "pictures"), labels=labels), spec, preprocess, folder)


def test_a_folder_of_masks_is_labels_also_of_sub_folders(tmp_path: Path) -> None:
    scene(tmp_path, "day/1.png", HALVES)
    scene(tmp_path, "night/1.png", HALVES + 1)
    labels = opened(tmp_path).labels()
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, [HALVES, HALVES + 1])
    assert np.array_equal(pickle.loads(pickle.dumps(opened(tmp_path))).labels(), labels)


def test_a_palette_is_its_numbers_and_16_bits_stay(tmp_path: Path) -> None:
    scene(tmp_path, "1.png", HALVES)
    palette = Image.fromarray(HALVES)
    palette.putpalette([200, 10, 10] * 256)
    palette.save(tmp_path / "masks/1.png")
    assert np.array_equal(opened(tmp_path).labels(), [HALVES])
    Image.fromarray(HALVES.astype(np.uint16) * 300).save(tmp_path / "masks/1.png")
    assert np.array_equal(opened(tmp_path).labels(), [HALVES.astype(np.uint16) * 300])


def test_what_is_done_to_the_picture_is_done_to_the_mask(tmp_path: Path) -> None:
    scene(tmp_path, "1.png", HALVES)
    half = opened(tmp_path, Preprocess(resize=(4, 6))).labels()
    assert np.array_equal(half[0], HALVES[::2, ::2])
    boxed = opened(tmp_path, Preprocess(resize=(12, 12), fit="letterbox", scale=0.1, dtype="uint8")).labels()
    assert np.array_equal(boxed[0], np.pad(HALVES, ((2, 2), (0, 0)), constant_values=255))
    cut = opened(tmp_path, Preprocess(crop=(4, 4))).labels()
    assert np.array_equal(cut[0], HALVES[2:6, 4:8])


def test_masks_within_the_pictures_folder_are_no_samples(tmp_path: Path) -> None:
    scene(tmp_path, "1.png", HALVES)
    (tmp_path / "masks").rename(tmp_path / "pictures/masks")
    assert opened(tmp_path, labels="pictures/masks").num_samples == 1


def test_another_mask_is_another_digest(tmp_path: Path) -> None:
    scene(tmp_path, "1.png", HALVES)
    before = opened(tmp_path).digest()
    scene(tmp_path, "1.png", HALVES + 1)
    assert opened(tmp_path).digest() != before


def without_mask(folder: Path) -> None:
    (folder / "masks/1.png").rename(folder / "masks/2.png")


def colours(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(folder / "masks/1.png")


def small(folder: Path) -> None:
    Image.fromarray(HALVES[:4]).save(folder / "masks/1.png")


def twice(folder: Path) -> None:
    Image.fromarray(HALVES).save(folder / "masks/1.bmp")


def empty(folder: Path) -> None:
    (folder / "masks/1.png").unlink()


def broken(folder: Path) -> None:
    (folder / "masks/1.png").write_bytes(b"no picture")


def sizes(folder: Path) -> None:
    scene(folder, "2.png", HALVES[:4], (4, 12))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_mask, r"masks: has no mask for the picture '1'; give one of the same name, such as 1\.png"),
        (colours, r"masks/1.png: is a mask of mode 'RGB', numbers of classes as gray or palette are expected"),
        (small, r"masks/1.png: is 12 x 4 pixels, the picture 1.png is 12 x 8; give a mask in the picture's size"),
        (twice, r"1.png: is a mask of the same name as 1.bmp; move one of the two away"),
        (empty, r"masks: holds no mask"),
        (broken, r"masks/1.png: cannot be read as a mask"),
        (sizes, r"masks/2.png: is \(4, 12\) after preprocessing, others are \(8, 12\), one size is expected"),
    ],
)
def test_what_is_no_mask_is_a_sentence(tmp_path: Path, spoil: Any, sentence: str) -> None:
    scene(tmp_path, "1.png", HALVES)
    spoil(tmp_path)
    with pytest.raises(DataError, match=sentence):
        opened(tmp_path).labels()
