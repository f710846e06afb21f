"""Boxes from a JSON file as COCO's: images, categories and annotations, each strictly as the format says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from calibration.data.labels.boxes import LabelledBox
from calibration.errors import DataError

LISTS = ("images", "categories", "annotations")
LARGEST_ID = 2**31
"""Of a category; each below it is the same number in a table of floats."""


@dataclass(frozen=True)
class ClassBoxes:
    """The names of the classes, and the boxes of each picture."""

    classes: tuple[str, ...]
    boxes: tuple[tuple[LabelledBox, ...], ...]


def read_coco(path: Path, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> ClassBoxes:
    """The boxes of those pictures; the file may have more.

    Args:
        path: the file.
        names: of the pictures, as POSIX paths below their folder; ``file_name`` is such a path, or its last part.
        sizes: width and height of each.

    Raises:
        DataError: the file is no such, a picture is not in it, a category is missing, a box lies out of its picture.
    """
    lists = _lists(path)
    ids = _category_ids(path, lists["categories"])
    entries = _entries(path, lists["images"], names)
    boxes: dict[Any, list[LabelledBox]] = {entry["id"]: [] for entry in entries}
    size_of = {entry["id"]: size for entry, size in zip(entries, sizes, strict=True)}
    for entry, (width, height), name in zip(entries, sizes, names, strict=True):
        listed = entry.get("width", width), entry.get("height", height)
        if listed != (width, height):
            raise DataError(
                f"{path}: says that '{name}' is {listed[0]!s:.20} x {listed[1]!s:.20} pixels, it is {width} x "
                f"{height}; give the picture that the boxes are of"
            )
    known = {image.get("id") for image in lists["images"]}
    for number, annotation in enumerate(lists["annotations"]):
        where = f"{path}: annotation {annotation.get('id', number)}"
        image = _needed(annotation, "image_id", where)
        if not isinstance(image, (int, str)) or image not in known:
            raise DataError(f"{where}: is of image {image!r:.60}, which 'images' does not have; correct it")
        if image in boxes:
            box = _box(annotation, ids, where)
            box.check(*size_of[image], where)
            boxes[image].append(box)
    if not any(boxes.values()):
        raise DataError(f"{path}: has no box in any of the {len(names)} pictures; give the file that belongs to them")
    _check_are_pixels(path, [box for of_picture in boxes.values() for box in of_picture])
    class_names = tuple(str(category.get("name", category["id"])) for category in _in_order(lists["categories"]))
    return ClassBoxes(class_names, tuple(tuple(boxes[entry["id"]]) for entry in entries))


def _check_are_pixels(path: Path, boxes: Sequence[LabelledBox]) -> None:
    """That not every box lies within the first pixel, as shares of the picture do.

    Raises:
        DataError: every one does.
    """
    far = max(max(box.left + box.width, box.top + box.height) for box in boxes)
    if far <= 1:
        raise DataError(
            f"{path}: no box goes beyond {far:.3g}, as if they were shares of the picture; write [left, top, width, "
            "height] in its pixels"
        )


def _lists(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); correct the path or the file") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no COCO file, an object with {', '.join(LISTS)} is expected; give such a file")
    for name in LISTS:
        entries = content.get(name)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: has no list '{name}' of objects, as COCO's files have; add it")
        if name != "annotations" and not entries:
            raise DataError(f"{path}: its list '{name}' is empty; give a file that has some")
    return {name: content[name] for name in LISTS}


def _category_ids(path: Path, categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Id -> number from 0, in the order of the ids."""
    for number, category in enumerate(categories):
        if not isinstance(category.get("id"), int) or not 0 <= category["id"] < LARGEST_ID:
            raise DataError(f"{path}: category {number} has no 'id' from 0 to {LARGEST_ID - 1}; add it")
    ids = [category["id"] for category in _in_order(categories)]
    if twice := [first for first, second in pairwise(ids) if first == second]:
        raise DataError(f"{path}: has two categories of id {twice[0]}; correct one")
    return {class_id: number for number, class_id in enumerate(ids)}


def _in_order(categories: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(categories, key=lambda category: int(category["id"]))


def _entries(path: Path, images: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The entry of each picture, by its path; where no path is there, by its file's name where that is unique.

    Two entries that are not the same are two images: of one path or id, the boxes of one would be the other's.
    """
    by_path: dict[str, Mapping[str, Any]] = {}
    by_id: dict[int | str, Mapping[str, Any]] = {}
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for number, image in enumerate(images):
        where = f"{path}: image {image.get('id', number)}"
        file = PurePosixPath(str(_needed(image, "file_name", where)))
        if not isinstance(_needed(image, "id", where), (int, str)):
            raise DataError(f"{where}: its 'id' is no number; correct it")
        for what, first in (
            (f"path {file}", by_path.setdefault(file.as_posix(), image)),
            (f"id {image['id']}", by_id.setdefault(image["id"], image)),
        ):
            if first != image:
                raise DataError(f"{path}: lists two images of {what:.80}; drop one, or correct it")
        if by_path[file.as_posix()] is image:
            by_name.setdefault(file.name, []).append(image)
    entries, missing = [], []
    has_paths = any(name in by_path for name in names)
    for name in names:
        of_name = [] if has_paths else by_name.get(PurePosixPath(name).name, [])
        entry = by_path.get(name) or (of_name[0] if len(of_name) == 1 else None)
        if entry is None:
            missing.append(name)
        else:
            entries.append(entry)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{path}: has no image '{missing[0]}'{more} among its {len(images)}; an image without objects is listed "
            "too: add it, or take the picture away"
        )
    if len({id(entry) for entry in entries}) < len(entries):
        raise DataError(f"{path}: several pictures have the name of one image; write paths into 'file_name'")
    return entries


def _box(annotation: Mapping[str, Any], ids: Mapping[int, int], where: str) -> LabelledBox:
    class_id = _needed(annotation, "category_id", where)
    if not isinstance(class_id, int) or class_id not in ids:
        raise DataError(
            f"{where}: is of category {class_id!r:.60}, which 'categories' does not have; add it to the file, or drop "
            "the annotation"
        )
    corners = _needed(annotation, "bbox", where)
    numbers = [_number(value) for value in corners] if isinstance(corners, list) else []
    if len(numbers) != 4 or None in numbers:
        raise DataError(f"{where}: its 'bbox' is {corners!s:.60}, [left, top, width, height] is expected; correct it")
    left, top, width, height = (number for number in numbers if number is not None)
    area = _number(annotation.get("area", width * height))
    if area is None:
        raise DataError(f"{where}: its 'area' is {annotation['area']!s:.60}, a number is expected; correct it")
    is_crowd = annotation.get("iscrowd", 0)
    if is_crowd not in (0, 1):
        raise DataError(f"{where}: its 'iscrowd' is {is_crowd!r:.60}, 0 or 1 is expected; correct it")
    return LabelledBox(ids[class_id], class_id, left, top, width, height, area, bool(is_crowd))


def _number(value: Any) -> float | None:
    """None of what is none, or too large for one."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def _needed(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise DataError(f"{where}: has no '{key}'; add it")
    return entry[key]
