"""From floating point to a quantized tensor of a `.tflite` file, and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engines.contract import Array
from engines.litert.facts import TfliteTensor

ArrayChange = Callable[[Array], Array]


def quantizer(tensor: TfliteTensor) -> ArrayChange | None:
    """From floating point to a quantized input; None where it is not quantized."""
    if not tensor.scales:
        return None
    scale, zero_point = np.float32(tensor.scales[0]), (tensor.zero_points or (0,))[0]
    limits = np.iinfo(tensor.type.lower())

    def quantize(values: Array) -> Array:
        rounded = np.rint(np.asarray(values, np.float32) / scale) + zero_point
        clipped: Array = np.clip(rounded, limits.min, limits.max).astype(limits.dtype)
        return clipped

    return quantize


def restorer(tensor: TfliteTensor) -> ArrayChange | None:
    """From a quantized output to floating point; None where it is not quantized."""
    if not tensor.scales:
        return None
    scale, zero_point = np.float32(tensor.scales[0]), np.float32((tensor.zero_points or (0,))[0])
    return lambda values: (values.astype(np.float32) - zero_point) * scale
