"""Bounds from a bootstrap over few groups.

The plain percentile interval is too narrow by as much as the spread of so few is underestimated: over ten blocks one
that is called 95 % misses in 10 of 100, and one that is called 99 % in 5. So its quantiles are taken a little further
out, as Student's t is wider than the normal distribution (the expanded percentile interval: Hesterberg, "What teachers
should know about the bootstrap", The American Statistician 69 (2015) 371-386).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from calibration.arrays import Floats
from pipeline.stats.intervals import student_quantile

FEWEST_IN_TAIL = 5
"""With fewer resamples beyond a bound, the bound is taken from their standard deviation instead."""


def expanded_percentiles(drawn: Floats, estimate: float, num: int, tail: float) -> tuple[float, float]:
    """The lower and the upper bound, each of which is passed with probability ``tail``.

    Args:
        drawn: what was estimated on each resample, (num_resamples,).
        estimate: on what was measured itself.
        num: how many independent samples, or groups of such, there are, at least 2.
        tail: such as 0.005.
    """
    wider = student_quantile(tail, num - 1) * math.sqrt(num / (num - 1))
    expanded = NormalDist().cdf(-wider)
    if expanded * len(drawn) < FEWEST_IN_TAIL:
        half = wider * float(drawn.std(ddof=1))
        return estimate - half, estimate + half
    low, high = np.quantile(drawn, (expanded, 1 - expanded))
    return float(low), float(high)
