"""Metrics with their intervals: by hand, against other intervals, and how often they hold the truth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.accuracy.metric_intervals import (
    Sampling,
    agreement_interval,
    grown_drop,
    metric_drop,
    metric_interval,
    samples_needed,
)
from pipeline.accuracy.metrics import metric
from pipeline.errors import ConfigError
from pipeline.stats.intervals import Limit, outcome
from pipeline.stats.proportions import clopper_pearson, mcnemar, tango

Floats = npt.NDArray[np.float64]

QUICK = Sampling(confidence=0.95, num_resamples=1000)


def scores_of(right: npt.NDArray[np.bool_]) -> dict[str, Floats]:
    """Scores of two classes; the label is 1, and so is the answer where it is right."""
    return {"y": np.stack([~right, right], axis=1).astype(np.float64)}


def ones(num: int) -> npt.NDArray[np.int64]:
    return np.ones(num, dtype=np.int64)


def test_top1_and_its_drop_count_the_samples_that_differ() -> None:
    reference = np.arange(200) < 190
    candidate = (np.arange(200) < 180) | (np.arange(200) == 199)
    found = metric_drop(metric("top1"), scores_of(candidate), scores_of(reference), ones(200), QUICK)
    assert (found.num_only_reference, found.num_only_candidate) == (10, 1)
    assert found.interval.estimate == pytest.approx(9 / 200)
    assert (found.interval.low, found.interval.high) == tango(10, 1, 200)
    assert found.p_value == mcnemar(10, 1) == pytest.approx(2 * 12 / 2**11)
    own = metric_interval(metric("top1"), scores_of(candidate), ones(200), QUICK)
    assert (own.estimate, own.low, own.high) == (181 / 200, *clopper_pearson(181, 200))


def test_the_same_answers_on_few_samples_do_not_prove_that_there_is_no_drop() -> None:
    limit = Limit(0.01, at_most=True)
    for num, expected in ((50, "not decided"), (5000, "pass")):
        right = np.ones(num, dtype=bool)
        found = metric_drop(metric("top1"), scores_of(right), scores_of(right), ones(num), Sampling())
        assert found.p_value == 1.0
        assert outcome(found.interval, limit) == expected


def test_a_large_drop_fails_and_a_gain_passes() -> None:
    limit = Limit(0.01, at_most=True)
    good, bad = np.ones(1000, dtype=bool), np.arange(1000) >= 60
    assert outcome(metric_drop(metric("top1"), scores_of(bad), scores_of(good), ones(1000), QUICK).interval, limit) == (
        "fail"
    )
    gain = metric_drop(metric("top1"), scores_of(good), scores_of(bad), ones(1000), QUICK)
    assert outcome(gain.interval, limit) == "pass"
    assert gain.interval.estimate == -0.06


def test_agreement_is_a_share_with_its_exact_interval() -> None:
    found = agreement_interval(np.arange(500) > 2, Sampling(confidence=0.99))
    assert found.estimate == 497 / 500
    assert (found.low, found.high) == clopper_pearson(497, 500, 0.99)


@pytest.mark.parametrize("name", ["mae", "cosine"])
def test_a_mean_is_drawn_from_its_samples(name: str) -> None:
    """Against the bootstrap that computes the metric anew on every draw, and against Student's t."""
    random = np.random.default_rng(0)
    labels = random.normal(size=(300, 4))
    outputs = {"y": labels + 0.3 * random.normal(size=(300, 4))}
    found = metric_interval(metric(name), outputs, labels, QUICK)
    values = metric(name).values(outputs, labels)
    assert found.estimate == pytest.approx(metric(name)(outputs, labels))
    half = 1.968 * values.std(ddof=1) / math.sqrt(300)
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=0.2 * half)
    anew = [metric(name)({"y": outputs["y"][p]}, labels[p]) for p in random.integers(300, size=(1000, 300))]
    assert (found.low, found.high) == pytest.approx(np.quantile(anew, (0.025, 0.975)), abs=0.25 * half)


