"""What a detector answers, as boxes in the pixels of each picture: NMS done where it was not, letterbox undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.data.picture_frame import PictureFrame
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.detector import Detector
from pipeline.tasks.output_reading import OutputReading, reading_of, shape_of

ANCHORS = 3
"""YOLOv5's boxes at each place; YOLOv8 has one."""
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32))
"""Of its places, for an input of each size."""
PictureShape = tuple[int, ...]
NORMALIZED_TO = 2.0
"""Boxes none of which goes beyond this are taken as shares of the picture, where nothing says what they are in."""
MOST_CANDIDATES = 30_000
MOST_BOXES = 300
"""Of a picture, before and after suppression, as Ultralytics validates."""


@dataclass(frozen=True)
class Detections:
    """The boxes of one picture."""

    boxes: Floats
    """(k, 4): left, top, right, bottom, in pixels of the picture."""
    scores: Floats
    """(k,)."""
    classes: Ints
    """(k,): what the network calls them, with ``first_class`` added."""

    @property
    def is_nan(self) -> bool:
        """Whether a box or score is no number."""
        return not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all())


def detections_of(
    outputs: Mapping[str, Array], detector: Detector, frames: Sequence[PictureFrame]
) -> tuple[OutputReading, list[Detections]]:
    """How the outputs are read, and the boxes of each picture.

    Args:
        outputs: by name, with a row for each picture.
        detector: what the plan says of them.
        frames: where each picture lies in what the network saw.

    Raises:
        ConfigError: they are of no convention that is known, or not in its shapes.
    """
    reading = reading_of(outputs, detector)
    outputs = _as_lists(reading, outputs)
    _check_shapes(reading, outputs)
    if reading.convention == "yolov5" and detector.convention == "auto":
        _check_anchors(reading, outputs, frames[0])
    rows = [_of_objects(_numbers(reading, outputs, row, detector, frames[row])) for row in range(len(frames))]
    is_normalized = reading.units == "normalized"
    if reading.units == "auto":
        largest = max(
            (float(np.abs(row.boxes).max()) for row in rows if len(row.boxes) and not row.is_nan), default=np.inf
        )
        is_normalized = largest <= NORMALIZED_TO
    detections = []
    for row, frame in zip(rows, frames, strict=True):
        with np.errstate(invalid="ignore"):  # Infinite corners become NaN, which the metric tells.
            boxes = _corners(row.boxes, reading.corners)
        if is_normalized:
            boxes = boxes * np.tile((frame.input_width, frame.input_height), 2)
        row = Detections(boxes, row.scores, row.classes)
        if not reading.is_suppressed and not row.is_nan:
            row = _suppressed(row, detector.max_overlap)
        detections.append(Detections(_in_picture(row.boxes, frame), row.scores, row.classes))
    return reading, detections


def _of_objects(row: Detections) -> Detections:
    """Without boxes of classes below 0, which are the background or fill lists: the rest alone suppress each other."""
    is_object = row.classes >= 0
    return Detections(row.boxes[is_object], row.scores[is_object], row.classes[is_object])


def class_numbers(reading: OutputReading, outputs: Mapping[str, Array]) -> Floats:
    """Class numbers of the boxes that count, of all pictures, as lists have them; none where they are places."""
    if reading.convention == "end_to_end":
        rows = np.concatenate([np.asarray(row, np.float64) for row in outputs[reading.boxes]])
        return np.asarray(rows[rows[:, 4] > 0, 5])
    if not reading.classes:
        return np.zeros(0)
    classes, scores = (
        np.concatenate([np.asarray(row, np.float64).reshape(-1) for row in outputs[name]])
        for name in (reading.classes, reading.scores)
    )
    return np.asarray(classes[(scores > 0) & np.isfinite(classes)])


def suppression(detections: Detections, max_overlap: float, most: int) -> Ints:
    """Indices of the boxes that remain, by falling score: each whose overlap (IoU) with a higher one of its class that
    remains is at most that; ``most`` of them.
    """  # fmt: skip
    boxes = detections.boxes
    areas = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    order = np.argsort(-detections.scores, kind="stable")
    remaining: list[int] = []
    while order.size and len(remaining) < most:
        best, rest = int(order[0]), order[1:]
        remaining.append(best)
        corner, far = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        both = np.prod(np.maximum(far - corner, 0), axis=1)
        either = areas[best] + areas[rest] - both
        overlaps = both > max_overlap * np.maximum(either, np.finfo(np.float64).tiny)
        order = rest[~(overlaps & (detections.classes[rest] == detections.classes[best]))]
    return np.array(remaining, np.int64)


