"""Nearest-rank percentiles: each is a value that occurred."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.arrays import Floats


def percentiles(values: Floats, shares: Sequence[float]) -> Floats:
    """Along the last axis, for each share the smallest value that at least this share of the values does not exceed.

    Of n values in rising order it is the one at rank ``ceil(share * n)``, as numpy counts it.

    Args:
        values: (..., n), n >= 1.
        shares: such as 0.99.

    Returns:
        (number of shares, ...).
    """
    return np.asarray(np.quantile(values, shares, axis=-1, method="inverted_cdf"))
