"""From an interval to a sentence: what is said of each outcome, and when nothing is decided."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.artifact import Engine, digest_of_engine, files_of_engine
from pipeline.gate.budget import budget_from_text
from pipeline.gate.checks import (
    EngineBudget,
    GateEngines,
    Validated,
    check_from_interval,
    check_not_measured,
    check_size,
    check_tolerances,
    exact_interval,
    number_beside,
    withhold_decision,
)
from pipeline.stats.intervals import Interval
from tests.conftest import tiny_model

P50 = EngineBudget("int8", budget_from_text("p50_ms at batch 1 <= 12", ""))
RATIO = EngineBudget("int8", budget_from_text("p50_ms at batch 1 <= 1.03 x baseline", ""))
FLOOR = EngineBudget("int8", budget_from_text("throughput_per_s at batch 1 >= 4000", ""))


@pytest.mark.parametrize(
    ("one", "interval", "outcome", "said"),
    [
        (P50, Interval(11.0, 10.5, 12.0, 0.99), "pass", "is 11.00 ms (99 % interval 10.50 to 12.00), within <= 12"),
        (P50, Interval(13.0, 12.5, 14.0, 0.95), "fail", "is 13.00 ms (95 % interval 12.50 to 14.00), above 12"),
        (
            P50, Interval(12.004, 11.9, 12.2, 0.99), "not decided",
            "is 12.004 ms (99 % interval 11.90 to 12.20), too uncertain to say whether <= 12 holds",
        ),
        (P50, Interval(11.0, 10.5, math.inf, 0.99), "not decided", "(99 % interval 10.50 to any)"),
        (RATIO, Interval(1.12, 1.1, 1.14, 0.99), "fail", "is 1.120 x the baseline's (99 % interval 1.100 to 1.140)"),
        (FLOOR, Interval(3900.0, 3800.0, 3950.0, 0.99), "fail", "is 3,900 per s (99 % interval 3,800 to 3,950), below"),
        (FLOOR, exact_interval(4000.0), "pass", "is 4,000 per s, within >= 4000"),
    ],
)  # fmt: skip
def test_the_sentence_of_each_outcome(one: tuple[str, object], interval: Interval, outcome: str, said: str) -> None:
    check = check_from_interval(one, interval, "do that")  # type: ignore[arg-type]
    assert check.outcome == outcome
    assert said in check.sentence
    assert check.advice == ("do that" if outcome == "not decided" else "")


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (12.0004, 12.0, "12.0004"), (12.0, 12.0, "12.00"), (75040.3, 4000.0, "75,040"), (0.003846, 40.0, "0.003846"),
        (0.9999999, 1.0, "0.9999999"), (0.0, 1.0, "0"), (-0.004, 0.01, "-0.004000"), (1234567.8, 3.0, "1,234,568"),
    ],
)  # fmt: skip
def test_a_number_does_not_look_like_the_bound_that_it_is_not(value: float, bound: float, text: str) -> None:
    assert number_beside(value, bound) == text


def test_nan_never_passes() -> None:
    check = check_from_interval(P50, exact_interval(math.nan), "look at the engine")
    assert check.outcome == "not decided"
    assert (check.estimate, check.low, check.high) == (None, None, None)


def test_objections_undo_what_was_timed_and_nothing_else() -> None:
    against = ("the hardware throttled 3 times meanwhile; let it cool",)
    for interval in (Interval(11.0, 10.5, 11.5, 0.99), Interval(13.0, 12.5, 14.0, 0.99)):
        check = withhold_decision(check_from_interval(P50, interval, ""), P50.budget, against)
        assert check.outcome == "not decided"
        assert check.sentence.endswith("; but this machine was too noisy to decide by: " + against[0])
    size = budget_from_text("size_mib <= 40", "")
    assert (
        withhold_decision(
            check_from_interval(EngineBudget("int8", size), exact_interval(39.0), ""), size, against
        ).outcome
        == "pass"
    )
    assert withhold_decision(check_from_interval(P50, exact_interval(11.0), ""), P50.budget, ()).outcome == "pass"


def test_what_would_decide_is_said_on_a_noisy_machine_too() -> None:
    more = "about 42 more rounds would decide; give max_seconds = 99"
    open_ = check_from_interval(P50, Interval(11.0, 10.0, 13.0, 0.99), more)
    check = withhold_decision(open_, P50.budget, ("others took 60%",))
    assert check.sentence == (f"{open_.sentence}; {more}; but this machine was too noisy to decide by: others took 60%")
    assert check.advice == "reduce the load on this machine and gate again"


def test_two_objections_one_after_the_other_are_one_sentence() -> None:
    once = withhold_decision(check_from_interval(P50, exact_interval(11.0), ""), P50.budget, ("the engine drifted",))
    twice = withhold_decision(once, P50.budget, ("others took 60%",))
    assert twice.sentence == f"{once.sentence}; others took 60%"


def test_what_was_not_measured_keeps_its_reason() -> None:
    check = check_not_measured(P50, "nobody ran it", "run it")
    assert withhold_decision(check, P50.budget, ("noise",)) == check


def test_tolerances_are_a_check_of_their_own() -> None:
    assert check_tolerances("int8", Validated("validate.int8", ())).outcome == "pass"
    bad = check_tolerances("int8", Validated("validate.int8", ("cosine 0.5 below 0.9", "top1 is 0.1")))
    assert bad.outcome == "fail"
    assert bad.sentence == "outputs of int8 are outside [validate.int8]: cosine 0.5 below 0.9; top1 is 0.1"


def test_files_of_weights_count_for_size_and_digest(tmp_path: Path) -> None:
    model = tiny_model()
    onnx.save(model, tmp_path / "one.onnx")
    onnx.save(model, tmp_path / "two.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    assert files_of_engine(one) == [one]
    assert files_of_engine(two) == [two, tmp_path / "weights.bin"]
    size = EngineBudget("two", budget_from_text("size_mib <= 2 x baseline", ""))
    check = check_size(size, GateEngines({"two": Engine(two), "one": Engine(one)}, "one"))
    both = two.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert check.estimate == pytest.approx(both / one.stat().st_size)
    before = digest_of_engine(two)
    weights = np.fromfile(tmp_path / "weights.bin", dtype=np.uint8)
    weights[0] ^= 1
    weights.tofile(tmp_path / "weights.bin")
    assert digest_of_engine(two) != before
