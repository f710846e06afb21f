"""Objects in pictures: COCO's mean average precision, and how far the number of objects is off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from calibration.arrays import Floats
from calibration.data.labels.boxes import CLASS, CROWD, ID, boxes_in, frame_in, is_box_table
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.answers import SampleCounts
from pipeline.tasks.coco import MatchedBoxes, matched
from pipeline.tasks.detections import Detections, class_numbers, detections_of
from pipeline.tasks.detector import Detector
from pipeline.tasks.other_readings import other_reading
from pipeline.tasks.output_reading import OutputReading

NamedOutputs = Mapping[str, Array]
COUNTED_FROM = 0.5
"""The score from which on an object counts."""
MOST_ROUNDING = 0.25
"""Of class numbers: INT8 of 90 classes has steps of 0.36."""


@dataclass(frozen=True)
class CountErrors:
    """How many objects each picture has more or less than were named."""

    errors: Floats
    """(N,): absolute differences."""
    is_nan: bool

    def value(self, counts: SampleCounts) -> float:
        """The mean over pictures."""
        return math.nan if self.is_nan else float(counts @ self.errors / counts.sum())

    def notes(self) -> list[str]:
        """None: every picture counts."""
        return []


def mean_average_precision(name: str, detector: Detector, outputs: NamedOutputs, labels: Array) -> MatchedBoxes:
    """For ``map`` and its kin; ``detector`` is the plan's [data.detector].

    Raises:
        ConfigError: the outputs are no detector's, or labels no boxes.
    """
    table = _box_labels(name, labels)
    with _named(name):
        reading, detections = _read(outputs, detector, table)
        known = _numbered(detections, table, reading)
    if any(row.is_nan for row in detections):
        return MatchedBoxes(name, (), is_nan=True)

    def remarks() -> list[str]:
        return [*_remarks(detections, known, table, reading), *_doubts(outputs, detector, table, reading)]

    return MatchedBoxes(name, matched(name, known, table), False, remarks)


def count_mae(name: str, least: float | None, detector: Detector, outputs: NamedOutputs, labels: Array) -> CountErrors:
    """For ``count_mae``: objects of any class whose score is at least ``least``, beside the labelled ones.

    Raises:
        ConfigError: as for ``mean_average_precision``.
    """
    level = COUNTED_FROM if least is None else least
    table = _box_labels(name, labels)
    with _named(name):
        _, detections = _read(outputs, detector, table)
    named = np.array([np.count_nonzero(row.scores >= level) for row in detections])
    there = np.array([np.count_nonzero(boxes_in(row)[:, CROWD] == 0) for row in table])
    return CountErrors(np.abs(named - there).astype(np.float64), any(row.is_nan for row in detections))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What is wrong is said with the metric's name in front."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"metric '{name}': {error}") from error


def _box_labels(name: str, labels: Array) -> Floats:
    if not is_box_table(labels):
        raise ConfigError(
            f"metric '{name}': labels are {labels.dtype} {labels.shape}, boxes are expected; set labels to a COCO "
            ".json file or a folder of YOLO's .txt files"
        )
    return labels.astype(np.float64)


def _read(outputs: NamedOutputs, detector: Detector, table: Floats) -> tuple[OutputReading, list[Detections]]:
    return detections_of(outputs, detector, [frame_in(row) for row in table])


def _numbered_boxes(outputs: NamedOutputs, detector: Detector, table: Floats) -> tuple[OutputReading, list[Detections]]:
    reading, detections = _read(outputs, detector, table)
    return reading, _numbered(detections, table, reading)


def _numbered(detections: Sequence[Detections], table: Floats, reading: OutputReading) -> list[Detections]:
    """With the classes' places in the labels' list, where the network gives their ids; -1 of classes without labels.

    Raises:
        ConfigError: what it gives is not known, and makes a difference.
    """
    boxes = np.concatenate([boxes_in(row) for row in table])
    place_of = {int(class_id): int(number) for number, class_id in boxes[:, (CLASS, ID)]}
    if not reading.numbers and any(class_id != number for class_id, number in place_of.items()):
        class_id, number = next((i, n) for i, n in place_of.items() if i != n)
        raise ConfigError(
            f"[data.detector]: whether '{reading.classes}' has ids of the labels' file or places in its list is not "
            f"known, such as {class_id} or {number} for the same class; set numbers to id or index"
        )
    if reading.numbers != "id":
        return list(detections)
    return [
        replace(row, classes=np.array([place_of.get(int(c), -1) for c in row.classes], np.int64)) for row in detections
    ]


def _remarks(
    detections: Sequence[Detections], known: Sequence[Detections], table: Floats, reading: OutputReading
) -> list[str]:
    """What makes a value of 0 though the network may be right."""
    labelled = {int(number) for row in table for number in boxes_in(row)[:, CLASS]}
    named = {int(number) for row in known for number in row.classes}
    scores = np.concatenate([row.scores for row in detections])
    remarks = []
    if not scores.size:
        remarks.append("the network finds no object in any picture")
    if named and not named & labelled:
        numbers = sorted({int(number) for row in detections for number in row.classes})
        ids = sorted({int(number) for row in table for number in boxes_in(row)[:, ID]})
        have = f"{_span(ids)}" if reading.numbers == "id" else f"{_span(sorted(labelled))} (ids {_span(ids)})"
        remarks.append(
            f"the network names classes {_span(numbers)}, the labels have {have}, and none is the same; "
            "set numbers or first_class in [data.detector]"
        )
    if scores.size and scores.max() > 1:
        remarks.append(
            f"scores go up to {scores.max():.3g}, probabilities are expected; what is taken as scores of "
            "classes may be masks or keypoints, or logits"
        )
    return remarks


def _doubts(outputs: NamedOutputs, detector: Detector, table: Floats, reading: OutputReading) -> list[str]:
    """What speaks for another reading of the outputs."""
    remarks = []
    numbers = class_numbers(reading, outputs)
    off = np.abs(numbers - np.rint(numbers))
    if off.max(initial=0) > MOST_ROUNDING:
        example = numbers[np.argmax(off)]
        remarks.append(
            f"class numbers of the network such as {example:.3g} are not whole, and so may be none; set convention, or "
            "classes, in [data.detector]"
        )
    if other := other_reading(outputs, detector, table, _numbered_boxes):
        remarks.append(
            f"a box of the right class lies on {other.num_now} of {other.num_objects} objects; with {other.changes} in "
            f"[data.detector] on {other.num_then}"
        )
    return remarks


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"
