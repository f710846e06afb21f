"""The slope of a series: true as often as it says, whatever the noise; what was not seen; how long would do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.arrays import Floats
from pipeline.stats.trend import LEAST_SAMPLES, Trend, trend

NUM_SAMPLES = 600
TIMES = np.arange(NUM_SAMPLES) / 10
SLOPE = 2.0


def noise(kind: str, random: np.random.Generator) -> Floats:
    """Around a line, or wandering off it; spikes last for one sample."""
    shocks: Floats = random.normal(size=NUM_SAMPLES)
    if kind == "independent":
        return shocks
    if kind == "spikes":
        return np.where(random.random(NUM_SAMPLES) < 0.1, 100.0, 0.0)
    memory = {"neighbours alike": 0.98, "random walk": 1.0}[kind]
    series = np.zeros(NUM_SAMPLES)
    for index in range(1, NUM_SAMPLES):
        series[index] = memory * series[index - 1] + shocks[index]
    return series


@pytest.mark.parametrize("kind", ["independent", "spikes", "neighbours alike", "random walk"])
def test_each_bound_is_passed_as_seldom_as_it_says(kind: str) -> None:
    random = np.random.default_rng(1)
    trends = [trend(TIMES, SLOPE * TIMES + noise(kind, random), 0.025, 0.0) for _ in range(1000)]
    assert np.mean([each.low > SLOPE for each in trends]) < 0.04
    assert np.mean([each.high < SLOPE for each in trends]) < 0.04


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 300])
def test_growth_in_steps_at_random_times(num_steps: int) -> None:
    """Of one step on average, a third of the series has none: that is what ``unseen`` is for."""
    random = np.random.default_rng(2)
    true, trends = num_steps / TIMES[-1], []
    for _ in range(1000):
        steps = random.poisson(num_steps / NUM_SAMPLES, size=NUM_SAMPLES)
        trends.append(trend(TIMES, np.cumsum(steps).astype(np.float64), 0.025, 1.0))
    assert np.mean([each.low > true for each in trends]) < 0.04
    assert np.mean([each.high < true for each in trends]) < 0.04


def test_the_slope_of_a_straight_line_is_exact() -> None:
    straight = trend(TIMES, 3 * TIMES + 7, 0.005, 0.0)
    assert straight.slope == pytest.approx(3)
    assert straight.spread == pytest.approx(0, abs=1e-9)


def test_of_a_level_series_the_upper_bound_is_what_was_not_seen() -> None:
    level = trend(TIMES, np.full(NUM_SAMPLES, 5.0), 0.005, 0.0625)
    assert (level.slope, level.low) == (0, 0)
    assert level.high == pytest.approx(-math.log(0.005) * 0.0625 / TIMES[-1])


def test_one_step_alone_is_no_growth_for_certain() -> None:
    """Such as a library that is loaded late: zero lies within the bounds."""
    stepped = trend(TIMES, np.where(TIMES < 20, 0.0, 10.0), 0.005, 0.0)
    assert stepped.low < 0 < stepped.high


def test_gaps_between_samples_do_no_harm() -> None:
    some = np.concatenate([TIMES[:200], TIMES[350:]])
    assert trend(some, 3 * some, 0.005, 0.0).slope == pytest.approx(3)


@pytest.mark.parametrize(
    ("times", "problem"),
    [
        (TIMES[: LEAST_SAMPLES - 1], "fewer than"),
        (np.zeros(100), "of one moment"),
        (np.repeat([0.0, 9.0], 50), "lie in 2"),
    ],
)
def test_too_little_is_refused(times: Floats, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        trend(times, times, 0.005, 0.0)


def test_how_much_longer_would_do() -> None:
    assert Trend(0.0, 0.0, 10.0).times_as_long(20) == 1
    assert 10 <= Trend(0.0, 0.0, 10.0).times_as_long(1) <= 16, "what was not seen shrinks with the time"
    assert 100 <= Trend(5.0, 10.0, 0.0).times_as_long(1) <= 160, "5 may be nothing"
    assert 100 <= Trend(0.0, 10.0, 0.0).times_as_long(1) <= 160, "what was seen with its root"
    assert Trend(2.0, 0.5, 10.0).times_as_long(1) == 1, "below a slope there is nothing unseen"
    assert Trend(1.0, 0.5, 0.0).times_as_long(1) == math.inf
