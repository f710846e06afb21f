"""The bound of the chance that few exceed a limit, against the chance itself."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.stats.bursts import log_chance_of_few, longest_mean_burst


def chance_of_few(num_above: int, num: int, share: float, ending: float) -> float:
    """The chance itself, observation by observation: (exceeds or not, how many have)."""
    beginning = ending * share / (1 - share)
    below, above = np.zeros(num_above + 1), np.zeros(num_above + 1)
    below[0] = 1 - share
    above[1:2] = share
    for _ in range(num - 1):
        begun = below * beginning + above * (1 - ending)
        below = below * (1 - beginning) + above * ending
        above = np.concatenate([[0.0], begun[:-1]])
    return float(below.sum() + above.sum())


@pytest.mark.parametrize("ending", [0.05, 0.3, 0.6, 1.0])
@pytest.mark.parametrize(("share", "num", "most"), [(0.01, 1500, 6), (0.1, 300, 15), (0.5, 100, 35)])
def test_the_bound_lies_above_the_chance_and_not_far_above(share: float, num: int, most: int, ending: float) -> None:
    for num_above in (0, 1, most // 3, most):
        exact = chance_of_few(num_above, num, share, min(ending, 1 - share))
        bound = math.exp(log_chance_of_few(num_above, num, share, ending))
        assert exact <= bound * 1.0001
        assert bound <= 12 * exact


def test_independent_observations_are_binomial() -> None:
    assert log_chance_of_few(0, 735, 0.01, 1.0) == pytest.approx(735 * math.log(0.99))
    for num_above in (1, 3, 8):
        chernoff = -2000 * (
            num_above / 2000 * math.log(num_above / 20)
            + (1 - num_above / 2000) * math.log((1 - num_above / 2000) / 0.99)
        )
        assert log_chance_of_few(num_above, 2000, 0.01, 1.0) == pytest.approx(chernoff, rel=1e-6)
        assert chernoff >= stats.binom.logcdf(num_above, 2000, 0.01)


def test_more_that_exceed_and_longer_bursts_are_less_unlikely() -> None:
    by_number = [log_chance_of_few(num_above, 3000, 0.01, 0.4) for num_above in range(40)]
    assert by_number == sorted(by_number)
    assert by_number[30:] == [0.0] * 10, "as many as that share"
    by_ending = [log_chance_of_few(5, 3000, 0.01, ending) for ending in (1.0, 0.99, 0.5, 0.1, 0.02)]
    assert by_ending == sorted(by_ending)


def test_bursts_without_an_end_tell_nothing() -> None:
    assert [log_chance_of_few(num_above, 3000, 0.01, 0.0) for num_above in (0, 5)] == [0.0, 0.0]
    assert -1e-6 < log_chance_of_few(5, 3000, 0.01, 1e-12) <= 0.0


def test_bursts_end_with_their_row() -> None:
    above = np.array([[False, True, True, False], [True, False, True, True], [True, True, False, False]])
    mean = 7 / 4
    assert longest_mean_burst(above) == pytest.approx(mean + 2 * math.sqrt(mean * 0.75 / 4))
    assert longest_mean_burst(above[:, :1] & False) == 1.0
    assert longest_mean_burst(np.array([[True, False, True, False]])) == 1.0, "each by itself"
