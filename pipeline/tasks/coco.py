"""COCO's mean average precision: each picture is evaluated once by pycocotools, and added up for any resample of them.

The only file that names pycocotools. Adding up is its ``COCOeval.accumulate``, in which a picture that is drawn twice
counts twice: by weights in the cumulative sums, where pycocotools would have to sort all boxes again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.arrays import Bools, Floats, Ints
from calibration.data.labels.boxes import AREA, CLASS, CROWD, HEIGHT, LEFT, boxes_in
from pipeline.errors import ConfigError, Unavailable
from pipeline.machine.packages import distribution_versions
from pipeline.tasks.answers import SampleCounts
from pipeline.tasks.detections import Detections

DISTRIBUTION = "pycocotools"
INSTALL = "pip install 'trtforge[metrics]'"
MOST_DETECTIONS = 100
"""Of a picture and class, those of the highest scores."""
RECALLS = np.linspace(0.0, 1.0, 101)
ALL_OVERLAPS = tuple(float(x) for x in np.linspace(0.5, 0.95, 10))
EVERY_SIZE = (0.0, 1e10)


@dataclass(frozen=True)
class MeanPrecision:
    """Which mean it is: over which overlaps (IoU), of objects of which area in square pixels."""

    name: str
    overlaps: tuple[float, ...] = ALL_OVERLAPS
    areas: tuple[float, float] = EVERY_SIZE


MEANS = {
    mean.name: mean
    for mean in (
        MeanPrecision("map"),
        MeanPrecision("map50", (0.5,)),
        MeanPrecision("map75", (0.75,)),
        MeanPrecision("map_small", areas=(0.0, 32.0**2)),
        MeanPrecision("map_medium", areas=(32.0**2, 96.0**2)),
        MeanPrecision("map_large", areas=(96.0**2, 1e10)),
    )
}


@dataclass(frozen=True)
class ClassMatches:
    """All boxes of one class, by falling score, as they were matched with the labels."""

    pictures: Ints
    """(D,) of which picture."""
    is_right: Bools
    is_wrong: Bools
    """(overlaps, D) each; neither where it is not judged, such as within a crowd or of another size."""
    num_labelled: Floats
    """(N,) objects of each picture."""

    def average_precision(self, counts: SampleCounts) -> float | None:
        """The mean over overlaps of the mean over 101 recalls of the precision; None where there is no object."""
        num = float(counts @ self.num_labelled)
        if not num:
            return None
        weights = counts[self.pictures]
        right, wrong = (
            np.cumsum(flags * weights, axis=1, dtype=np.float64) for flags in (self.is_right, self.is_wrong)
        )
        if not right.shape[1]:
            return 0.0
        precision = right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        means = []
        for recall, envelope in zip(right / num, precision, strict=True):
            places = np.searchsorted(recall, RECALLS, side="left")
            reached = places < len(envelope)
            means.append(envelope[places[reached]].sum() / len(RECALLS))
        return float(np.mean(means))


@dataclass(frozen=True)
class MatchedBoxes:
    """The boxes of all pictures, by class."""

    name: str
    classes: tuple[ClassMatches, ...]
    is_nan: bool
    remarks: Callable[[], list[str]] = list
    """What should be known of labels and answers, found when it is asked for."""

    def value(self, counts: SampleCounts) -> float:
        """The mean over the classes that have objects among those pictures."""
        if self.is_nan:
            return math.nan
        values = [value for c in self.classes if (value := c.average_precision(counts)) is not None]
        if not values:
            sized = "" if MEANS[self.name].areas == EVERY_SIZE else f" of the size of {self.name}"
            raise ConfigError(
                f"metric '{self.name}': the labels have no object{sized} in these pictures; use more evaluation data"
                + ("" if not sized else ", or map")
            )
        return float(np.mean(values))

    def notes(self) -> list[str]:
        """What should be known of labels and answers."""
        return [f"{self.name}: {remark}" for remark in self.remarks()]


def check_available(name: str) -> None:
    """That pycocotools is installed, for the metric of that name.

    Raises:
        Unavailable: it is not.
    """
    if importlib.util.find_spec(DISTRIBUTION) is None:
        raise Unavailable(f"metric '{name}': needs {DISTRIBUTION}, which is not installed; {INSTALL}")


def version_behind(name: str) -> str:
    """The version of pycocotools where the metric of that name depends on it; else empty."""
    return distribution_versions(DISTRIBUTION)[DISTRIBUTION] if name in MEANS else ""


def matched(name: str, detections: Sequence[Detections], labels: Floats) -> tuple[ClassMatches, ...]:
    """Boxes and labels compared, picture by picture.

    Args:
        name: of the mean, for overlaps and areas.
        detections: of each picture, with classes numbered as the labels are.
        labels: ``calibration.data.labels.boxes``.
    """
    mean = MEANS[name]
    evaluation = _evaluation(detections, labels)
    evaluation.params.iouThrs = np.array(mean.overlaps)
    evaluation.params.areaRng = [list(mean.areas)]
    evaluation.params.areaRngLbl = ["asked"]
    evaluation.params.maxDets = [MOST_DETECTIONS]
    with _silence():
        evaluation.evaluate()
    num = len(detections)
    by_class = [evaluation.evalImgs[at : at + num] for at in range(0, len(evaluation.evalImgs), num)]
    return tuple(_class_matches(pictures, num, len(mean.overlaps)) for pictures in by_class)


def _class_matches(evaluated: Sequence[dict[str, Any] | None], num: int, num_overlaps: int) -> ClassMatches:
    """Of one class, what pycocotools says of each picture; None where a picture has nothing of it."""
    scores, pictures, right, wrong = [np.zeros(0)], [np.zeros(0, np.int64)], [], []
    num_labelled = np.zeros(num)
    for number, picture in enumerate(evaluated):
        if picture is None:
            continue
        num_labelled[number] = np.count_nonzero(np.asarray(picture["gtIgnore"]) == 0)
        is_matched, is_ignored = (np.asarray(picture[key], bool) for key in ("dtMatches", "dtIgnore"))
        scores.append(np.asarray(picture["dtScores"], np.float64))
        pictures.append(np.full(len(scores[-1]), number))
        right.append(is_matched & ~is_ignored)
        wrong.append(~is_matched & ~is_ignored)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    empty = np.zeros((num_overlaps, 0), bool)
    return ClassMatches(
        np.concatenate(pictures)[order],
        np.concatenate([empty, *right], axis=1)[:, order],
        np.concatenate([empty, *wrong], axis=1)[:, order],
        num_labelled,
    )


def _evaluation(detections: Sequence[Detections], labels: Floats) -> Any:
    """pycocotools' own, of one data set."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = [boxes_in(row) for row in labels]
    classes = {int(number) for row in rows for number in row[:, CLASS]}
    dataset = {"images": [{"id": n} for n in range(len(rows))], "categories": [{"id": c} for c in sorted(classes)]}
    truth = [
        {
            "image_id": number,
            "category_id": int(box[CLASS]),
            "bbox": box[LEFT : HEIGHT + 1].tolist(),
            "area": float(box[AREA]),
            "iscrowd": int(box[CROWD]),
        }
        for number, row in enumerate(rows)
        for box in row
    ]
    answers = [
        {"image_id": number, "category_id": int(c), "bbox": box, "area": box[2] * box[3], "score": score, "iscrowd": 0}
        for number, row in enumerate(detections)
        for box, score, c in zip(_sized(row.boxes), row.scores.tolist(), row.classes, strict=True)
        if int(c) in classes
    ]
    sides = []
    with _silence():
        for annotations in (truth, answers):
            side = COCO()
            # Ids from 1 on: 0 would mean that nothing was matched.
            side.dataset = {**dataset, "annotations": [{"id": n, **a} for n, a in enumerate(annotations, 1)]}
            side.createIndex()
            sides.append(side)
        return COCOeval(*sides, iouType="bbox")


def _sized(boxes: Floats) -> list[list[float]]:
    """Left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
