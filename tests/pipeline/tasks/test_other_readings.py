"""A detector whose outputs are read wrongly gets a low value, and the remark that says how to read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from calibration.arrays import Floats
from calibration.data.labels.boxes import LabelledBox
from calibration.data.picture_frame import PictureFrame
from engines.contract import Array
from pipeline.tasks.answers import Tally
from pipeline.tasks.detection import count_mae, mean_average_precision
from pipeline.tasks.detections import detections_of
from pipeline.tasks.detector import AS_IT_SAYS, Detector
from tests.pipeline.tasks.boxes_made import SIZE, table_of

NAMES = {
    "tensorflow": ("detection_boxes", "detection_scores", "detection_classes", "num_detections"),
    "efficient_nms": ("det_boxes", "det_scores", "det_classes", "num_dets"),
    "lists": ("boxes", "scores", "labels"),
}
FORMS: dict[str, Callable[[Floats], Floats]] = {
    "xyxy": lambda box: box,
    "yxyx": lambda box: box[..., (1, 0, 3, 2)],
    "center": lambda box: np.concatenate([(box[..., :2] + box[..., 2:]) / 2, box[..., 2:] - box[..., :2]], axis=-1),
    "ltwh": lambda box: np.concatenate([box[..., :2], box[..., 2:] - box[..., :2]], axis=-1),
}


def pictures(ids: tuple[int, ...] = (0, 1, 2)) -> list[list[LabelledBox]]:
    """Ten of two objects each."""
    random = np.random.default_rng(3)
    rows = []
    for _ in range(10):
        corners = np.concatenate([random.uniform(0, (90, 50), (2, 2)), random.uniform(25, 60, (2, 2))], axis=1)
        numbers = random.integers(len(ids), size=2)
        rows.append(
            [
                LabelledBox(int(n), ids[n], box[0], box[1], box[2], box[3], box[2] * box[3])
                for box, n in zip(corners, numbers)
            ]
        )
    return rows


def corners_of(rows: list[list[LabelledBox]]) -> Floats:
    return np.array([[[b.left, b.top, b.left + b.width, b.top + b.height] for b in row] for row in rows])


def lists(
    convention: str, rows: list[list[LabelledBox]], corners: str = "xyxy", by: Any = 1, ids: bool = False
) -> dict[str, Array]:
    """Five rows for each picture, two of them boxes, the others -1."""
    boxes, scores, classes = (np.full((len(rows), 5, *more), -1.0, np.float32) for more in ((4,), (), ()))
    boxes[:, :2] = FORMS[corners](corners_of(rows) / np.tile(by, 4 // np.size(by)))
    scores[:, :2] = (0.9, 0.8)
    classes[:, :2] = [[b.class_id if ids else b.class_number for b in row] for row in rows]
    arrays = (boxes, scores, classes, np.full((len(rows), 1), 2, np.int32))
    return dict(zip(NAMES[convention], arrays))


def tally(outputs: dict[str, Array], rows: list[list[LabelledBox]], detector: Detector = AS_IT_SAYS) -> Tally:
    return mean_average_precision("map", detector, outputs, table_of(rows))


def value(answer: Tally) -> float:
    return answer.value(np.ones(10, np.int64))


ROWS = pictures()
SHIFTED = pictures((1, 2, 3))
MISREAD: dict[str, tuple[dict[str, Array], list[list[LabelledBox]], str]] = {
    "ids from 1, YOLO's labels": (lists("lists", SHIFTED, ids=True), ROWS, "first_class = -1"),
    "places, as ids": (lists("lists", pictures((4, 8, 20))), pictures((4, 8, 20)), 'numbers = "index"'),
    "of other axes": (lists("efficient_nms", ROWS, "yxyx"), ROWS, 'corners = "yxyx"'),
    "centres": (lists("efficient_nms", ROWS, "center"), ROWS, 'corners = "center"'),
    "sizes": (lists("efficient_nms", ROWS, "ltwh"), ROWS, 'corners = "ltwh"'),
    "TensorFlow's names, pixels": (lists("tensorflow", ROWS), ROWS, 'corners = "xyxy" and units = "pixels"'),
    "TensorFlow's names, shares of x": (lists("tensorflow", ROWS, by=SIZE), ROWS, 'corners = "xyxy"'),
    "two slips": (lists("efficient_nms", SHIFTED, "yxyx", ids=True), ROWS, 'corners = "yxyx" and first_class = -1'),
}


@pytest.mark.parametrize("name", MISREAD)
def test_what_would_meet_the_labels_is_said(name: str) -> None:
    outputs, rows, changes = MISREAD[name]
    answer = tally(outputs, rows)
    assert value(answer) < 0.2
    lines = [line for line in answer.notes() if "a box of the right class lies on" in line]
    assert lines
    assert f"of 20 objects; with {changes} in [data.detector] on 20" in lines[0], answer.notes()
    keys = dict(change.replace('"', "").split(" = ") for change in changes.split(" and "))
    typed: dict[str, Any] = {key: int(text) if key == "first_class" else text for key, text in keys.items()}
    read_so = tally(outputs, rows, Detector(**typed))
    assert value(read_so) == pytest.approx(1), "and it holds"
    assert not read_so.notes()


def test_what_is_read_as_it_is_has_no_remark() -> None:
    assert not tally(lists("tensorflow", SHIFTED, "yxyx", SIZE, ids=True), SHIFTED).notes()
    assert not tally(lists("efficient_nms", ROWS), ROWS).notes()


def test_a_network_that_is_wrong_whichever_way_is_only_wrong() -> None:
    random = np.random.default_rng(0)
    outputs = lists("efficient_nms", ROWS)
    outputs["det_boxes"] = np.sort(random.uniform(0, 100, outputs["det_boxes"].shape), axis=2).astype(np.float32)
    assert not tally(outputs, ROWS).notes()


def test_a_head_of_two_classes_on_its_side_is_told_from_lists() -> None:
    rows = pictures((0, 1))
    head = np.zeros((10, 500, 6), np.float32)
    head[:, :2, :4] = FORMS["center"](corners_of(rows))
    for number, row in enumerate(rows):
        for place, box in enumerate(row):
            head[number, place, 4:] = 0.3
            head[number, place, 4 + box.class_number] = 0.6
    answer = tally({"output0": head}, rows)
    assert any('with convention = "ultralytics" in [data.detector]' in line for line in answer.notes())
    assert any("class numbers of the network such as 0." in line for line in answer.notes())
    assert value(tally({"output0": head}, rows, Detector(convention="ultralytics"))) == pytest.approx(1)


def test_a_network_that_finds_nothing_is_said_to() -> None:
    outputs = lists("efficient_nms", ROWS)
    outputs["num_dets"][:] = 0
    answer = tally(outputs, ROWS)
    assert answer.notes() == ["map: the network finds no object in any picture"]
    assert value(answer) == 0


def test_the_background_neither_counts_nor_takes_the_place_of_objects() -> None:
    """Of a raw head, 300 boxes of a picture remain; those of the background have the highest scores."""
    random = np.random.default_rng(1)
    boxes = random.uniform(0, (140, 100), (10, 1500, 2))
    boxes = np.concatenate([boxes, boxes + 20], axis=2)
    scores = np.full((10, 1500, 4), 0.01)
    scores[:, :, 0] = random.uniform(0.95, 1, (10, 1500))
    boxes[:, :2] = corners_of(ROWS)
    for number, row in enumerate(ROWS):
        for place, box in enumerate(row):
            scores[number, place] = np.eye(4)[box.class_number + 1] * 0.9
    outputs: dict[str, Array] = {"places": boxes.astype(np.float32), "sure": scores.astype(np.float32)}
    detector = Detector(boxes="places", scores="sure", first_class=-1, min_score=0.05)
    assert value(tally(outputs, ROWS, detector)) == pytest.approx(1)
    assert value(count_mae("count_mae", None, detector, outputs, table_of(ROWS))) == 0


def test_a_class_that_is_no_number_is_no_answer() -> None:
    outputs = lists("tensorflow", SHIFTED, "yxyx", SIZE, ids=True)
    outputs["detection_classes"][4, 1] = np.nan
    assert np.isnan(value(tally(outputs, SHIFTED)))
    outputs["num_detections"][4] = 1
    assert value(tally(outputs, SHIFTED)) > 0.8, "beyond the count nothing is read"


@pytest.mark.parametrize("num_classes", [80, 10])
def test_a_head_of_few_places_is_told_by_its_input(num_classes: int) -> None:
    """Of 64 x 64 it has 84 places, which are as many as the rows of 80 classes; of 32 x 32 21."""
    for side, num_places in ((64, 84), (32, 21)):
        head = np.zeros((1, 4 + num_classes, num_places), np.float32)
        head[0, :4, 7], head[0, 4 + 3, 7] = (20, 16, 10, 8), 0.9
        frame = PictureFrame(side, side, side, side, 1, 1, 0, 0)
        heads: list[Array] = [head, head.transpose(0, 2, 1)]
        for array in heads[: 1 if head.shape[1] == head.shape[2] else 2]:
            _, (row,) = detections_of({"output0": array}, Detector(convention="ultralytics"), [frame])
            assert row.boxes.tolist() == [[15, 12, 25, 20]], array.shape
            assert row.classes.tolist() == [3]
