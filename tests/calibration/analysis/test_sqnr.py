"""The ratio of signal to noise, where there is none of either too."""

from __future__ import annotations

import math

import pytest

from calibration.analysis.sqnr import sqnr_db


@pytest.mark.parametrize(
    ("signal", "noise", "ratio_db"),
    [(100.0, 1.0, 20.0), (1.0, 0.0, math.inf), (0.0, 1.0, -math.inf), (1.0, math.inf, -math.inf), (0.0, 0.0, math.inf)],
)
def test_sqnr(signal: float, noise: float, ratio_db: float) -> None:
    assert sqnr_db(signal, noise) == pytest.approx(ratio_db)
