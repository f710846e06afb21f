"""Quantiles of an array. Those of numpy import numpy.ma, which takes 40 ms: more than calibrating a small network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


def median(values: npt.NDArray[Any]) -> float:
    """Of all elements, as ``numpy.median``.

    Raises:
        IndexError: there are none.
    """
    ordered, middle = np.sort(values, axis=None), values.size // 2
    return float(ordered[middle] + ordered[-middle - 1]) / 2


def quantile_above(values: npt.NDArray[Any], share: float) -> float:
    """The least element that is not below ``share`` (0 to 1) of the way, as ``numpy.quantile`` by ``higher``.

    Raises:
        IndexError: there are none.
    """
    ordered = np.sort(values, axis=None)
    return float(ordered[math.ceil(share * (values.size - 1))])
