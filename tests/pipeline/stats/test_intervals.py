"""An interval against a limit, and Student's quantiles."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from pipeline.stats.intervals import Interval, Limit, Outcome, outcome, planned_looks, student_quantile


@pytest.mark.parametrize(
    ("low", "high", "at_most", "expected"),
    [
        (0.98, 1.02, True, "pass"),
        (0.98, 1.03, True, "pass"),  # The limit itself is kept.
        (1.031, 1.08, True, "fail"),
        (1.03, 1.08, True, "not decided"),
        (0.99, 1.031, True, "not decided"),
        (1.05, 1.08, False, "pass"),
        (1.03, 1.08, False, "pass"),
        (0.90, 1.029, False, "fail"),
        (0.90, 1.03, False, "not decided"),
        (0.0, math.inf, True, "not decided"),
        (math.nan, math.nan, True, "not decided"),
        (math.nan, math.nan, False, "not decided"),
    ],
)
def test_only_a_whole_interval_decides(low: float, high: float, at_most: bool, expected: Outcome) -> None:
    assert outcome(Interval((low + high) / 2, low, high, 0.99), Limit(1.03, at_most)) == expected


def test_a_limit_reads_as_a_person_says_it() -> None:
    assert str(Limit(1.03, at_most=True)) == "at most 1.03"
    assert str(Limit(0.5, at_most=False)) == "at least 0.5"


def test_looks_are_few_and_the_last_is_at_the_end() -> None:
    assert planned_looks(8, 100) == [8, 12, 18, 27, 40, 60, 91, 100]
    assert planned_looks(8, 9) == [8, 9]
    assert planned_looks(8, 8) == planned_looks(8, -5) == [8]


@pytest.mark.parametrize(
    ("tail", "num_degrees", "published"),
    [
        (0.025, 7, 2.365),
        (0.005, 7, 3.499),
        (0.0005, 7, 5.408),
        (0.0005, 10, 4.587),
        (0.0005, 30, 3.646),
        (0.025, 1, 12.706),
        (0.005, 2, 9.925),
        (0.0005, 3, 12.924),
        (0.005, 4, 4.604),
        (0.0005, 5, 6.869),
        (0.0005, 6, 5.959),
    ],
)  # fmt: skip
def test_students_quantiles_are_those_of_the_printed_tables(tail: float, num_degrees: int, published: float) -> None:
    assert student_quantile(tail, num_degrees) == pytest.approx(published, rel=2e-3)


@given(tail=st.floats(1e-7, 0.49), num_degrees=st.integers(1, 600))
@example(tail=1e-6, num_degrees=7)  # Where an expansion around the normal quantile was 1.9 % too small.
@example(tail=1e-7, num_degrees=1)
def test_students_quantiles_are_scipys(tail: float, num_degrees: int) -> None:
    assert student_quantile(tail, num_degrees) == pytest.approx(float(stats.t.isf(tail, num_degrees)), rel=1e-7)


def test_with_many_degrees_student_is_normal() -> None:
    assert student_quantile(0.025, 20_000) == pytest.approx(1.959964, abs=2e-4)
