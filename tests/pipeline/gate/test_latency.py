"""From budgets of latency to limits, and from results to checks: on made-up runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.artifact import Engine
from pipeline.gate.budget import Budget, budget_from_text
from pipeline.gate.checks import EngineBudget
from pipeline.gate.inputs import BaselineEngine
from pipeline.gate.latency import (
    Comparison,
    ComparisonResult,
    advice_from,
    checks_from,
    comparisons_from,
    drift_of,
    interval_for,
    limit_from_budget,
    remarks_on,
)
from pipeline.latency.benchmark import Queries
from pipeline.latency.paired import LimitResult, PairedResult
from pipeline.stats.intervals import Interval, Limit


def budget(text: str) -> Budget:
    return budget_from_text(text, "")


def queries(round_ms: npt.NDArray[np.float64]) -> Queries:
    """Ten queries in each round, all of that round's latency."""
    latency = np.repeat(round_ms, 10)
    return Queries(latency, np.repeat(np.arange(len(round_ms)), 10), np.cumsum(latency), np.full(len(latency), np.nan))


def run(
    ours_ms: npt.NDArray[np.float64], theirs_ms: npt.NDArray[np.float64] | None, *limit_results: LimitResult
) -> PairedResult:
    baseline = None if theirs_ms is None else queries(theirs_ms)
    return PairedResult(limit_results, queries(ours_ms), baseline, 8, len(ours_ms), 4.0, 0, 0.99, 0.005, ())


STEADY = np.full(16, 2.0)
SLOWING = np.concatenate([np.full(8, 2.0), np.full(8, 3.0)])


@pytest.mark.parametrize(
    ("text", "statistic", "limit", "relative"),
    [
        ("p50_ms at batch 8 <= 12", "p50", Limit(12.0, True), False),
        ("p99_ms at batch 8 <= 1.03 x baseline", "p99", Limit(1.03, True), True),
        # 8 samples at 400 per second take 20 ms.
        ("throughput_per_s at batch 8 >= 400", "mean", Limit(20.0, True), False),
        ("throughput_per_s at batch 8 >= 0.8 x baseline", "mean", Limit(1.25, True), True),
    ],
)
def test_what_a_budget_asks_of_latencies(text: str, statistic: str, limit: Limit, relative: bool) -> None:
    latency_limit = limit_from_budget(budget(text))
    assert (latency_limit.statistic, latency_limit.limit, latency_limit.relative, latency_limit.batch_size) == (
        statistic, limit, relative, 8,
    )  # fmt: skip


def test_throughput_turns_the_interval_round() -> None:
    one = budget("throughput_per_s at batch 8 >= 400")
    assert interval_for(one, Interval(20.0, 16.0, 25.0, 0.99)) == Interval(400.0, 320.0, 500.0, 0.99)
    assert interval_for(one, Interval(20.0, 0.0, math.inf, 0.99)) == Interval(400.0, 0.0, math.inf, 0.99)
    ratio = budget("throughput_per_s at batch 8 >= 0.8 x baseline")
    assert interval_for(ratio, Interval(1.25, 1.0, 2.0, 0.99)) == Interval(0.8, 0.5, 1.0, 0.99)


def test_one_comparison_for_each_engine_and_batch_size() -> None:
    texts = ("p50_ms at batch 1 <= 3", "size_mib <= 4", "p99_ms at batch 1 <= 5", "p50_ms at batch 8 <= 9")
    engine_budgets = [EngineBudget("new", budget(text)) for text in texts] + [
        EngineBudget("other", budget("p50_ms at batch 1 <= 3"))
    ]
    found = comparisons_from(engine_budgets)
    assert [(comparison.variant, comparison.batch_size, len(comparison.budgets)) for comparison in found] == [
        ("new", 1, 2), ("new", 8, 1), ("other", 1, 1),
    ]  # fmt: skip


def test_what_would_decide_is_said() -> None:
    limit = limit_from_budget(budget("p50_ms at batch 1 <= 2"))
    limit_result = LimitResult(limit, "not decided", Interval(2.1, 1.9, 2.3, 0.99), 41.2, 10.3)
    assert advice_from(limit_result, run(STEADY, None)) == "about 42 more rounds would decide; give max_seconds = 15"
    assert advice_from(replace(limit_result, more_rounds=0.0, more_seconds=0.0), run(STEADY, None)) == ""
    endless = replace(limit_result, more_rounds=math.inf, more_seconds=math.inf)
    assert "more time may not decide" in advice_from(endless, run(STEADY, None))
    few = replace(run(STEADY, None), num_sessions=5, num_rounds=100, seconds=60.0)
    assert advice_from(replace(limit_result, more_rounds=60.0, more_seconds=36.0), few) == (
        "it takes 8 sessions at least, of which 5 fitted into the time, as each took 12.0 s; give max_seconds = 96 or "
        "more"
    )


def test_drift_is_of_an_engine_against_itself() -> None:
    assert drift_of(run(STEADY, None), relative=False) == 0
    assert drift_of(run(SLOWING, None), relative=False) == pytest.approx(0.5)
    assert drift_of(run(SLOWING[::-1], None), relative=False) == pytest.approx(-1 / 3)
    both = run(SLOWING, SLOWING * 2)
    assert drift_of(both, relative=True) == 0, "what slows down both is no drift of one beside the other"
    assert drift_of(both, relative=False) == pytest.approx(0.5)


def test_an_engine_that_drifts_is_not_decided() -> None:
    absolute, ratio = budget("p50_ms at batch 1 <= 9"), budget("p50_ms at batch 1 <= 1.1 x baseline")
    limit_results = [
        LimitResult(limit_from_budget(absolute), "pass", Interval(2.5, 2.0, 3.0, 0.99), 0.0, 0.0),
        LimitResult(limit_from_budget(ratio), "pass", Interval(1.0, 0.99, 1.01, 0.99), 0.0, 0.0),
    ]
    result = ComparisonResult(Comparison("new", 1, (absolute, ratio)), run(SLOWING, SLOWING, *limit_results))
    first, second = (check for _, check in checks_from(result, 0.1))
    assert (first.outcome, second.outcome) == ("not decided", "pass")
    assert first.sentence == (
        "p50_ms at batch 1 is 2.500 ms (99 % interval 2.000 to 3.000), within <= 9; but this machine was too noisy "
        "to decide by: new against itself was 50% slower in the later half of its rounds than in the earlier, above "
        "max_drift 10%"
    )
    assert [check.outcome for _, check in checks_from(result, 0.6)] == ["pass", "pass"]


def test_a_baseline_that_is_no_longer_as_fast_is_said() -> None:
    result = [ComparisonResult(Comparison("new", 1, ()), run(STEADY, STEADY))]
    baseline = BaselineEngine("last-good", Engine(Path("old.onnx")), "2026-01-02", "", {1: 1.5})
    assert remarks_on(baseline, result, 0.1) == (
        "Baseline 'last-good' had a p50 of 1.50 ms at batch 1 when it was gated, and has 2.00 ms today: this machine "
        "has changed since.",
    )
    assert remarks_on(replace(baseline, p50_ms={1: 1.9}), result, 0.1) == ()
    assert remarks_on(replace(baseline, p50_ms={8: 1.5}), result, 0.1) == ()
    assert remarks_on(None, result, 0.1) == ()


def test_what_the_measurement_says_of_itself_is_passed_on() -> None:
    result = [ComparisonResult(Comparison("new", 1, ()), replace(run(STEADY, None), notes=("the line was full",)))]
    assert remarks_on(None, result, 0.1) == ("new at batch 1: the line was full",)
