"""Whether a detector's outputs would meet the labels if they were read another way, of which a low value alone says
nothing: boxes whose corners are others, shares taken for pixels, classes counted from 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.data.labels.boxes import CLASS, CROWD, HEIGHT, LEFT, TOP, WIDTH, boxes_in
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.detections import Detections
from pipeline.tasks.detector import Corners, Detector, Units
from pipeline.tasks.output_reading import OutputReading

FORMS: tuple[Corners, ...] = ("xyxy", "yxyx", "center", "ltwh")
MEASURES: tuple[Units, ...] = ("pixels", "normalized")
MOST_PICTURES = 16
MOST_BOXES = 20
"""Of a picture, those of the highest scores."""
LEAST_SCORE = 0.05
"""Of a raw head, whose many boxes of lower scores take time to suppress."""
LEAST_OVERLAP = 0.5
LEAST_OBJECTS = 3
"""Fewer may be met by chance."""
LEAST_SHARE = 0.2
TIMES_AS_MANY = 2
"""What another reading must meet: so many of the objects, and so many times as many as this one."""
Read = Callable[[Mapping[str, Array], Detector, Floats], tuple[OutputReading, Sequence[Detections]]]
"""From outputs, how they are read, and labels, a row each: the boxes of each picture, of the labels' classes."""


@dataclass(frozen=True)
class OtherReading:
    """With what many more of the labelled objects are met."""

    changes: str
    """Keys of [data.detector] with their values."""
    num_now: int
    num_then: int
    num_objects: int


def other_reading(outputs: Mapping[str, Array], detector: Detector, table: Floats, read: Read) -> OtherReading | None:
    """Of the first pictures with objects: the reading that meets the most, if those are many more than as it is.

    Args:
        outputs: by name, a row for each picture.
        detector: what the plan says.
        table: ``calibration.data.labels.boxes``.
        read: see ``Read``.
    """
    rows = [number for number, row in enumerate(table) if len(_objects(row))][:MOST_PICTURES]
    few = {name: array[rows] for name, array in outputs.items()}
    table = table[rows]
    num_objects = sum(len(_objects(row)) for row in table)
    detector = replace(detector, min_score=max(detector.min_score, LEAST_SCORE))
    reading, detections = read(few, detector, table)
    now = num_met(detections, table)
    if now * TIMES_AS_MANY > num_objects:
        return None
    most, best = max(LEAST_OBJECTS, LEAST_SHARE * num_objects, TIMES_AS_MANY * now), ""
    for other in _others(detector, reading):
        try:
            met = num_met(read(few, other, table)[1], table)
        except ConfigError:
            continue  # Not a way to read these.
        if met > most or (met >= most and not best):
            most, best = met, _changes(detector, other)
        if best and 2 * most > num_objects:
            break
    return OtherReading(best, now, int(most), num_objects) if best else None


def num_met(detections: Sequence[Detections], table: Floats) -> int:
    """How many objects have a box of their class among the highest scores that overlaps them by half."""
    return sum(int(_is_met(row, _objects(labels)).sum()) for row, labels in zip(detections, table, strict=True))


def _objects(row: Floats) -> Floats:
    boxes = boxes_in(row)
    return np.asarray(boxes[boxes[:, CROWD] == 0])


def _is_met(row: Detections, objects: Floats) -> Ints:
    """(M,): 1 for each object that is met."""
    best = np.argsort(-row.scores, kind="stable")[:MOST_BOXES]
    boxes, classes = row.boxes[best], row.classes[best]
    corner = objects[:, None, (LEFT, TOP)]
    far = corner + objects[:, None, (WIDTH, HEIGHT)]
    both = np.prod(np.maximum(np.minimum(far, boxes[None, :, 2:]) - np.maximum(corner, boxes[None, :, :2]), 0), axis=2)
    sizes = np.prod(far - corner, axis=2) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[None]
    is_met = (both >= LEAST_OVERLAP * (sizes - both)) & (both > 0) & (classes == objects[:, None, CLASS])
    return np.asarray(is_met.any(axis=1), np.int64)


def _others(detector: Detector, reading: OutputReading) -> Iterator[Detector]:
    """Those that differ in the numbering of classes, then in the places, then in both."""
    numberings = [replace(detector, first_class=detector.first_class + by) for by in (-1, 1)]
    if reading.classes:
        numberings.append(replace(detector, numbers="index" if reading.numbers == "id" else "id"))
    yield from numberings
    if reading.convention == "end_to_end" and detector.convention == "auto":
        yield replace(detector, convention="ultralytics")
    all_units = [detector.units, *(units for units in MEASURES if units not in (reading.units, detector.units))]
    for numbering in (detector, *numberings):
        for corners, units in itertools.product(FORMS, all_units):
            if (corners, units) != (reading.corners, detector.units):
                yield replace(numbering, corners=corners, units=units)


def _changes(detector: Detector, other: Detector) -> str:
    """What to write to have the other: ``corners = "yxyx" and first_class = 1``."""
    changes = [
        f"{key} = {value}" if isinstance(value, int) else f'{key} = "{value}"'
        for key in ("convention", "corners", "units", "numbers", "first_class")
        if (value := getattr(other, key)) != getattr(detector, key)
    ]
    return " and ".join(changes)
