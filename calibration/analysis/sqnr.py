"""SQNR: the ratio of a signal to the noise of its quantization."""

from __future__ import annotations

import math

import numpy as np

from calibration.arrays import AnyArray


def sqnr_db_of(expected: AnyArray, actual: AnyArray) -> float:
    """Of two arrays of one shape, in double precision; noise that is no finite number leaves nothing of the signal."""
    with np.errstate(all="ignore"):
        signal = float(np.square(expected, dtype=np.float64).sum())
        noise = float(np.square(np.subtract(actual, expected, dtype=np.float64)).sum())
    return sqnr_db(signal, noise if math.isfinite(noise) else math.inf)


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares; inf where there is no noise, -inf where no number is left."""
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def without_equal_infinities(want: AnyArray, have: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Both with 0 where they have the same infinity, as masked scores do: they agree there."""
    if want.dtype.kind != "f" or want.shape != have.shape or not np.isinf(want).any():
        return want, have
    equal = np.isinf(want) & (want == have)
    first, second = want.copy(), have.copy()
    first[equal] = second[equal] = 0
    return first, second