def test_a_drop_is_worse_in_the_direction_of_the_metric() -> None:
    labels = np.zeros((100, 2))
    near, far = {"y": labels + 0.1}, {"y": labels + 0.3}
    worse = metric_drop(metric("mae"), far, near, labels, QUICK)
    assert worse.interval.estimate == pytest.approx(0.2)
    assert metric_drop(metric("mae"), near, far, labels, QUICK).interval.estimate == pytest.approx(-0.2)
    assert worse.p_value is None
    assert worse.method == "paired bootstrap over samples, 1,000 resamples"


def test_what_both_engines_find_hard_cancels_in_a_drop() -> None:
    random = np.random.default_rng(1)
    labels = np.zeros((400, 1))
    hard = random.exponential(size=(400, 1))
    reference, candidate = {"y": hard}, {"y": hard + 0.01}
    drop = metric_drop(metric("mae"), candidate, reference, labels, QUICK).interval
    own = metric_interval(metric("mae"), candidate, labels, QUICK)
    assert drop.high - drop.low < 1e-6 < own.high - own.low


def test_auc_is_computed_anew_on_each_draw() -> None:
    random = np.random.default_rng(2)
    labels = (np.arange(400) % 4 == 0).astype(np.int64)
    reference = {"y": labels + random.normal(0, 0.7, 400)}
    candidate = {"y": reference["y"] + random.normal(0, 0.7, 400)}
    found = metric_drop(metric("auc"), candidate, reference, labels, QUICK)
    expected = metric("auc")(reference, labels) - metric("auc")(candidate, labels)
    assert found.interval.estimate == pytest.approx(expected)
    assert 0 < found.interval.low < expected < found.interval.high < 0.2


@pytest.mark.parametrize("name", ["mae", "auc", "top1"])
def test_the_interval_of_a_drop_holds_the_truth_about_as_often_as_it_says(name: str) -> None:
    """100 evaluation sets, drawn from a population whose drop is known from 200,000 samples."""
    random = np.random.default_rng(3)

    def drawn(num: int) -> tuple[dict[str, Floats], dict[str, Floats], npt.NDArray[np.int64]]:
        labels = random.integers(2, size=num)
        first = labels + random.normal(0, 0.8, num)
        second = first + random.normal(0, 0.4, num) - 0.1
        if name == "top1":
            return scores_of((first > 0.5) == labels), scores_of((second > 0.5) == labels), ones(num)
        return {"y": first}, {"y": second}, labels

    reference, candidate, labels = drawn(200_000)
    judge = metric(name)
    sign = 1 if judge.higher_is_better else -1
    truth = sign * (judge(reference, labels) - judge(candidate, labels))
    held = 0
    for _ in range(100):
        reference, candidate, labels = drawn(150)
        found = metric_drop(judge, candidate, reference, labels, Sampling(confidence=0.95, num_resamples=300))
        held += found.interval.low <= truth <= found.interval.high
    assert held >= 88


def test_a_nan_decides_nothing() -> None:
    labels = np.zeros((20, 2))
    broken = {"y": np.full((20, 2), math.nan)}
    for name in ("mae", "cosine"):
        found = metric_drop(metric(name), broken, {"y": labels + 1}, labels, QUICK).interval
        assert math.isnan(found.estimate)
        assert outcome(found, Limit(1.0, at_most=True)) == "not decided"


def test_a_users_metric_without_labels(tmp_path: Path) -> None:
    (tmp_path / "own_spread.py").write_text(
        "def spread(outputs, labels):\n    assert labels is None\n    return outputs['y'].std()\n"
        "spread.needs_labels = False\n"
    )
    own = metric("own_spread:spread", folder=tmp_path)
    outputs = {"y": np.random.default_rng(4).normal(size=200)}
    found = metric_interval(own, outputs, None, QUICK)
    assert found.estimate == pytest.approx(outputs["y"].std())
    assert found.low < 1.0 < found.high


def test_a_slow_metric_gets_fewer_resamples_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "own_slow.py").write_text(
        "import time\ndef slow(outputs, labels):\n    time.sleep(0.001)\n    return outputs['y'].mean()\n"
        "slow.needs_labels = False\n"
    )
    own = metric("own_slow:slow", folder=tmp_path)
    outputs = {"y": np.random.default_rng(5).normal(size=200)}
    found = metric_drop(own, outputs, {"y": outputs["y"] + 0.1}, None, Sampling(max_seconds=0.0))
    assert found.method == "paired bootstrap over samples, 50 resamples"
    assert found.interval.estimate == pytest.approx(0.1)


