"""One nearest rank, wherever a percentile of latency is printed or judged."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.latency.benchmark import latency_from_ms
from pipeline.latency.intervals import Statistic, session_statistics, statistic_bounds
from pipeline.stats.percentiles import percentiles

EXACT = {"p50": Fraction(1, 2), "p90": Fraction(9, 10), "p95": Fraction(19, 20), "p99": Fraction(99, 100)}
JUDGED: tuple[Statistic, ...] = ("p50", "p90", "p99")


def rank(share: Fraction, num: int) -> int:
    return math.ceil(share * num)


@pytest.mark.parametrize("name", EXACT)
def test_the_rank_is_exact_also_where_it_is_a_whole_number(name: str) -> None:
    """Of 1, 2, ... n the value at a rank is the rank."""
    share = EXACT[name]
    for num in (1, 2, 3, 7, *range(20, 2001, 20), 99_999, 100_000, 100_001):
        assert percentiles(np.arange(1.0, num + 1), (float(share),))[0] == rank(share, num)


@given(values=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=300), repeats=st.sampled_from([1, 20, 100]))
def test_a_benchmark_and_a_gate_mean_the_same_query(values: list[float], repeats: int) -> None:
    latency_ms = np.array(values * repeats)
    summary, ordered = latency_from_ms(latency_ms), np.sort(latency_ms)
    for name in JUDGED:
        at_rank = ordered[rank(EXACT[name], len(ordered)) - 1]
        assert getattr(summary, name) == at_rank
        assert session_statistics(latency_ms[None], name)[0] == at_rank
        assert statistic_bounds(latency_ms[None], name, 0.005)[0] == at_rank


def test_percentiles_along_the_last_axis() -> None:
    found = percentiles(np.array([[4.0, 1.0, 3.0, 2.0], [8.0, 5.0, 7.0, 6.0]]), (0.5, 0.75))
    assert found.tolist() == [[2.0, 6.0], [3.0, 7.0]]
