"""SQNR: the ratio of a signal to the noise of its quantization."""

from __future__ import annotations

import math


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares; inf where there is no noise, -inf where no number is left."""
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf
