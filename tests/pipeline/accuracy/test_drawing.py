"""How many draws on how many samples a network of a size is given."""

from __future__ import annotations

import pytest

from pipeline.accuracy.drawing import MOST_VALUES, Round, affordable


@pytest.mark.parametrize(
    ("num_values", "last"),
    [(1e5, Round(16, 64)), (20e6, Round(8, 8)), (40e6, Round(4, 4)), (1e12, Round(4, 4))],
)
def test_large_networks_have_fewer_rounds(num_values: float, last: Round) -> None:
    rounds = affordable(Round(16, 64), num_values)
    assert rounds[0] == Round(4, 4)
    assert rounds[-1] == last
    assert all(each.num_draws * each.num_samples * num_values <= MOST_VALUES for each in rounds[1:])


def test_no_more_draws_and_samples_than_there_are() -> None:
    assert affordable(Round(3, 10), 1.0)[-1] == Round(3, 10)
    assert affordable(Round(64, 192), 1.0)[-1] == Round(64, 64)