def test_a_share_that_hangs_on_few_samples_is_as_wide_as_what_they_do_not_show() -> None:
    """F1 of answers that are all the same, and of answers of which one differs: as Tango's interval has it for top1."""
    labels = np.arange(12) % 2
    right = {"y": np.where(labels[:, None] == np.arange(2), 1.0, 0.0)}
    same = metric_drop(metric("f1"), right, right, labels, Sampling()).interval
    assert (same.low, same.estimate, same.high) == pytest.approx(
        (tango(0, 0, 12, 0.99)[0], 0, tango(0, 0, 12, 0.99)[1])
    )
    assert outcome(same, Limit(0.01, at_most=True)) == "not decided"
    whole = metric_interval(metric("f1"), right, labels, Sampling())
    assert whole.high == whole.estimate == 1.0
    assert whole.low == pytest.approx(clopper_pearson(12, 12, 0.99)[0], abs=0.01)
    one_wrong = {"y": np.where((np.arange(12) == 5)[:, None], 1 - right["y"], right["y"])}
    drop = metric_drop(metric("f1"), one_wrong, right, labels, Sampling()).interval
    assert drop.high >= drop.estimate + tango(0, 0, 12, 0.99)[1]


def test_a_share_to_which_every_sample_adds_is_as_wide_as_its_draws() -> None:
    random = np.random.default_rng(7)
    labels = (np.arange(300) % 2).astype(np.int64)
    reference = {"y": labels + random.normal(0, 1, 300)}
    candidate = {"y": reference["y"] + random.normal(0, 0.01, 300)}
    drop = metric_drop(metric("auc"), candidate, reference, labels, Sampling()).interval
    assert drop.high - drop.low < tango(0, 0, 300, 0.99)[1]


def test_how_many_samples_would_decide_where_none_differs() -> None:
    labels = np.arange(12) % 2
    right = {"y": np.where(labels[:, None] == np.arange(2), 1.0, 0.0)}
    drop = metric_drop(metric("f1"), right, right, labels, Sampling())
    needed = samples_needed(grown_drop(drop, 12), 12, Limit(0.01, at_most=True))
    assert tango(0, 0, int(needed), 0.99)[1] <= 0.01 < tango(0, 0, int(needed * 0.98), 0.99)[1]


@pytest.mark.parametrize("num", [2, 3, 8, 12, 99])
def test_how_many_samples_would_decide_is_found_for_any_few(num: int) -> None:
    """The search for the number ends also where steps of a hundredth are less than one sample."""
    right = np.ones(num, dtype=bool)
    drop = metric_drop(metric("top1"), scores_of(right), scores_of(right), ones(num), Sampling())
    assert drop.interval.high > 0.01
    for bound in (0.01, 0.05, drop.interval.high * 0.9):
        needed = samples_needed(grown_drop(drop, num), num, Limit(bound, at_most=True))
        assert tango(0, 0, int(needed), 0.99)[1] <= bound


def test_a_draw_in_which_a_class_is_missing_is_drawn_again() -> None:
    found = metric_interval(metric("auc"), {"y": np.arange(4.0)}, np.array([1, 0, 0, 0]), QUICK)
    assert found.estimate == 0.0, "a third of the draws lack the one positive"


def test_a_metric_that_most_resamples_do_not_allow_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "own_strict.py").write_text(
        "def strict(outputs, labels):\n    assert len(set(outputs['y'])) == len(outputs['y'])\n    return 1.0\n"
        "strict.needs_labels = False\n"
    )
    own = metric("own_strict:strict", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be computed on most resamples of the 20 samples .*; give more"):
        metric_interval(own, {"y": np.arange(20.0)}, None, QUICK)


def test_the_same_seed_gives_the_same_interval() -> None:
    labels = np.zeros((50, 1))
    outputs = {"y": np.random.default_rng(6).exponential(size=(50, 1))}
    first, again, other = (metric_interval(metric("mae"), outputs, labels, Sampling(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
