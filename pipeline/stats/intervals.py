"""An interval against a limit: pass, fail, or not decided; and when to look."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "not decided"]
LOOK_GROWTH = 1.5
NUM_HALVINGS = 60


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

    So a number that keeps its limit, even barely, is called a failure with a probability of at most
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


@functools.lru_cache(maxsize=1024)
def student_quantile(tail: float, num_degrees: int) -> float:
    """The number that Student's t with so many degrees of freedom exceeds with probability ``tail``, below 0.5.

    By halving, from the finite sums in Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 4.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _beyond(middle, num_degrees) > tail else (low, middle)
    return math.sqrt(num_degrees) * math.tan(low)


def _beyond(angle: float, num_degrees: int) -> float:
    """The probability that Student's t exceeds ``sqrt(num_degrees) * tan(angle)``, for an angle from 0 to pi / 2."""
    cosine, odd = math.cos(angle), num_degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, num_degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    inside = math.sin(angle) * total
    return (1 - (2 / math.pi * (angle + inside) if odd else inside)) / 2
