"""Boxes from COCO's JSON and YOLO's text: the same of both, with the pictures' places, and refused with a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.arrays import Floats
from calibration.data.batches import DataSource, InputSpec, Samples, open_samples
from calibration.data.labels.boxes import LabelledBox, box_table, boxes_in, frame_in, is_box_table
from calibration.data.picture_frame import Geometry, PictureFrame
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError

NAMES = ("day/1.png", "day/2.png", "night/1.png")
SIZES = ((40, 30), (20, 30), (40, 30))
AS_STORED = Preprocess()


def content() -> dict[str, Any]:
    """Two classes with objects and one without; the second picture has none."""
    return {
        "images": [
            {"id": 5, "file_name": "day/1.png", "width": 40, "height": 30},
            {"id": 6, "file_name": "day/2.png"},
            {"id": 9, "file_name": "night/1.png", "width": 40, "height": 30},
            {"id": 99, "file_name": "elsewhere.png"},
        ],
        "categories": [{"id": 44, "name": "bus"}, {"id": 2, "name": "car"}, {"id": 3, "name": "none"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 44, "bbox": [4, 3, 20, 12], "area": 100.5, "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 2, "bbox": [0, 0, 40.4, 30]},
            {"id": 3, "image_id": 9, "category_id": 2, "bbox": [10, 6, 8, 15], "iscrowd": 1},
            {"id": 4, "image_id": 99, "category_id": 2, "bbox": [0, 0, 1, 1]},
        ],
    }


def pictures(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    for name, (width, height) in zip(names, SIZES):
        path = folder / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    return folder / "pictures"


def opened(folder: Path, labels: str, preprocess: Preprocess = AS_STORED, limit: int = 0) -> Samples:
    spec = (InputSpec("x", "uint8", (-1, -1, -1, 3)),)
    return open_samples(DataSource(str(folder / "pictures"), labels=labels, limit=limit), spec, preprocess, folder)


def written(folder: Path, table: dict[str, Any]) -> None:
    pictures(folder)
    (folder / "boxes.json").write_text(json.dumps(table))


EXPECTED: list[list[list[float]]] = [
    [[2, 44, 4, 3, 20, 12, 100.5, 0]],
    [],
    [[0, 2, 0, 0, 40.4, 30, 40.4 * 30, 0], [0, 2, 10, 6, 8, 15, 120, 1]],
]


def test_a_coco_file_is_labels(tmp_path: Path) -> None:
    written(tmp_path, content())
    samples = opened(tmp_path, "boxes.json")
    labels = samples.labels()
    assert is_box_table(labels)
    assert labels.shape == (3, 3, 8)
    for row, expected, size in zip(labels, EXPECTED, SIZES, strict=True):
        assert boxes_in(row) == pytest.approx(np.reshape(expected, (-1, 8)))
        assert frame_in(row) == PictureFrame(*size, *size, 1, 1, 0, 0)
    assert samples.reader.classes() == ("car", "none", "bus")
    assert samples.describe()["label_counts"] == {}
    part = opened(tmp_path, "boxes.json", limit=2).labels()
    assert np.array_equal(part, labels[:2, :2])


def test_an_image_that_is_listed_twice_alike_is_one(tmp_path: Path) -> None:
    table = content()
    table["images"].append(dict(table["images"][0]))
    written(tmp_path, table)
    assert len(boxes_in(opened(tmp_path, "boxes.json").labels()[0])) == 1


def test_yolos_text_is_the_same(tmp_path: Path) -> None:
    pictures(tmp_path)
    for name, lines in {
        "day/1": "2 0.35 0.3 0.5 0.4\r\n\r\n",
        "night/1": "0 0.5 0.5 1 1\n0 0.35 0.45 0.2 0.5\n",
    }.items():
        path = tmp_path / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines)
    labels = opened(tmp_path, "labels").labels()
    expected: list[list[list[float]]] = [
        [[2, 2, 4, 3, 20, 12, 240, 0]],
        [],
        [[0, 0, 0, 0, 40, 30, 1200, 0], [0, 0, 10, 6, 8, 15, 120, 0]],
    ]
    for row, boxes in zip(labels, expected, strict=True):
        assert boxes_in(row) == pytest.approx(np.reshape(boxes, (-1, 8)))


def test_images_are_known_by_the_last_part_of_their_path_where_that_is_unique(tmp_path: Path) -> None:
    table = content()
    written(tmp_path, table)
    for image, name in zip(table["images"], ("train/1.png", "train/2.png")):
        image["file_name"] = name
    (tmp_path / "boxes.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"has no image 'day/1.png' and 1 more among its 4"):
        opened(tmp_path, "boxes.json")
    (tmp_path / "pictures/night/1.png").unlink()
    table["images"] = table["images"][:2]
    table["annotations"] = table["annotations"][:1]
    (tmp_path / "boxes.json").write_text(json.dumps(table))
    assert len(boxes_in(opened(tmp_path, "boxes.json").labels()[0])) == 1


def test_the_frame_says_where_the_picture_went(tmp_path: Path) -> None:
    written(tmp_path, content())
    preprocess = Preprocess(resize=(60, 40), fit="letterbox")
    frames = [frame_in(row) for row in opened(tmp_path, "boxes.json", preprocess).labels()]
    assert frames[0] == PictureFrame(40, 30, 40, 60, 1, 1, 0, 15)
    assert frames[1] == PictureFrame(20, 30, 40, 60, 2, 2, 0, 0)
    assert Geometry(Preprocess(crop=(20, 30))).frame(40, 30) == PictureFrame(40, 30, 30, 20, 1, 1, -5, -5)


def test_a_picture_that_lies_on_its_side_is_upright(tmp_path: Path) -> None:
    written(tmp_path, content())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "pictures/day/1.png", exif=exif)
    assert frame_in(opened(tmp_path, "boxes.json").labels()[0]).width == 40


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    table = content()
    change(table)
    return table


def annotation(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda table: table["annotations"][0].update(keys)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (annotation(category_id=4), "annotation 1: is of category 4, which 'categories' does not have; add it"),
        (annotation(category_id="1"), "annotation 1: is of category '1', which 'categories' does not have"),
        (annotation(category_id=[4]), "annotation 1: is of category [4], which 'categories' does not have"),
        (annotation(bbox=[30, 3, 20, 12]), "from (30, 3) to (50, 15), the picture is 40 x 30 pixels; correct the box"),
        (annotation(bbox=[-3, 3, 20, 12]), "has a box from (-3, 3) to (17, 15), the picture is 40 x 30"),
        (annotation(bbox=[3, 3, -2, 12]), "of negative size"),
        (annotation(bbox=[3, 3, float("nan"), 12]), "which are no numbers"),
        (annotation(bbox=[3, 3, 12]), "its 'bbox' is [3, 3, 12], [left, top, width, height] is expected"),
        (annotation(bbox=[10**400, 3, 20, 12]), "'bbox' is [1000"),
        (annotation(area=10**400), "'area' is 1000"),
        (annotation(area=-5), "of negative size or area"),
        (annotation(area=None), "its 'area' is None, a number is expected"),
        (annotation(bbox=[True, 3, 20, 12]), "its 'bbox' is [True, 3, 20, 12]"),
        (annotation(iscrowd="0"), "annotation 1: its 'iscrowd' is '0', 0 or 1 is expected"),
        (lambda t: t["images"].append({"id": 50, "file_name": "./day/1.png"}), "lists two images of path day/1.png"),
        (lambda t: t["images"][3].update(id=5), "lists two images of id 5; drop one, or correct it"),
        (lambda t: t["images"].append({"id": 99, "file_name": "a.png"}), "lists two images of id 99"),
        (lambda t: (t["images"][0].pop("width"), t["images"][0].update(height=9)), "is 40 x 9 pixels, it is 40 x 30"),
        (lambda t: t["categories"].append({"id": 2**80}), "category 3 has no 'id' from 0 to 2147483647"),
        (annotation(area="big"), "its 'area' is big, a number is expected"),
        (annotation(image_id=7), "annotation 1: is of image 7, which 'images' does not have"),
        (annotation(image_id={}), "annotation 1: is of image {}, which 'images' does not have"),
        (lambda t: t["annotations"][0].pop("bbox"), "annotation 1: has no 'bbox'; add it"),
        (lambda t: t.pop("categories"), "has no list 'categories' of objects, as COCO's files have"),
        (lambda t: t.update(categories=[]), "its list 'categories' is empty"),
        (lambda t: t.update(annotations=[]), "has no box in any of the 3 pictures"),
        (lambda t: t["categories"].append({"id": 2, "name": "again"}), "has two categories of id 2"),
        (lambda t: t["categories"][0].pop("id"), "category 0 has no 'id' from 0 to 2147483647"),
        (lambda t: [a.update(bbox=[0.1, 0.2, 0.3, 0.6]) for a in t["annotations"]], "no box goes beyond 0.8, as if"),
        (lambda t: t["images"].pop(0), "has no image 'day/1.png'"),
        (lambda t: t["images"][0].update(width=30, height=40), "'day/1.png' is 30 x 40 pixels, it is 40 x 30"),
        (lambda t: t["images"][0].pop("file_name"), "image 5: has no 'file_name'; add it"),
        (lambda t: t["images"][0].update(id=[1]), "image [1]: its 'id' is no number"),
    ],
)  # fmt: skip
def test_what_is_no_coco_file_is_a_sentence(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    written(tmp_path, changed(change))
    with pytest.raises(DataError, match=re.escape(sentence)):
        opened(tmp_path, "boxes.json")


@pytest.mark.parametrize("text", ["[1, 2]", "{", "\ufeff3"])
def test_what_is_no_json_object(tmp_path: Path, text: str) -> None:
    pictures(tmp_path)
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(DataError, match=r"boxes.json: (is no COCO file|cannot be read as JSON)"):
        opened(tmp_path, "boxes.json")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("1 0.5 0.5 0.2", "1.txt:1: is '1 0.5 0.5 0.2', five numbers are expected"),
        ("1 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "five numbers are expected"),
        ("car 0.5 0.5 0.2 0.2", "five numbers are expected"),
        ("1.5 0.5 0.5 0.2 0.2", "its class is 1.5, a whole number from 0 to 99999 is expected"),
        ("1e300 0.5 0.5 0.2 0.2", "its class is 1e300"),
        ("4000000000 0.5 0.5 0.2 0.2", "its class is 4000000000"),
        ("-1 0.5 0.5 0.2 0.2", "its class is -1"),
        ("nan 0.5 0.5 0.2 0.2", "its class is nan"),
        ("1 20 15 10 10", "which is in pixels; write class, centre x"),
        ("1 0.9 0.5 0.5 0.2", "has a box from (26, 12) to (46, 18), the picture is 40 x 30 pixels"),
        ("", "has no box for any of the 3 pictures"),
    ],
)
def test_what_is_no_yolo_file_is_a_sentence(tmp_path: Path, line: str, sentence: str) -> None:
    pictures(tmp_path)
    (tmp_path / "labels/day").mkdir(parents=True)
    (tmp_path / "labels/day/1.txt").write_text(line)
    with pytest.raises(DataError, match=re.escape(sentence)):
        opened(tmp_path, "labels")
    (tmp_path / "labels/day/1.txt").rename(tmp_path / "labels/day/7.txt")
    with pytest.raises(DataError, match="has a file for none of the 3 pictures; a text file of the same name, such as"):
        opened(tmp_path, "labels")


@pytest.mark.parametrize("name", ["1.TXT", "1.png.txt"])
def test_a_file_that_is_named_a_little_otherwise_is_no_picture_without_objects(tmp_path: Path, name: str) -> None:
    pictures(tmp_path)
    (tmp_path / "labels/day").mkdir(parents=True)
    (tmp_path / "labels/day" / name).write_text("1 0.5 0.5 0.2 0.2")
    (tmp_path / "labels/day/2.txt").write_text("1 0.5 0.5 0.2 0.2")
    with pytest.raises(DataError, match=f"{re.escape(name)}: is named otherwise than the picture 'day/1.png'; rename"):
        opened(tmp_path, "labels")


def test_what_is_no_table_of_boxes() -> None:
    frame = Geometry(AS_STORED).frame(40, 30)
    table: Floats = box_table([frame], [[LabelledBox(1, 7, 0, 0, 2, 2, 4.0)]])
    assert is_box_table(table)
    assert not is_box_table(table.astype(np.float32))
    assert not is_box_table(table[:, :, :7])
    assert not is_box_table(table[:, 1:] - 1)
    assert not is_box_table(np.random.default_rng(0).normal(size=(2, 3, 8)))
