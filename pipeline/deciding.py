"""An interval against a limit: pass, fail, or not decided; and when to look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

Outcome = Literal["pass", "fail", "not decided"]
LOOK_GROWTH = 1.5


@dataclass(frozen=True)
class Interval:
    """What was found, and the bounds that hold the truth with this confidence; all in the unit of the estimate."""

    estimate: float
    low: float
    high: float
    confidence: float
    """Of both bounds together: the truth lies below ``low`` with a probability of at most half of the rest."""


@dataclass(frozen=True)
class Limit:
    """A bound that a number must keep."""

    bound: float
    at_most: bool
    """The number must be at most the bound; else at least."""

    def __str__(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.bound:g}"


def outcome(interval: Interval, limit: Limit) -> Outcome:
    """``pass`` if the whole interval keeps the limit, ``fail`` if no part of it does, else ``not decided``.

    So a number that keeps its limit, be it by a hair, is called a failure with a probability of at most
    ``(1 - confidence) / 2``, and one that breaks it passes as seldom. A bound that is NaN decides nothing.
    """
    if interval.high <= limit.bound if limit.at_most else interval.low >= limit.bound:
        return "pass"
    if interval.low > limit.bound if limit.at_most else interval.high < limit.bound:
        return "fail"
    return "not decided"


def planned_looks(first: int, most: int) -> list[int]:
    """After how many observations to look: first after ``first``, then 1.5 times as many, and last when it is over.

    ``most`` is how many there may be in the time that was given.
    """
    looks, next_look = [], float(first)
    while next_look < most:
        looks.append(math.floor(next_look))
        next_look *= LOOK_GROWTH
    return [*looks, max(most, first)]


def student_quantile(tail: float, num_degrees: int) -> float:
    """The number that Student's t with so many degrees of freedom exceeds with probability ``tail``.

    The expansion around the normal quantile, Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.5;
    from 7 degrees of freedom on within 1 % down to tails of 1e-4.
    """
    z = NormalDist().inv_cdf(1 - tail)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(num_degrees) ** power for power, term in enumerate(terms))
