"""Boxes from text files as YOLO's: for each picture one, with a line for each object: class, centre and size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from calibration.data.labels.boxes import LabelledBox
from calibration.data.labels.coco_json import ClassBoxes
from calibration.errors import DataError

MOST_CLASSES = 100_000
"""No list of classes has more; a larger number is a slip."""
LINE = "class, centre x, centre y, width and height as shares of the picture"


def read_yolo(folder: Path, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> ClassBoxes:
    """The boxes of those pictures, from ``folder/NAME.txt``; a picture without such a file has no objects.

    Raises:
        DataError: no picture has a file, a line is no box, a box lies out of its picture.
    """
    files = [folder / PurePosixPath(name).with_suffix(".txt") for name in names]
    if not any(file.is_file() for file in files):
        raise DataError(
            f"{folder}: has a file for none of the {len(names)} pictures; a text file of the same name, such as "
            f"{files[0].name}, is expected"
        )
    _check_names(folder, names, files)
    boxes = tuple(_boxes(file, size) if file.is_file() else () for file, size in zip(files, sizes, strict=True))
    if not any(boxes):
        raise DataError(f"{folder}: has no box for any of the {len(names)} pictures; give those that belong to them")
    num_classes = 1 + max(box.class_number for of_picture in boxes for box in of_picture)
    return ClassBoxes(tuple(map(str, range(num_classes))), boxes)


def _check_names(folder: Path, names: Sequence[str], files: Sequence[Path]) -> None:
    """That no picture without a file has one that is named a little otherwise: it would have no objects.

    Raises:
        DataError: a name differs in its case, or has the picture's ending before its own.
    """
    without = {name: file for name, file in zip(names, files, strict=True) if not file.is_file()}
    if not without:
        return
    by_name = {p.relative_to(folder).as_posix().lower(): p for p in folder.rglob("*") if p.suffix.lower() == ".txt"}
    for name, file in without.items():
        like = by_name.get(file.relative_to(folder).as_posix().lower()) or by_name.get(f"{name}.txt".lower())
        if like is not None and like not in files:
            raise DataError(f"{like}: is named otherwise than the picture '{name}'; rename it to {file.name}")


def _boxes(file: Path, size: tuple[int, int]) -> tuple[LabelledBox, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error}); replace it") from error
    return tuple(_box(line.split(), size, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip())


def _box(words: list[str], size: tuple[int, int], where: str) -> LabelledBox:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 5:
        raise DataError(f"{where}: is '{' '.join(words):.60}', five numbers are expected ({LINE}); correct it")
    if not math.isfinite(numbers[0]) or numbers[0] != int(numbers[0]) or not 0 <= numbers[0] < MOST_CLASSES:
        raise DataError(
            f"{where}: its class is {words[0]:.20}, a whole number from 0 to {MOST_CLASSES - 1} is expected; correct it"
        )
    if max(numbers[1:]) > 2:
        raise DataError(f"{where}: is '{' '.join(words):.60}', which is in pixels; write {LINE}")
    width, height = size
    left, top = (numbers[1] - numbers[3] / 2) * width, (numbers[2] - numbers[4] / 2) * height
    box_width, box_height = numbers[3] * width, numbers[4] * height
    number = int(numbers[0])
    box = LabelledBox(number, number, left, top, box_width, box_height, box_width * box_height)
    box.check(width, height, where)
    return box
