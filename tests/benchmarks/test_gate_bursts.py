"""The benchmark of bursts: its engines lie where it says, and its page."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.gate_bursts import (
    Case,
    Tail,
    decisions,
    far_away,
    on_the_limit,
    quantile_ms,
    sessions,
    slow_queries,
    table,
)
from pipeline.latency.intervals import SHARES


def test_engines_on_the_limit_have_as_many_queries_above_it_as_it_allows() -> None:
    for case in on_the_limit():
        shares = [
            float((sessions(case, np.random.default_rng(number))[0] > case.bound_ms).mean()) for number in range(40)
        ]
        error = float(np.std(shares)) / math.sqrt(40)
        assert np.mean(shares) == pytest.approx(1 - SHARES[case.statistic], abs=4 * error + 1e-4), case.tail.name


def test_bursts_last_as_long_as_they_should() -> None:
    slow = slow_queries(Tail("", 0.01, 19.2, 200.0), 400_000, np.random.default_rng(0))
    num_bursts = int((slow[1:] & ~slow[:-1]).sum())
    assert slow.sum() / num_bursts == pytest.approx(1 / (1 - math.exp(-19.2 / 200)), rel=0.1)
    alone = slow_queries(Tail("", 0.01, 19.2), 400_000, np.random.default_rng(0))
    assert alone.mean() == pytest.approx(0.01, rel=0.1)


def test_a_far_limit_is_decided_in_seconds_and_the_limit_itself_is_not() -> None:
    alone = Tail("one by one, lognormal")
    far, ranks = decisions(Case(alone, 20.0), 5)
    assert set(far.outcomes) == {"pass"}
    assert far.seconds.max() < 10 < ranks.seconds.min()
    on_limit, _ = decisions(Case(alone, quantile_ms(0.99, alone)), 3)
    assert set(on_limit.outcomes) == {"not decided"}
    assert on_limit.seconds.min() > 55


def test_a_line_of_the_page_has_both_ways() -> None:
    lines = table([case for case in far_away() if case.bound_ms == 4.8 / 4], 2)
    assert len(lines) == 3
    cells = lines[-1].strip("| ").split(" | ")
    assert len(cells) == lines[0].count("|") - 1
    assert cells[3:6] == ["0.00", "100.00", "0.00"]
