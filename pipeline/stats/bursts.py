"""Is a limit exceeded seldom enough, where what exceeds it comes in bursts? A bound from a Markov chain.

Each of a row of observations exceeds the limit or does not, with a probability that depends on the one before alone: a
chain of two states (Gabriel, "The distribution of the number of successes in a sequence of dependent trials",
Biometrika 46 (1959) 454-460). Its *share* is how many exceed in the long run, its *ending* the probability with which a
burst ends after each observation, so that a burst has 1 / ending of them on average.

How probable it is that so few exceed is bounded by Chernoff's inequality, for a chain by the largest eigenvalue of its
tilted transition matrix (Lezaud, "Chernoff-type bound for finite Markov chains", Annals of Applied Probability 8 (1998)
849-867). Where none exceeds, the bound is the probability itself, but for the first observation.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

NUM_HALVINGS = 40


def log_chance_of_few(num_above: int, num: int, share: float, ending: float) -> float:
    """The logarithm of a bound of the probability that no more than ``num_above`` of ``num`` observations exceed.

    Args:
        num_above: how many did.
        num: of how many.
        share: how many do in the long run, such as 0.01; at most 0.5.
        ending: 0 tells nothing; above ``1 - share`` it counts as that, which are independent observations.
    """
    if num_above >= share * num or not ending:
        return 0.0
    ending = min(ending, 1 - share)
    beginning = ending * share / (1 - share)
    if not num_above:
        return num * math.log1p(-beginning)
    low, high = 0.0, 1.0  # What the probabilities to exceed are multiplied by, so that as few as that are expected.
    for _ in range(NUM_HALVINGS):
        tilt = (low + high) / 2
        expected = _eigenvalue(tilt, beginning, ending)[1] * num
        low, high = (tilt, high) if expected < num_above else (low, tilt)
    return num * _eigenvalue(high, beginning, ending)[0] - num_above * math.log(high)


def _eigenvalue(tilt: float, beginning: float, ending: float) -> tuple[float, float]:
    """The logarithm of the largest one of the tilted matrix, and its derivative by the tilt's logarithm."""
    trace, correlation = 1 - beginning + (1 - ending) * tilt, 1 - beginning - ending
    root = math.hypot(1 - beginning - (1 - ending) * tilt, 2 * math.sqrt(beginning * ending * tilt))
    largest = (trace + root) / 2
    slope = (1 - ending + (trace * (1 - ending) - 2 * correlation) / root) / 2
    return math.log(largest), tilt * slope / largest


def longest_mean_burst(above: npt.NDArray[np.bool_]) -> float:
    """How many exceed in a row on average, and two standard errors of lengths that vary at random; 1 if none does.

    Args:
        above: whether each exceeds, (num_rows, num_observations); a burst ends with its row.
    """
    num_bursts = int(above[:, 0].sum()) + int((above[:, 1:] & ~above[:, :-1]).sum())
    mean = int(above.sum()) / num_bursts if num_bursts else 1.0
    return mean + 2 * math.sqrt(mean * (mean - 1) / max(num_bursts, 1))
