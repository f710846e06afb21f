"""Made-up pictures with labelled boxes and a detector's answers, which several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calibration.arrays import Floats
from calibration.data.labels.boxes import LabelledBox, box_table
from calibration.data.picture_frame import Geometry
from calibration.data.preprocess import Preprocess
from engines.contract import Array

SIZE = (160, 120)
"""Width and height."""


def labelled(num: int, seed: int, classes: int = 3, ids: Sequence[int] = (1, 7, 20)) -> list[list[LabelledBox]]:
    """Some boxes of each picture, a few of them crowds; the area is less than that of the box."""
    random = np.random.default_rng(seed)
    pictures = []
    for _ in range(num):
        boxes = []
        for _ in range(random.integers(0, 6)):
            left, top = random.uniform(0, 100), random.uniform(0, 60)
            width, height = random.uniform(4, 60), random.uniform(4, 60)
            number = int(random.integers(classes))
            is_crowd = bool(random.random() < 0.1)
            boxes.append(LabelledBox(number, ids[number], left, top, width, height, 0.7 * width * height, is_crowd))
        pictures.append(boxes)
    return pictures


def answers(pictures: list[list[LabelledBox]], seed: int, noise: float = 4.0) -> list[Floats]:
    """(k, 6) of each picture: left, top, right, bottom, score, class; near the labels, beside some of nothing."""
    random = np.random.default_rng(seed)
    rows = []
    for boxes in pictures:
        row = [
            [b.left, b.top, b.left + b.width, b.top + b.height, 0.3 + 0.7 * random.random(), b.class_number]
            for b in boxes
            for _ in range(random.integers(0, 3))
        ]
        for _ in range(random.integers(0, 4)):
            left, top = random.uniform(0, 100), random.uniform(0, 60)
            row.append([left, top, left + 30, top + 30, 0.8 * random.random(), float(random.integers(3))])
        table = np.array(row, np.float64).reshape(-1, 6)
        table[:, :4] += noise * random.normal(size=(len(table), 4))
        table[:, :4] = np.clip(table[:, :4], 0, np.tile(SIZE, 2))
        table[:, 2:4] = np.maximum(table[:, 2:4], table[:, :2] + 1).clip(max=np.tile(SIZE, 1))
        rows.append(table)
    return rows


def padded(rows: Sequence[Floats], most: int = 20) -> Floats:
    """(N, 20, 6): an end-to-end head's, the rest 0."""
    table = np.zeros((len(rows), most, 6))
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def table_of(pictures: list[list[LabelledBox]], preprocess: Preprocess | None = None) -> Floats:
    """The labels' array, of pictures of ``SIZE``."""
    frame = Geometry(preprocess or Preprocess()).frame(*SIZE)
    return box_table([frame] * len(pictures), pictures)


def by_pycocotools(pictures: list[list[LabelledBox]], rows: Sequence[Array]) -> Any:
    """The twelve numbers that pycocotools itself prints."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: list[dict[str, Any]] = []
    for image, boxes in enumerate(pictures):
        truth += [
            {
                "id": len(truth) + n, "image_id": image, "category_id": b.class_number, "area": b.area,
                "bbox": [b.left, b.top, b.width, b.height], "iscrowd": int(b.is_crowd),
            }
            for n, b in enumerate(boxes, 1)
        ]  # fmt: skip
    found = [
        {"image_id": image, "category_id": int(r[5]), "score": float(r[4]),
         "bbox": [float(r[0]), float(r[1]), float(r[2] - r[0]), float(r[3] - r[1])]}
        for image, row in enumerate(rows)
        for r in row
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        classes = sorted({b.class_number for boxes in pictures for b in boxes})
        gold.dataset = {
            "images": [{"id": n} for n in range(len(pictures))],
            "categories": [{"id": c} for c in classes],
            "annotations": truth,
        }
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats
