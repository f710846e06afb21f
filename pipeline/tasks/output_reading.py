"""Which outputs of a detector are what: by their names and shapes, or as the plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.detector import Detector

MOST_ROWS = 1000
"""An end-to-end head has at most so many rows; what has more is raw."""


@dataclass(frozen=True)
class OutputReading:
    """What each output is."""

    convention: str
    boxes: str
    """Also of a head that has all in one output."""
    scores: str = ""
    classes: str = ""
    count: str = ""
    indices: str = ""
    corners: str = "xyxy"
    units: str = "auto"
    numbers: str = "index"
    """Empty: not known."""

    def names(self) -> tuple[str, ...]:
        """Of the outputs that are read."""
        every = (self.boxes, self.scores, self.classes, self.count, self.indices)
        return tuple(name for name in every if name)

    def chosen(self) -> tuple[str, ...]:
        """Of those that are lists of boxes that suppression left, in the order of their scores."""
        if not self.is_suppressed:
            return ()
        return (self.indices,) if self.indices else self.names()

    @property
    def is_suppressed(self) -> bool:
        """Whether overlapping boxes are gone already."""
        return self.convention not in ("ultralytics", "yolov5", "dense")


NAMED = (
    OutputReading(
        "tensorflow", "detection_boxes", "detection_scores", "detection_classes", "num_detections",
        corners="yxyx", units="normalized", numbers="id",
    ),
    OutputReading("efficient_nms", "det_boxes", "det_scores", "det_classes", "num_dets"),
    OutputReading("lists", "boxes", "scores", "labels", numbers="id"),
)  # fmt: skip
"""Conventions that are told by names: TensorFlow's Object Detection API, TensorRT's EfficientNMS, torchvision."""
HOW = (
    "name them in [data.detector]: boxes, scores and classes (and count) for lists of boxes, boxes and scores for one "
    "score a class, or convention and boxes; docs/metrics.md has each"
)


def reading_of(outputs: Mapping[str, Array], detector: Detector) -> OutputReading:
    """Which output is what.

    Args:
        outputs: by name, each (N, ...), or (N,) of an array for each sample where their shapes differ.
        detector: what the plan says.

    Raises:
        ConfigError: they are named otherwise; with what there is and how to say what it is.
    """
    asked = _as_asked(outputs, detector)
    reading = asked or _by_names(outputs, detector) or _by_shapes(outputs, detector)
    if reading is None:
        raise ConfigError(
            f"the detector's outputs are {_listed(outputs)}, which are named and shaped as none that is known; {HOW}"
        )
    for name in reading.names():
        if name not in outputs:
            raise ConfigError(f"[data.detector]: there is no output '{name}', there are {_listed(outputs)}; correct it")
    changes = {
        key: getattr(detector, key) for key in ("corners", "units", "numbers") if getattr(detector, key) != "auto"
    }
    return replace(reading, **changes)


def shape_of(array: Array) -> tuple[int, ...]:
    """Of one sample's answer; of the first where they differ."""
    return tuple(array[0].shape) if array.dtype.kind == "O" else tuple(array.shape[1:])


def _as_asked(outputs: Mapping[str, Array], detector: Detector) -> OutputReading | None:
    """By the names that the plan gives."""
    names = {key: getattr(detector, key) for key in ("boxes", "scores", "classes", "count", "indices")}
    if not any(names.values()):
        return None
    convention: str = detector.convention
    if convention == "auto":
        parts = {key for key, name in names.items() if name}
        lists, dense, selected = {"boxes", "scores", "classes"}, {"boxes", "scores"}, {"boxes", "scores", "indices"}
        kinds = [(selected, "onnx_nms"), (lists, "lists"), (lists | {"count"}, "lists"), (dense, "dense")]
        convention = next((kind for wanted, kind in kinds if parts == wanted), "")
        if parts == {"boxes"} and names["boxes"] in outputs:
            alone = _by_shapes({names["boxes"]: outputs[names["boxes"]]}, detector)
            convention = "" if alone is None else alone.convention
        if not convention:
            raise ConfigError(
                f"[data.detector]: {', '.join(sorted(parts))} alone do not say what the outputs {_listed(outputs)} "
                f"are; {HOW}"
            )
    usual = next((reading for reading in NAMED if reading.convention == convention), None)
    corners, units, numbers = ("xyxy", "auto", "index") if usual is None else (
        usual.corners, usual.units, "" if convention == "lists" else usual.numbers
    )  # fmt: skip
    corners = {"ultralytics": "center", "yolov5": "center", "onnx_nms": "yxyx"}.get(convention, corners)
    return OutputReading(convention, **names, corners=corners, units=units, numbers=numbers)


def _by_names(outputs: Mapping[str, Array], detector: Detector) -> OutputReading | None:
    """A convention whose outputs are all there, by the last part of their names."""
    parts = [name.rpartition("/")[2].partition(":")[0].lower() for name in outputs]
    bare = {part: name for part, name in zip(parts, outputs, strict=True) if parts.count(part) == 1}
    for usual in NAMED:
        needed = (usual.boxes, usual.scores, usual.classes)
        if detector.convention in ("auto", usual.convention) and all(name in bare for name in needed):
            boxes, scores, classes = (bare[name] for name in needed)
            return replace(usual, boxes=boxes, scores=scores, classes=classes, count=bare.get(usual.count, ""))
    return None


def _by_shapes(outputs: Mapping[str, Array], detector: Detector) -> OutputReading | None:
    """A head with all in one output, or ONNX's NonMaxSuppression beside what it chose from."""
    shapes = {name: shape_of(array) for name, array in outputs.items()}
    wanted = detector.convention
    if len(shapes) == 1:
        ((name, shape),) = shapes.items()
        if len(shape) != 2:
            return None
        if wanted in ("auto", "end_to_end") and shape[1] == 6 and (shape[0] <= MOST_ROWS or wanted != "auto"):
            return OutputReading("end_to_end", name)
        is_head = min(shape) >= 5 and (shape[0] < shape[1] or wanted == "ultralytics")
        if wanted in ("auto", "ultralytics") and is_head:
            return OutputReading("ultralytics", name, corners="center")
        if wanted in ("auto", "yolov5") and 6 <= shape[1] < shape[0]:
            return OutputReading("yolov5", name, corners="center")
        return None
    if wanted not in ("auto", "onnx_nms"):
        return None
    indices = [n for n, shape in shapes.items() if shape[-1:] == (3,) and len(shape) < 3 and _is_whole(outputs[n])]
    boxes = [n for n, shape in shapes.items() if len(shape) == 2 and shape[1] == 4 and not _is_whole(outputs[n])]
    if len(indices) != 1 or len(boxes) != 1:
        return None
    num_boxes = shapes[boxes[0]][0]
    scores = [n for n, s in shapes.items() if n not in (*indices, *boxes) and len(s) == 2 and s[1] == num_boxes]
    if len(scores) != 1:
        return None
    return OutputReading("onnx_nms", boxes[0], scores[0], indices=indices[0], corners="yxyx")


def _is_whole(array: Array) -> bool:
    return (array[0] if array.dtype.kind == "O" else array).dtype.kind in "iu"


def _listed(outputs: Mapping[str, Array]) -> str:
    """Names and shapes of one sample."""
    return ", ".join(f"'{name}' {shape_of(array)}" for name, array in outputs.items())
