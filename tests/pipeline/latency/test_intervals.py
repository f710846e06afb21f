"""Intervals over loads: worked out by hand, and how often they miss the truth on latencies drawn with known noise."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from calibration.arrays import Floats
from pipeline.latency.benchmark import latency_from_ms
from pipeline.latency.intervals import (
    BURST_MS,
    IntervalSpec,
    Statistic,
    interval_of,
    rank_bounds,
    ratio_bounds,
    sessions_needed,
    statistic_bounds,
)
from pipeline.stats.intervals import Limit, outcome

Random = np.random.Generator
STATISTICS: tuple[Statistic, ...] = ("p50", "p90", "p99", "mean")


def steady(random: Random, num_loads: int, num_queries: int) -> Floats:
    """Queries that spread by 2 % around 1 ms, with 3 % of them in a heavy tail; each load 1 % to 5 % off."""
    values = random.normal(1.0, 0.02, (num_loads, num_queries))
    values += (random.random(values.shape) < 0.03) * random.pareto(2.5, values.shape)
    luck = random.normal(0, 0.007, num_loads) + (random.random(num_loads) < 0.05) * 0.05
    return np.asarray(values * np.exp(luck)[:, None])


def drift(random: Random, num_loads: int) -> Floats:
    """A machine whose speed wanders from load to load."""
    return np.asarray(np.exp(np.cumsum(random.normal(0, 0.02, num_loads)))[:, None])


def two_speeds(random: Random, num_loads: int) -> Floats:
    """A machine that is 30 % slower for some loads in a row."""
    return np.asarray(1.0 + 0.3 * (np.cumsum(random.random(num_loads) < 0.1) % 2)[:, None])


def as_it_is(_random: Random, _num_loads: int) -> Floats:
    """A machine that keeps its speed."""
    return np.ones((1, 1))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_estimate_of_one_side_is_the_statistic_that_is_printed(statistic: Statistic) -> None:
    values = steady(np.random.default_rng(0), 10, 50)
    printed = getattr(latency_from_ms(values.reshape(-1)), statistic)
    assert statistic_bounds(values, statistic, 0.01)[0] == pytest.approx(printed, rel=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_ratio_of_a_scaled_side_is_the_scale_with_no_width(statistic: Statistic) -> None:
    values = steady(np.random.default_rng(0), 10, 120)
    assert ratio_bounds(1.05 * values, values, statistic, 1e-4) == pytest.approx((1.05, 1.05, 1.05), rel=1e-9)


def test_a_ratio_is_the_geometric_mean_over_loads() -> None:
    ours = np.repeat([[2.0], [8.0]] * 8, 5, axis=1)
    center, low, high = ratio_bounds(ours, np.ones((16, 5)), "p50", 0.025)
    assert center == pytest.approx(4.0)
    deviation = np.log([2.0, 8.0] * 8).std(ddof=1)
    assert np.log(high / center) == pytest.approx(2.131 * deviation / 4, rel=1e-3), "Student's t, 15 degrees: 2.131"
    assert low * high == pytest.approx(center**2)


@pytest.mark.parametrize("statistic", ["p90", "p99"])
@pytest.mark.parametrize(("held_to", "reach"), [(1.0, np.log(1.25)), (1.1, 8 * np.log(1.1)), (0.9, -8 * np.log(0.9))])
def test_in_a_ratio_of_tails_a_load_counts_for_no_more_than_its_reach(
    statistic: Statistic, held_to: float, reach: float
) -> None:
    logs = np.array([-5.0, -0.01, 0.0, 0.0, 0.0, 0.0, 0.02, 0.03, 7.0, 9.0])
    ours, theirs = np.repeat(np.exp(logs)[:, None], 5, axis=1), np.ones((10, 5))
    center, low, high = ratio_bounds(ours, theirs, statistic, 0.025, held_to)
    counted = np.array([-reach, -0.01, 0.0, 0.0, 0.0, 0.0, 0.02, 0.03, reach, reach])
    assert np.log(center) == pytest.approx(counted.mean())
    assert np.log(high / center) == pytest.approx(2.262 * counted.std(ddof=1) / np.sqrt(10), rel=1e-3), "t, 9 degrees"
    assert low * high == pytest.approx(center**2)
    assert np.log(ratio_bounds(ours, theirs, "p50", 0.025, held_to)[0]) == pytest.approx(logs.mean()), "in full"
    moved = ratio_bounds(3 * ours, theirs, statistic, 0.025, held_to)
    assert moved == pytest.approx((3 * center, 3 * low, 3 * high)), "reach is from the middle load, not from 1"


def hiccups(random: Random, num_loads: int, share: float) -> Floats:
    """Queries that spread by 2 % around 1 ms; in a share of the loads another program took 8 ms of six of the 100."""
    values = random.normal(1.0, 0.02, (num_loads, 100))
    values[:, :6] += 8.0 * (random.random((num_loads, 1)) < share)
    return np.asarray(values)


def test_what_other_programs_do_now_and_then_leaves_a_ratio_of_p99_decidable() -> None:
    """One load of twelve has a p99 of 9 ms, on one side or the other."""
    random = np.random.default_rng(11)
    decided = 0
    for _ in range(100):
        _, low, high = ratio_bounds(hiccups(random, 250, 1 / 24), hiccups(random, 250, 1 / 24), "p99", 0.001, 1.1)
        decided += low <= 1.0 <= high <= 1.1
    assert decided >= 90


def test_an_engine_that_is_far_too_slow_in_more_than_one_load_of_eight_does_not_pass() -> None:
    random = np.random.default_rng(13)
    for held_to in (1.03, 1.1, 1.25):
        ours, theirs = hiccups(random, 2000, 0.2), hiccups(random, 2000, 0.0)
        assert ratio_bounds(ours, theirs, "p99", 0.005, held_to)[1] > held_to
        rare = hiccups(random, 2000, 0.05)
        assert ratio_bounds(rare, theirs, "p99", 0.005, held_to)[2] < held_to, "one of twenty does"


@pytest.mark.parametrize(
    ("wanted", "share"),
    [
        (IntervalSpec("p50", True, Limit(1.002, at_most=True)), 0.0),
        (IntervalSpec("p99", True, Limit(1.03, at_most=True)), 0.06),
        (IntervalSpec("p99", False, Limit(10.0, at_most=True)), 0.1),
    ],
)
def test_the_loads_that_are_said_to_decide_do_so_about_four_times_in_five(wanted: IntervalSpec, share: float) -> None:
    random, chance, decided = np.random.default_rng(14), (0.99, 0.001), []
    for _ in range(150):
        sides = [hiccups(random, 20, share) for _ in range(2)]
        if outcome(interval_of(sides, wanted, chance), wanted.limit) != "not decided":
            continue
        needed = sessions_needed(sides, wanted, chance)
        if needed < 5000:  # By chance some seem to lie on the limit.
            more = [np.concatenate([side, hiccups(random, int(needed) - 20, share)]) for side in sides]
            decided.append(outcome(interval_of(more, wanted, chance), wanted.limit) != "not decided")
    assert len(decided) > 40
    assert 0.7 <= np.mean(decided) <= 0.97


@pytest.mark.parametrize("statistic", STATISTICS)
def test_fewer_than_eight_loads_say_nothing(statistic: Statistic) -> None:
    values = steady(np.random.default_rng(0), 7, 500)
    assert ratio_bounds(values, values * 2, statistic, 0.025)[1:] == (0.0, np.inf)
    assert statistic_bounds(values, statistic, 0.025)[2] == np.inf


def test_latencies_that_the_clock_cannot_tell_from_zero_decide_nothing() -> None:
    center, low, high = ratio_bounds(np.zeros((10, 5)), np.ones((10, 5)), "p50", 0.01)
    assert np.isnan(center)
    assert (low, high) == (0.0, np.inf)


def test_a_percentile_beyond_the_sample_has_no_upper_bound() -> None:
    values = steady(np.random.default_rng(0), 10, 10)
    assert statistic_bounds(values, "p99", 0.0005)[2] == np.inf
    assert statistic_bounds(values, "p50", 0.0005)[2] < np.inf


@pytest.mark.parametrize("machine", [as_it_is, drift, two_speeds])
@pytest.mark.parametrize("statistic", ["p50", "p90", "mean"])
def test_the_interval_of_a_ratio_misses_the_truth_as_seldom_as_it_says(
    statistic: Statistic, machine: Callable[[Random, int], Floats]
) -> None:
    random = np.random.default_rng(1)
    num_times = 400
    below = above = 0
    for _ in range(num_times):
        speed = machine(random, 12)
        ours, theirs = 1.2 * speed * steady(random, 12, 30), speed * steady(random, 12, 30)
        _, low, high = ratio_bounds(ours, theirs, statistic, 0.025)
        below += high < 1.2
        above += low > 1.2
    assert max(below, above) <= 0.025 * num_times + 3 * np.sqrt(0.025 * num_times)


def test_a_small_tail_is_kept_too() -> None:
    random = np.random.default_rng(2)
    missed = 0
    for _ in range(2000):
        _, low, high = ratio_bounds(steady(random, 8, 20), steady(random, 8, 20), "p50", 0.0025)
        missed += not low <= 1.0 <= high
    assert missed <= 20


@pytest.mark.parametrize(("statistic", "num_loads"), [("p50", 12), ("p90", 12), ("p99", 40), ("mean", 12)])
def test_the_interval_of_one_side_misses_the_truth_as_seldom_as_it_says(statistic: Statistic, num_loads: int) -> None:
    """On loads that differ by 1 %; of one load in twenty that is much slower, twelve loads can know nothing."""

    def latencies(num_loads: int) -> Floats:
        luck = random.normal(0, 0.01, num_loads)[:, None]
        return np.asarray(np.exp(luck) * random.gamma(4.0, 0.01, (num_loads, 30)) + 1)

    random = np.random.default_rng(3)
    truth = statistic_bounds(latencies(20_000), statistic, 0.025)[0]
    missed = 0
    for _ in range(400):
        _, low, high = statistic_bounds(latencies(num_loads), statistic, 0.025)
        missed += not low <= truth <= high
    assert missed <= 0.05 * 400 + 3 * np.sqrt(0.05 * 400)


@pytest.mark.parametrize("num_loads", [8, 12, 27])
def test_a_tail_that_comes_in_bursts_is_no_false_alarm(num_loads: int) -> None:
    """One load of five has six slow queries of its hundred, of any length: some more by chance are no slow engine."""

    def latencies(num_loads: int) -> Floats:
        values = random.normal(1.0, 0.02, (num_loads, 100))
        values[:, :6] += (random.random((num_loads, 1)) < 0.2) * random.uniform(3, 13, (num_loads, 6))
        return np.asarray(values)

    random = np.random.default_rng(15)
    truth = statistic_bounds(latencies(20_000), "p99", 0.005)[0]
    alarms = sum(statistic_bounds(latencies(num_loads), "p99", 0.005)[1] > truth for _ in range(600))
    assert alarms <= 0.005 * 600 + 3 * np.sqrt(0.005 * 600)


def in_bursts(random: Random, shape: tuple[int, int], share: float, length: float) -> npt.NDArray[np.bool_]:
    """Which queries are slow: such a share, in bursts of so many on average."""
    slow, lasts = np.zeros(math.prod(shape), dtype=bool), random.random() < share
    at = 0
    while at < len(slow):
        until = at + int(random.geometric(1 / length if lasts else share / (1 - share) / length))
        slow[at:until], at, lasts = lasts, until, not lasts
    return slow.reshape(shape)


@pytest.mark.parametrize(("statistic", "share"), [("p99", 0.01), ("p90", 0.1), ("p50", 0.5)])
@pytest.mark.parametrize("limit_ms", [20.0, 10.0, 2.0])
def test_slow_queries_in_bursts_of_20_ms_pass_as_seldom_as_it_says(
    statistic: Statistic, share: float, limit_ms: float
) -> None:
    """As many are slow as the limit allows, and a burst has as many of them as fit into 20 ms."""
    random, tail = np.random.default_rng(16), 0.005
    num_passed = 0
    for _ in range(400):
        slow = in_bursts(random, (24, 120), share, -1 / math.expm1(-limit_ms / BURST_MS))
        latency_ms = np.where(slow, 1.02 * limit_ms, 0.2 * limit_ms) * random.normal(1, 0.005, slow.shape)
        num_passed += statistic_bounds(latency_ms, statistic, tail)[2] <= limit_ms
    assert num_passed <= tail * 400 + 3 * np.sqrt(tail * 400)


def test_a_limit_far_above_the_tail_needs_fewer_queries_also_where_slow_ones_come_in_bursts() -> None:
    """1.2 % take 6 ms in bursts of ten: that p99 is below 20 ms is seen by sessions whose ranks know no bound."""
    random = np.random.default_rng(17)
    slow = in_bursts(random, (12, 112), 0.012, 10.0)
    latency_ms = np.where(slow, 6.0, 4.0) * random.normal(1, 0.02, slow.shape)
    assert rank_bounds(latency_ms, "p99", 7e-4)[2] == np.inf
    high = statistic_bounds(latency_ms, "p99", 7e-4)[2]
    assert latency_ms.max() < high < 20
    assert statistic_bounds(latency_ms[:7], "p99", 7e-4)[2] == np.inf, "not by fewer than eight"
    hiccup = latency_ms.copy()
    hiccup[3, 50:56] = 30.0
    assert statistic_bounds(hiccup, "p99", 7e-4)[2] > 20, "a burst above the limit says that there are some"


def test_the_upper_bound_is_where_so_few_would_exceed_it_by_chance() -> None:
    """None of 1,200 queries exceeds 5 ms: of a share of 1 % so in bursts of 20 ms, by 7 in 10,000 at the bound."""
    latency_ms = np.random.default_rng(18).uniform(4.0, 5.0, (12, 100))
    high = statistic_bounds(latency_ms, "p99", 7e-4)[2]
    beginning = 0.01 / 0.99 * (1 - math.exp(-high / BURST_MS))
    assert (1 - beginning) ** 1200 == pytest.approx(7e-4, rel=1e-3)


def test_queries_that_come_by_themselves_are_more_to_a_burst() -> None:
    latency_ms = np.random.default_rng(19).uniform(4.0, 5.0, (30, 100))
    alone, arriving = (statistic_bounds(latency_ms, "p99", 7e-4, apart_ms)[2] for apart_ms in (math.inf, 1.0))
    assert 5.0 < alone < 10.0
    assert arriving == math.inf, "20 in 20 ms: 15,000 queries"


def test_how_many_sessions_a_far_limit_takes_is_told_and_enough() -> None:
    random = np.random.default_rng(20)
    wanted = IntervalSpec("p99", False, Limit(10.0, at_most=True))
    latency_ms = random.uniform(4.0, 5.0, (60, 100))
    needed = int(sessions_needed([latency_ms[:10]], wanted, (0.99, 7e-4)))
    assert 10 < needed < 25
    assert statistic_bounds(latency_ms[:needed], "p99", 7e-4)[2] <= 10.0
    assert statistic_bounds(latency_ms[: needed - 1], "p99", 7e-4)[2] > 10.0


def test_of_latencies_that_the_clock_cannot_tell_from_zero_little_is_said() -> None:
    latency_ms = np.zeros((10, 200))
    assert statistic_bounds(latency_ms, "p99", 1e-3)[2] > 1.0
    latency_ms[:, ::3] = 0.001
    assert statistic_bounds(latency_ms, "p50", 1e-3)[2] > 0.0


def test_a_machine_that_wanders_for_longer_than_a_load_widens_the_interval_of_one_side() -> None:
    """Runs of eight loads that are 10 % slow, then fast: taken as single loads they would seem to tell much."""
    wander = np.repeat([1.0, 1.1, 1.0, 1.1, 1.1, 1.0, 1.1, 1.0], 8)
    mixed = np.random.default_rng(4).permutation(wander)
    noise = np.random.default_rng(5).normal(1, 0.01, (64, 40))
    widths = []
    for level in (wander, mixed):
        _, low, high = statistic_bounds(level[:, None] * noise, "mean", 0.025)
        widths.append(high - low)
    assert widths[0] > 1.7 * widths[1]


def test_what_both_sides_share_cancels_in_a_ratio() -> None:
    random = np.random.default_rng(6)
    calm = steady(random, 12, 30), steady(random, 12, 30)
    rough = drift(random, 12) * two_speeds(random, 12)
    assert ratio_bounds(rough * calm[0], rough * calm[1], "p50", 0.01) == pytest.approx(
        ratio_bounds(*calm, "p50", 0.01)
    )


def test_a_slow_tail_shows_in_p99_and_not_in_p50() -> None:
    random = np.random.default_rng(7)
    theirs = random.normal(1.0, 0.01, (20, 400))
    ours = random.normal(1.0, 0.01, (20, 400))
    ours[:, ::50] *= 1.3  # 2 % of the queries.
    assert ratio_bounds(ours, theirs, "p99", 0.001)[1] > 1.2
    center, low, high = ratio_bounds(ours, theirs, "p50", 0.001)
    assert low < 1.0 < high < 1.01
    assert center == pytest.approx(1.0, abs=0.005)


def test_loads_of_the_candidate_alone_that_are_slow_do_not_vanish() -> None:
    random = np.random.default_rng(8)
    ours, theirs = (random.normal(1.0, 0.005, (30, 30)) for _ in range(2))
    ours[::3] *= 1.3  # Every third load.
    center, low, high = ratio_bounds(ours, theirs, "p50", 0.01)
    assert center == pytest.approx(1.3 ** (1 / 3), rel=0.01)
    assert high > 1.1
    assert low < center


@pytest.mark.parametrize("statistic", ["p50", "p90", "mean"])
def test_queries_that_are_fast_or_slow_by_chance_are_no_false_alarm(statistic: Statistic) -> None:
    """Half of the queries take 1.5 times as long, on both sides: the median of a load lies now here, now there."""
    random = np.random.default_rng(10)
    alarms = 0
    for _ in range(500):
        ours, theirs = random.normal(1, 0.01, (2, 10, 21)) * np.where(random.random((2, 10, 21)) < 0.5, 1.5, 1.0)
        _, low, high = ratio_bounds(ours, theirs, statistic, 0.005)
        alarms += low > 1.0
        alarms += high < 1.0
    assert alarms <= 0.01 * 500 + 3 * np.sqrt(0.01 * 500)


@pytest.mark.parametrize("statistic", ["p50", "p90", "mean"])
def test_a_bootstrap_over_loads_gives_about_the_same_interval(statistic: Statistic) -> None:
    random = np.random.default_rng(9)
    ours, theirs = steady(random, 60, 50), steady(random, 60, 50)
    found = [[statistic_bounds(load[None], statistic, 0.5)[0] for load in side] for side in (ours, theirs)]
    logs = np.log(found[0]) - np.log(found[1])
    resampled = logs[random.integers(60, size=(4000, 60))].mean(axis=1)
    low, high = np.exp(np.quantile(resampled, (0.025, 0.975)))
    _, found_low, found_high = ratio_bounds(ours, theirs, statistic, 0.025)
    assert found_high - found_low == pytest.approx(high - low, rel=0.35)
    assert found_low == pytest.approx(low, abs=0.3 * (high - low))
