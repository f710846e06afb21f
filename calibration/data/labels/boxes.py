"""Boxes around the objects of pictures, as an array with a row for each picture, and where the picture lies in it.

The array is (N, 1 + M, 8) of float64. Row 0 of a picture is its frame (``PictureFrame``: width, height, input width,
input height, scale x, scale y, offset x, offset y), each other row a box: (class, the class's id in the file, left,
top, width, height, area, 1 for a crowd or 0), in pixels of the picture; class -1 fills. So any part of the pictures has
its boxes with it, also where the pictures themselves are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from calibration.arrays import AnyArray, Floats
from calibration.data.picture_frame import PictureFrame
from calibration.errors import DataError

NUM_COLUMNS = 8
CLASS, ID, LEFT, TOP, WIDTH, HEIGHT, AREA, CROWD = range(NUM_COLUMNS)
OUTSIDE_PX = 1.0
"""A box may be so far out of its picture, for files round."""


@dataclass(frozen=True)
class LabelledBox:
    """An object of a picture, in its pixels."""

    class_number: int
    """From 0, in the order of the file's classes."""
    class_id: int
    """What the file calls the class."""
    left: float
    top: float
    width: float
    height: float
    area: float
    """Of the object, which may be less than of the box."""
    is_crowd: bool = False
    """Stands for many objects: who names some of them is neither right nor wrong."""

    def check(self, picture_width: float, picture_height: float, where: str) -> None:
        """That it lies in its picture.

        Raises:
            DataError: it does not, or has a negative size, or is not of numbers.
        """
        right, bottom = self.left + self.width, self.top + self.height
        shown = f"from ({self.left:g}, {self.top:g}) to ({right:g}, {bottom:g})"
        if not all(np.isfinite((self.left, self.top, self.width, self.height, self.area))):
            raise DataError(f"{where}: has a box {shown}, which are no numbers; correct it")
        if min(self.width, self.height, self.area) < 0:
            raise DataError(f"{where}: has a box {shown}, of negative size or area; correct it")
        within = min(self.left, self.top) >= -OUTSIDE_PX
        if not within or right > picture_width + OUTSIDE_PX or bottom > picture_height + OUTSIDE_PX:
            raise DataError(
                f"{where}: has a box {shown}, the picture is {picture_width:g} x {picture_height:g} pixels; correct "
                "the box, or give the picture that it is of"
            )


def box_table(frames: Sequence[PictureFrame], boxes: Sequence[Sequence[LabelledBox]]) -> Floats:
    """The array of the boxes of each picture."""
    most = max(map(len, boxes), default=0)
    table = np.zeros((len(frames), 1 + most, NUM_COLUMNS))
    table[:, 1:, (CLASS, ID)] = -1
    for row, (frame, of_picture) in enumerate(zip(frames, boxes, strict=True)):
        table[row, 0] = astuple(frame)
        for place, box in enumerate(of_picture, 1):
            table[row, place] = astuple(box)
    return table


def is_box_table(labels: AnyArray) -> bool:
    """Whether labels are such an array."""
    is_like = labels.ndim == 3 and labels.shape[1] > 0 and labels.shape[2] == NUM_COLUMNS
    if not is_like or labels.dtype != np.float64:
        return False
    classes = labels[:, 1:, CLASS].astype(np.float64)
    frames = labels[:, 0, :6].astype(np.float64)
    return bool((frames > 0).all() and (classes >= -1).all() and (classes == np.rint(classes)).all())


def frame_in(row: Floats) -> PictureFrame:
    """The frame of a picture's row (1 + M, 8)."""
    return PictureFrame(*map(float, row[0]))


def boxes_in(row: Floats) -> Floats:
    """(M', 8): the boxes of a picture's row (1 + M, 8)."""
    return row[1:][row[1:, CLASS] >= 0]
