"""The bounds of a bootstrap over few groups miss as seldom as they say."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.stats.bootstrap import expanded_percentiles


@pytest.mark.parametrize("num", [4, 10, 40])
@pytest.mark.parametrize("tail", [0.025, 0.005])
def test_the_mean_of_few_groups_is_missed_as_seldom_as_the_tail_says(num: int, tail: float) -> None:
    random, num_times = np.random.default_rng(0), 1000
    missed = 0
    for _ in range(num_times):
        groups = random.normal(1.0, 0.05, num)
        drawn = groups[random.integers(num, size=(2000, num))].mean(axis=1)
        low, high = expanded_percentiles(drawn, float(groups.mean()), num, tail)
        missed += not low <= 1.0 <= high
    expected = 2 * tail * num_times
    assert missed <= expected + 3 * np.sqrt(expected)
    assert missed >= expected / 4, "and are no wider than they must be"


def test_what_does_not_vary_has_no_width() -> None:
    assert expanded_percentiles(np.full(2000, 1.5), 1.5, 10, 0.005) == (1.5, 1.5)
