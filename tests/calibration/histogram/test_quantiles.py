"""Quantiles as numpy computes them, without numpy.ma."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.histogram.quantiles import median, quantile_above

LISTS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9)


@given(LISTS)
def test_the_median_is_numpys(values: list[float]) -> None:
    assert median(np.array(values)) == np.median(values)


@given(LISTS, st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_the_quantile_above_is_numpys(values: list[float], share: float) -> None:
    assert quantile_above(np.array(values), share) == np.quantile(values, share, method="higher")


def test_any_shape_is_taken_whole() -> None:
    assert median(np.array([[1.0, 2.0], [3.0, 40.0]])) == 2.5


def test_of_nothing_there_is_none() -> None:
    with pytest.raises(IndexError):
        median(np.zeros(0))


def test_numpy_ma_is_not_imported() -> None:
    code = (
        "import sys, numpy as np; from calibration.histogram.quantiles import median, quantile_above; "
        "median(np.ones(3)), quantile_above(np.ones(3), 0.9); assert 'numpy.ma' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
