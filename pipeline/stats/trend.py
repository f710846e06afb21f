"""The slope of a noisy line over time, with bounds that hold however the noise hangs together.

The series is cut into windows of equal length, of which each counts by its median: what lasts for less than half a
window moves nothing. The slope is the median of the slopes between all pairs of windows (Theil 1950; Sen, "Estimates
of the regression coefficient based on Kendall's tau", Journal of the American Statistical Association 63 (1968)
1379-1389).

Neighbours in such a series resemble each other, and a series that grows in steps remembers every step: it is a random
walk, the worst case of autocorrelation, of which Sen's own interval and the usual corrections of it know nothing. So
the standard error is that of the steps between successive windows, which in a random walk are independent (batch means:
Schmeiser, "Batch size effects in the analysis of simulation output", Operations Research 30 (1982) 556-568), times
sqrt(6 / 5), by which a line through a random walk is less certain than its two ends are. Where the noise is around a
line instead, the interval is wider than it need be, never narrower.

A step that was not seen is in no spread. Where steps of at most some size come at random times, none comes within a
time with probability exp(-rate * time): so much is added to the upper bound (for the reason that ``bursts.py`` has).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Floats
from pipeline.stats.intervals import student_quantile

NUM_WINDOWS = 12
LEAST_SAMPLES = 3 * NUM_WINDOWS
"""Of fewer the medians of windows tell nothing."""
LINE_OVER_ENDS = math.sqrt(6 / 5)
SEEN = 0.15
"""The share of the distance to a bound that is left over for luck where a time is foretold."""
MOST_TIMES = 10_000.0
"""More than so many times as long is not foretold."""


@dataclass(frozen=True)
class Trend:
    """A slope, in the values' unit per unit of time."""

    slope: float
    spread: float
    """By which the true slope may lie above and below, by the spread of the steps that were seen."""
    unseen: float
    """By which it may lie above as well, by steps that were not seen."""

    @property
    def low(self) -> float:
        """The lower bound."""
        return self.slope - self.spread

    @property
    def high(self) -> float:
        """The upper bound."""
        return self.slope + self.spread + self.unseen

    def times_as_long(self, bound: float) -> float:
        """How many times as long a series would about do to say on which side of the bound the slope is; inf: none.

        What was seen shrinks with the square root of the time, what was not with the time. A slope that may be none is
        taken for none.
        """
        likely = 0.0 if self.low <= 0 <= self.high else self.slope
        gap = abs(bound - likely) * (1 - SEEN)
        unseen = self.unseen if bound > likely else 0.0
        times = 1.0
        while self.spread / math.sqrt(times) + unseen / times > gap:
            times *= 1.1
            if times > MOST_TIMES:
                return math.inf
        return times


def trend(times: Floats, values: Floats, tail: float, step: float) -> Trend:
    """The slope of ``values`` over ``times``, both (num_samples,), each bound passed with probability ``tail``.

    Args:
        times: rising, at least ``LEAST_SAMPLES`` of them.
        values: finite.
        tail: such as 0.005.
        step: the largest step that may have been missed, in the values' unit; see above.

    Raises:
        ValueError: there are fewer samples, or they are of one moment.
    """
    if len(times) < LEAST_SAMPLES or times[-1] <= times[0]:
        raise ValueError(f"trend: {len(times)} samples of one moment, or fewer than {LEAST_SAMPLES}")
    length = float(times[-1] - times[0]) / NUM_WINDOWS
    window = np.minimum(((times - times[0]) / length).astype(np.int64), NUM_WINDOWS - 1)
    present = np.unique(window)
    centres, medians = (np.array([np.median(of[window == index]) for index in present]) for of in (times, values))
    if len(present) < NUM_WINDOWS // 2:
        raise ValueError(f"trend: samples lie in {len(present)} of {NUM_WINDOWS} windows")
    first, second = np.triu_indices(len(present), 1)
    slope = float(np.median((medians[second] - medians[first]) / (centres[second] - centres[first])))
    gaps = np.diff(centres)
    steps = (np.diff(medians) - slope * gaps) / np.sqrt(gaps)  # Of a random walk these have one variance.
    num_free = len(steps) - 1
    deviation = math.sqrt(float((steps**2).sum()) / num_free)
    error = LINE_OVER_ENDS * deviation / math.sqrt(centres[-1] - centres[0])
    unseen = -math.log(tail) * step / float(times[-1] - times[0])
    return Trend(slope, student_quantile(tail, num_free) * error, unseen)
