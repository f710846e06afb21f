"""Fresh starts: the exact interval of a median, and real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifact import Engine
from pipeline.errors import StageError
from pipeline.gate.budget import budget_from_text
from pipeline.gate.checks import EngineBudget
from pipeline.gate.process_cost import ColdStart, check_cold_start, measure_cold_starts, median_interval


def test_the_interval_is_between_two_of_the_numbers() -> None:
    interval = median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0], 0.99)
    assert (interval.estimate, interval.low, interval.high, interval.confidence) == (4.5, 1.0, 9.0, 0.99)
    # Two coins of eight on one side, or fewer: 2 (1 + 8) / 256 = 7 %.
    assert median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0], 0.90).low == 2.0


@pytest.mark.parametrize(("num", "confidence"), [(1, 0.0), (2, 0.5), (7, 1 - 2 / 128)])
def test_too_few_numbers_say_what_they_are_sure_of(num: int, confidence: float) -> None:
    interval = median_interval(list(range(num)), 0.99)
    assert interval.confidence == pytest.approx(confidence)
    assert (interval.low, interval.high) == (0, num - 1)


@pytest.mark.parametrize("num", [8, 20, 51])
def test_it_holds_the_true_median_as_often_as_it_says(num: int) -> None:
    random = np.random.default_rng(num)
    found = [median_interval(list(random.exponential(size=num)), 0.95) for _ in range(2000)]
    held = np.mean([interval.low <= np.log(2) <= interval.high for interval in found])
    assert held >= 0.94


def made_up(*cold_start_ms: float) -> list[ColdStart]:
    return [ColdStart(value, 100.0, None) for value in cold_start_ms]


def test_a_relative_budget_pairs_the_starts() -> None:
    one = EngineBudget("new", budget_from_text("cold_start_ms <= 1.2 x baseline", ""))
    slow_then_fast = made_up(100, 100, 10, 10, 100, 100, 10, 10)
    tenth_more = made_up(110, 110, 11, 11, 110, 110, 11, 11)
    check = check_cold_start(one, {"new": tenth_more, "old": slow_then_fast}, "old", 0.99)
    assert check.outcome == "pass"
    assert check.estimate == check.low == check.high == pytest.approx(1.1)


def test_too_few_starts_do_not_decide() -> None:
    one = EngineBudget("new", budget_from_text("cold_start_ms <= 1000", ""))
    check = check_cold_start(one, {"new": made_up(1, 2, 3)}, "", 0.99)
    assert check.outcome == "not decided"
    assert check.sentence == (
        "cold_start_ms is not known: 3 starts give a confidence of 75.0% at most, 99.0% is requested"
    )
    assert check.advice == "raise cold_starts to 8"


def test_device_memory_that_is_not_told() -> None:
    one = EngineBudget("new", budget_from_text("device_memory_mib <= 1000", ""))
    check = check_cold_start(one, {"new": made_up(1, 2, 3)}, "", 0.5)
    assert check.outcome == "not decided"
    assert "the backend does not report device memory" in check.sentence
    told = [ColdStart(1.0, 100.0, 640.0) for _ in range(8)]
    assert check_cold_start(one, {"new": told}, "", 0.99).outcome == "pass"


def test_real_processes(tiny: Path) -> None:
    feed = {"image": np.zeros((1, 4, 8, 8), dtype=np.float32)}
    found = measure_cold_starts(tiny, {"a": Engine(tiny / "tiny.onnx"), "b": Engine(tiny / "tiny.onnx")}, feed, 2, 1)
    assert {name: len(of) for name, of in found.items()} == {"a": 2, "b": 2}
    for start in (*found["a"], *found["b"]):
        assert 0 < start.cold_start_ms < 600_000
        assert 10 < start.peak_memory_mib < 2000
        assert start.device_memory_mib is None


def test_an_engine_that_does_not_load(tiny: Path) -> None:
    (tiny / "torn.onnx").write_bytes((tiny / "tiny.onnx").read_bytes()[:200])
    feed = {"image": np.zeros((1, 4, 8, 8), dtype=np.float32)}
    with pytest.raises(Exception, match="torn") as caught:
        measure_cold_starts(tiny, {"torn": Engine(tiny / "torn.onnx")}, feed, 1, 1)
    assert not isinstance(caught.value, StageError), "the backend said it in its own words"
