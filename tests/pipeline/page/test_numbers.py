"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.page.numbers import (
    change_text,
    db_text,
    drop_text,
    metric_text,
    metric_title,
    ms_text,
    rate_text,
    share_text,
    signed,
    size_text,
    three_digits,
    times_text,
)
from pipeline.record import MetricInfo

TOP1 = MetricInfo("top1", "fraction of samples", True, None)
MAE = MetricInfo("mae", "metres", False, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.000412, "0.000412"),
        (0.0412, "0.0412"),
        (0.4125, "0.412"),
        (0.9999, "1.00"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (99.96, "100"),
        (1234.4, "1,234"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


@given(st.floats(0.001, 1e6))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert float(three_digits(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_units_stand_behind_numbers() -> None:
    assert ms_text(0.4123) == "0.412 ms"
    assert rate_text(12345.6) == "12,346/s"
    assert times_text(1.816) == "1.82×"
    assert share_text(0.9912) == "99.1 %"
    assert share_text(None) == "–"


def test_sizes() -> None:
    assert size_text(512) == "0.500 KiB"
    assert size_text((1 << 20) - 1) == "1,024 KiB"
    assert size_text(1 << 20) == "1.00 MiB"


def test_a_fraction_is_percent_and_its_difference_is_points() -> None:
    assert metric_title(TOP1) == "top1"
    assert metric_text(TOP1, 0.91254) == "91.25 %"
    assert drop_text(TOP1, 0.0012) == "0.12 points"
    assert drop_text(TOP1, -0.0012) == "−0.12 points"


def test_another_metric_has_its_unit_in_the_title() -> None:
    assert metric_title(MAE) == "mae, metres"
    assert metric_title(MetricInfo("auc", "", True, None)) == "auc"
    assert metric_text(MAE, 0.123456) == "0.1235"
    assert drop_text(MAE, -0.5) == "−0.5"


def test_no_number_is_a_dash() -> None:
    assert metric_text(TOP1, None) == drop_text(TOP1, None) == "–"


@pytest.mark.parametrize(
    ("metric", "drop", "text"),
    [
        (TOP1, 0.0012, "0.12 points below FP32"),
        (TOP1, -0.0012, "0.12 points above FP32"),
        (TOP1, 0.00001, "equal to FP32"),
        (MAE, 0.5, "0.5 above FP32"),
        (MAE, -0.5, "0.5 below FP32"),
        (MAE, 0.0, "equal to FP32"),
    ],
)
def test_a_change_in_words(metric: MetricInfo, drop: float, text: str) -> None:
    assert change_text(metric, drop) == text


def test_zero_has_no_sign() -> None:
    assert signed(-0.001, 2) == "0.00"
    assert signed(-0.01, 2) == "−0.01"


def test_decibels_have_one_decimal() -> None:
    assert db_text(24.04) == "24.0 dB"
    assert db_text(-3.0) == "−3.0 dB"
    assert db_text(None) == "–"
