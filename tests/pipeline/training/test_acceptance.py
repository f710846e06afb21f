"""When what was trained is used."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.training.acceptance import Acceptance, p_value

BETTER = Acceptance(
    loss_before=0.5,
    loss_after=0.3,
    p_value=0.001,
    agreement_before=0.98,
    agreement_after=0.97,
    metric_before=None,
    metric_after=None,
    is_worse_by_metric=False,
    is_teachers=True,
    p_fewer=0.3,
)


def test_what_decides() -> None:
    assert BETTER.is_better, "one class less of some dozens is chance"
    assert not replace(BETTER, p_value=0.06).is_better
    assert not replace(BETTER, p_fewer=0.01).is_better, "other classes than the teacher's are no gain"
    assert replace(BETTER, p_fewer=0.01, is_teachers=False).is_better, "labels may know better than the teacher"
    assert not replace(BETTER, is_worse_by_metric=True).is_better
    assert BETTER.words() == "loss 0.3 against 0.5 before, p = 0.001, 97.00% of the teacher's classes against 98.00%"


@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_is_that_of_random_signs(seed: int) -> None:
    ten = np.ones(10)
    assert p_value(ten, seed) == pytest.approx(2**-10, abs=1e-3)
    assert p_value(-ten, seed) > 0.99
    assert p_value(np.array([3.0, 1.0]), seed) == pytest.approx(0.25, abs=0.03)
    assert p_value(np.zeros(5), seed) == 1.0, "nothing changed"
    assert p_value(np.array([1.0, math.nan]), seed) == 1.0
    noise = np.random.default_rng(seed).normal(size=200)
    assert p_value(noise - noise.mean(), seed) == pytest.approx(0.5, abs=0.05)