def _suppressed(row: Detections, max_overlap: float) -> Detections:
    best = np.argsort(-row.scores, kind="stable")[:MOST_CANDIDATES]
    few = Detections(row.boxes[best], row.scores[best], row.classes[best])
    picks = suppression(few, max_overlap, MOST_BOXES)
    return Detections(few.boxes[picks], few.scores[picks], few.classes[picks])


def _numbers(
    reading: OutputReading, outputs: Mapping[str, Array], row: int, detector: Detector, frame: PictureFrame
) -> Detections:
    """Of one picture, as the network has them: boxes (k, 4) of whatever form."""
    boxes = np.asarray(outputs[reading.boxes][row], np.float64)
    if reading.convention == "yolov5":
        return _named_scores(boxes[:, :4], boxes[:, 4:5] * boxes[:, 5:], detector)
    if reading.convention == "ultralytics":
        boxes = boxes if _is_by_place(boxes.shape, frame) else boxes.T
        return _named_scores(boxes[:4].T, boxes[4:].T, detector)
    if reading.convention == "end_to_end":
        # Rows without a box have a score of 0.
        rows = boxes[~(boxes[:, 4] <= 0)]
        return _with_classes(rows[:, :4], rows[:, 4], rows[:, 5], detector)
    scores = np.asarray(outputs[reading.scores][row], np.float64)
    if reading.convention == "dense":
        return _named_scores(boxes, scores, detector)
    if reading.convention == "onnx_nms":
        picks = np.asarray(outputs[reading.indices][row]).astype(np.int64)
        picks = picks[(picks >= 0).all(axis=1)]
        _check_picks(picks, boxes, scores, reading)
        numbers, places = picks[:, 1], picks[:, 2]
        return Detections(boxes[places], scores[numbers, places], numbers + detector.first_class)
    classes = np.asarray(outputs[reading.classes][row], np.float64)
    num = len(scores)
    if reading.count:
        count = float(np.asarray(outputs[reading.count][row], np.float64).reshape(-1)[0])
        num = min(max(int(count), 0), num) if np.isfinite(count) else num
    counted = np.arange(len(scores)) < num
    counted &= ~(scores <= 0)
    return _with_classes(boxes[counted], scores[counted], classes[counted], detector)


