"""Intervals for a share of samples, and for the difference of two shares on the same samples; tests.

- ``wilson``: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927) 209-212.
- ``clopper_pearson``: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
  binomial", Biometrika 26 (1934) 404-413: never narrower than it says, for decisions.
- ``tango``: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
  design", Statistics in Medicine 17 (1998) 891-908. It inverts the score test, so it leaves 0 out where McNemar's
  asymptotic test calls the difference significant, and stays sensible with no or few disagreements.
- ``mcnemar``: the exact test: of the samples on which one is right and the other wrong, each is right on half. McNemar,
  "Note on the sampling error of the difference between correlated proportions or percentages", Psychometrika 12 (1947).
- ``holm``: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6 (1979)
  65-70. However the tests depend on each other, the chance that any equal pair is called unequal stays below 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

CONFIDENCE = 0.95
NUM_HALVINGS = 60


def wilson(num_hits: int, num: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of the share ``num_hits / num``."""
    share, spread = num_hits / num, two_sided(confidence) ** 2 / num
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4)
    low, high = ((share + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def clopper_pearson(num_hits: int, num: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of the share ``num_hits / num``."""
    tail = (1 - confidence) / 2

    def upper(hits: int) -> float:
        """The share with which so few hits, or fewer, have the probability ``tail``."""
        low, high = hits / num, 1.0
        for _ in range(NUM_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if _at_most(hits, num, middle) > tail else (low, middle)
        return high

    return 1 - upper(num - num_hits) if num_hits else 0.0, upper(num_hits) if num_hits < num else 1.0


def tango(num_first: int, num_second: int, num: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of (share of the first) - (share of the second).

    Args:
        num_first: samples on which only the first is right.
        num_second: samples on which only the second is right.
        num: all samples.
    """
    difference, z = (num_first - num_second) / num, two_sided(confidence)

    def bound(sign: int) -> float:
        inside, outside = difference, float(sign)
        for _ in range(NUM_HALVINGS):
            middle = (inside + outside) / 2
            if abs(_score(middle, num_first, num_second, num)) <= z:
                inside = middle
            else:
                outside = middle
        return inside

    return bound(-1), bound(1)


def mcnemar(num_first: int, num_second: int) -> float:
    """Two-sided p of the exact test that neither is right more often; arguments as of ``tango``."""
    num = num_first + num_second
    tail = sum(math.comb(num, k) for k in range(min(num_first, num_second) + 1))
    return min(1.0, 2 * tail / (1 << num))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p, corrected for the number of tests; in the same order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def two_sided(confidence: float) -> float:
    """How many standard deviations around the mean of a normal distribution hold that share of it."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _at_most(hits: int, num: int, share: float) -> float:
    """P(X <= hits) of a binomial distribution, 0 < share < 1, summed from the largest term on down."""
    term = math.exp(
        math.lgamma(num + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(num - hits + 1)
        + hits * math.log(share)
        + (num - hits) * math.log1p(-share)
    )
    total, odds = 0.0, (1 - share) / share
    for k in range(hits, -1, -1):
        total += term
        term *= k / (num - k + 1) * odds
        if term < total * 1e-17:
            break
    return total


def _score(difference: float, num_first: int, num_second: int, num: int) -> float:
    """Tango's statistic: the excess over ``difference``, in standard errors at the likeliest shares that have it."""
    excess = num_first - num_second - num * difference
    b = -num_first - num_second + (2 * num - num_first + num_second) * difference
    c = -num_second * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 8 * num * c, 0.0)) - b) / (4 * num)
    variance = num * (2 * share + difference * (1 - difference))
    if variance <= 0.0:
        return 0.0 if excess == 0.0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)
