"""Whether labels are what top1 takes: the index of a class for each sample."""

from __future__ import annotations

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.source import DYNAMIC


def why_no_classes(labels: AnyArray, num_classes: int) -> str:
    """Empty if they are indices of so many classes (``DYNAMIC``: any number); else why not, after "for top1".

    Args:
        labels: (N, ...) as stored.
        num_classes: what an output has scores for.
    """
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        return f"whole numbers (N,) are expected, not {labels.dtype} {labels.shape}"
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or (num_classes != DYNAMIC and high >= num_classes):
        classes = "0, 1, …" if num_classes == DYNAMIC else f"0 to {num_classes - 1}"
        return f"labels go from {low} to {high}, but the output has the classes {classes}"
    return ""


def is_one_hot(labels: AnyArray) -> bool:
    """Whether each row (N, classes) is 0 but for a single 1."""
    if labels.dtype.kind not in "iufb" or labels.ndim != 2 or labels.shape[1] < 2:
        return False
    ones = labels == 1
    return bool(((labels == 0) | ones).all() and (np.count_nonzero(ones, axis=1) == 1).all())
