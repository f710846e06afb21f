"""The part of a report that says which technique to use: its numbers in words, and the line that nothing surpasses."""

from __future__ import annotations

import pytest

from pipeline.report.advice_pictures import near, unsurpassed
from pipeline.report.advice_table import duration


@pytest.mark.parametrize(
    ("points", "higher", "front"),
    [
        ([(1.0, 0.9), (2.0, 0.95), (3.0, 0.94)], True, [0, 1]),
        ([(2.0, 0.9), (1.0, 0.9)], True, [1]),
        ([(1.0, 0.9), (1.0, 0.95)], True, [1]),
        ([(1.0, 0.9), (1.0, 0.9)], True, [0]),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 2.5), (4.0, 1.0)], False, [0, 1, 3]),
    ],
)
def test_on_the_line_is_what_no_other_surpasses(
    points: list[tuple[float, float]], higher: bool, front: list[int]
) -> None:
    assert unsurpassed(points, higher_is_better=higher) == front


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.921, "0.921 s"), (18.04, "18.0 s"), (119, "119 s"), (180, "3.00 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_points_that_lie_together_have_one_label() -> None:
    assert near([(0, 0), (100, 0), (10, 5), (25, 5), (100, 50)]) == [[0, 2, 3], [1], [4]]
    assert near([]) == []