def _as_lists(reading: OutputReading, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs; lists that have one box on every picture, and so no axis for boxes, with that axis."""
    if not reading.is_suppressed or not reading.scores:
        return dict(outputs)
    lists = (reading.indices,) if reading.indices else (reading.boxes, reading.scores, reading.classes)
    if outputs[lists[0]].ndim != 2:
        return dict(outputs)
    return {name: array[:, np.newaxis] if name in lists else array for name, array in outputs.items()}


def _named_scores(boxes: Floats, scores: Floats, detector: Detector) -> Detections:
    """(A, 4) boxes with (A, C) scores: each class above the least score is a box of its own."""
    if np.isnan(scores).any():
        return Detections(boxes, scores.max(axis=1), np.zeros(len(boxes), np.int64))
    places, classes = np.nonzero(scores > detector.min_score)
    return Detections(boxes[places], scores[places, classes], classes + detector.first_class)


def _with_classes(boxes: Floats, scores: Floats, classes: Floats, detector: Detector) -> Detections:
    """With class numbers, which many networks give as floats; where one is none, neither is the score."""
    is_number = np.isfinite(classes)
    numbers = np.rint(np.where(is_number, classes, 0)).astype(np.int64) + detector.first_class
    return Detections(boxes, np.where(is_number, scores, np.nan), np.where(is_number, numbers, 0))


def _corners(boxes: Floats, corners: str) -> Floats:
    """(k, 4) as left, top, right, bottom."""
    if corners == "center":
        half = boxes[:, 2:] / 2
        return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    if corners == "ltwh":
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    if corners == "yxyx":
        boxes = boxes[:, (1, 0, 3, 2)]
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


def _in_picture(boxes: Floats, frame: PictureFrame) -> Floats:
    """From pixels of the input to those of the picture, cut at its edges."""
    offset = np.tile((frame.offset_x, frame.offset_y), 2)
    scale = np.tile((frame.scale_x, frame.scale_y), 2)
    return np.asarray(np.clip((boxes - offset) / scale, 0, np.tile((frame.width, frame.height), 2)))


EXPECTED = {
    "ultralytics": "(4 + classes, k)",
    "yolov5": "(k, 5 + classes)",
    "end_to_end": "(k, 6)",
    "dense": "boxes (k, 4) and scores (k, classes)",
    "onnx_nms": "boxes (k, 4), scores (classes, k) and indices (n, 3)",
}
"""Of each picture; of any other convention, lists."""
LISTS = "boxes (k, 4), scores (k) and classes (k)"


def _check_shapes(reading: OutputReading, outputs: Mapping[str, Array]) -> None:
    """That each output has the axes of its convention.

    Raises:
        ConfigError: it has others.
    """
    names = [reading.boxes, reading.scores, reading.classes, reading.indices]
    shapes = {name: shape_of(outputs[name]) for name in names if name}
    if not _fits(reading.convention, *(shapes.get(name, ()) for name in names)):
        listed = ", ".join(f"'{name}' {shape}" for name, shape in shapes.items())
        raise ConfigError(
            f"[data.detector]: convention {reading.convention} expects {EXPECTED.get(reading.convention, LISTS)} of "
            f"each picture, the outputs are {listed}; name other outputs, or another convention"
        )


def _fits(
    convention: str, boxes: PictureShape, scores: PictureShape, classes: PictureShape, indices: PictureShape
) -> bool:
    """Whether shapes of one picture, () where there is no such output, are those of the convention."""
    if convention == "ultralytics":
        return len(boxes) == 2 and min(boxes) >= 5
    if convention == "yolov5":
        return len(boxes) == 2 and boxes[1] >= 6
    if convention == "end_to_end":
        return len(boxes) == 2 and boxes[1] >= 6
    if len(boxes) != 2 or boxes[1] != 4:
        return False
    if convention == "dense":
        return len(scores) == 2 and scores[0] == boxes[0]
    if convention == "onnx_nms":
        return len(scores) == 2 and scores[1] == boxes[0] and len(indices) == 2 and indices[1] == 3
    return scores == boxes[:1] and classes == scores


def _num_places(frame: PictureFrame) -> list[int]:
    """In how many places a head of each of ``STRIDES`` looks for objects."""
    width, height = int(frame.input_width), int(frame.input_height)
    return [sum((width // s) * (height // s) for s in strides) for strides in STRIDES]


def _is_by_place(shape: PictureShape, frame: PictureFrame) -> bool:
    """Whether an Ultralytics head is (4 + classes, k), told by the k of its input's size, else by k as the larger."""
    rows, columns = (size in _num_places(frame) for size in shape)
    return columns if rows != columns else shape[0] <= shape[1]


def _check_anchors(reading: OutputReading, outputs: Mapping[str, Array], frame: PictureFrame) -> None:
    """That a head has as many rows as YOLOv5's of the input's size, where nothing else says that it is one: there is a
    score of objects in it, where others have the first class.

    Raises:
        ConfigError: it has not.
    """  # fmt: skip
    shape = shape_of(outputs[reading.boxes])
    width, height = int(frame.input_width), int(frame.input_height)
    usual = [ANCHORS * places for places in _num_places(frame)]
    if shape[0] not in usual:
        raise ConfigError(
            f"the detector's output '{reading.boxes}' {shape} is of YOLOv5, or without its score of objects: of an "
            f"input of {width} x {height} YOLOv5 has {usual[0]} rows, or {usual[1]} (P6); set convention in "
            "[data.detector] to yolov5 or ultralytics"
        )


def _check_picks(picks: Ints, boxes: Floats, scores: Floats, reading: OutputReading) -> None:
    if len(picks) and (picks[:, 1].max() >= len(scores) or picks[:, 2].max() >= len(boxes)):
        raise ConfigError(
            f"[data.detector]: '{reading.indices}' names class {picks[:, 1].max()} and box {picks[:, 2].max()}, of "
            f"which there are {len(scores)} and {len(boxes)}; name the outputs that the suppression chose from"
        )
