"""Intervals and the test against published values, against brute force and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.stats.proportions import clopper_pearson, holm, mcnemar, tango, two_sided, wilson

Z = two_sided(0.95)


def test_wilson_equals_the_published_examples() -> None:
    """81 of 263, 15 of 148, 0 of 20: Newcombe, Statistics in Medicine 17 (1998) 857-872, by the score method."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_clopper_pearson_equals_published_examples() -> None:
    """81 of 263, 15 of 148, 0 of 20: the same paper, the exact method; in closed form for none and for all."""
    assert clopper_pearson(81, 263) == pytest.approx((0.2527, 0.3676), abs=5e-5)
    assert clopper_pearson(15, 148) == pytest.approx((0.0578, 0.1617), abs=5e-5)
    assert clopper_pearson(0, 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert clopper_pearson(20, 20, 0.99) == pytest.approx((0.005 ** (1 / 20), 1.0))


@pytest.mark.parametrize("num", [37, 100_000])
def test_clopper_pearson_mirrors_and_is_wider_than_wilson(num: int) -> None:
    hits = round(0.93 * num)
    low, high = clopper_pearson(hits, num)
    assert clopper_pearson(num - hits, num) == pytest.approx((1 - high, 1 - low))
    assert high - low > wilson(hits, num)[1] - wilson(hits, num)[0]
    assert high - low == pytest.approx(wilson(hits, num)[1] - wilson(hits, num)[0], rel=8 / math.sqrt(num))


def test_more_confidence_is_wider() -> None:
    for interval in (wilson(90, 100, 0.99), clopper_pearson(90, 100, 0.99), tango(8, 3, 100, 0.99)):
        assert interval[1] - interval[0] > 0.1
    assert wilson(90, 100, 0.99)[0] < wilson(90, 100)[0]
    assert tango(8, 3, 100, 0.99)[0] < tango(8, 3, 100)[0]


def test_tango_equals_another_implementation() -> None:
    """Cavo et al. (2012), 59 6 16 80: R's contingencytables says -0.1240 to -0.0054."""
    assert tango(6, 16, 59 + 6 + 16 + 80) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


def test_tango_without_a_disagreement() -> None:
    """In closed form: z^2 / (n + z^2) on either side."""
    bound = Z * Z / (100 + Z * Z)
    assert tango(0, 0, 100) == pytest.approx((-bound, bound))


@pytest.mark.parametrize(("first", "second"), [(3, 0), (12, 2), (40, 55), (0, 1)])
def test_tango_mirrors_and_holds_the_difference(first: int, second: int) -> None:
    low, high = tango(first, second, 200)
    assert tango(second, first, 200) == pytest.approx((-high, -low))
    assert -1 <= low <= (first - second) / 200 <= high <= 1


@pytest.mark.parametrize(("first", "second"), [(9, 1), (20, 8), (20, 10), (19, 8)])
def test_tango_leaves_out_zero_where_mcnemars_asymptotic_test_does(first: int, second: int) -> None:
    low, _ = tango(first, second, 300)
    assert (low > 0) == ((first - second) / math.sqrt(first + second) > Z)


def test_tango_covers_what_it_should() -> None:
    """In 4,000 draws from 2000 samples with known shares, the difference lies within in about 95 of 100."""
    drawn = np.random.default_rng(1).multinomial(2000, [0.02, 0.012, 0.968], size=4000)
    inside = sum(low <= 0.008 <= high for low, high in (tango(int(a), int(b), 2000) for a, b, _ in drawn))
    assert 0.94 <= inside / 4000 <= 0.96


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (6, 0), (1, 9), (12, 2)])
def test_mcnemar_is_the_share_of_outcomes_as_uneven(first: int, second: int) -> None:
    num = first + second
    outcomes = [bin(code).count("1") for code in range(2**num)]
    uneven = sum(abs(2 * ones - num) >= abs(first - second) for ones in outcomes)
    assert mcnemar(first, second) == pytest.approx(uneven / 2**num)


def test_holm_equals_the_example_worked_by_hand() -> None:
    """0.01, 0.02, 0.03, 0.04: 4 p, 3 p, 2 p, p, and none below the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_calls_equals_unequal_in_one_family_of_twenty_at_most() -> None:
    random = np.random.default_rng(0)
    families = random.random((2000, 30))
    wrong = np.mean([min(holm(list(p_values))) < 0.05 for p_values in families])
    assert wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


@given(num=st.integers(1, 20_000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.9999))
def test_the_intervals_of_a_share_are_scipys(num: int, share: float, confidence: float) -> None:
    hits = round(share * num)
    found = stats.binomtest(hits, num)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        theirs = found.proportion_ci(confidence, method=method)
        assert ours(hits, num, confidence) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)


@given(first=st.integers(0, 600), second=st.integers(0, 600))
def test_mcnemars_p_is_that_of_scipys_test_of_one_half(first: int, second: int) -> None:
    theirs = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(float(theirs), rel=1e-9, abs=1e-300)


@given(confidence=st.floats(0.01, 0.999999))
def test_as_many_standard_deviations_as_scipys(confidence: float) -> None:
    assert two_sided(confidence) == pytest.approx(float(stats.norm.ppf((1 + confidence) / 2)), rel=1e-9)
