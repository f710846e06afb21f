"""[data.detector]: how a detector's outputs are read, where their names and shapes do not say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.option import check_bounds, option

Convention = Literal[
    "auto", "tensorflow", "ultralytics", "yolov5", "end_to_end", "efficient_nms", "onnx_nms", "lists", "dense"
]
Corners = Literal["auto", "xyxy", "yxyx", "center", "ltwh"]
Units = Literal["auto", "pixels", "normalized"]
ClassNumbering = Literal["auto", "index", "id"]


@dataclass(frozen=True)
class Detector:
    """How a detector's outputs are read, where their names and shapes do not say it."""

    convention: Convention = option("auto", "what the outputs are; auto: by their names and shapes")
    boxes: str = option("", "output with the boxes")
    scores: str = option("", "output with the scores")
    classes: str = option("", "output with the numbers of the classes")
    count: str = option("", "output with the number of boxes that count")
    indices: str = option("", "output of ONNX's NonMaxSuppression")
    corners: Corners = option("auto", "what the four numbers of a box are; ltwh: left, top, width, height")
    units: Units = option("auto", "what they are in")
    numbers: ClassNumbering = option("auto", "what the numbers of the classes are")
    first_class: int = option(0, "added to the network's class numbers; -1 where its first class is the background")
    min_score: float = option(0.001, "boxes of lower scores are dropped before they are suppressed")
    max_overlap: float = option(0.7, "of two boxes of a class that overlap more (IoU), the lower is suppressed")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, min_score=(0, 1), max_overlap=(0, 1))


AS_IT_SAYS = Detector()
"""A detector whose outputs' names and shapes tell what they are."""
