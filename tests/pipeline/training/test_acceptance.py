"""When what was trained is used."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.training import acceptance
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


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_many_that_are_no_better_is_no_better(seed: int) -> None:
    """Of thirty epochs of noise the best one looks better by itself, in most of the trials."""
    random = np.random.default_rng(seed)
    alone, of_all = [], []
    for trial in range(20):
        epochs = random.normal(size=(30, 50))
        best = epochs[epochs.sum(axis=1).argmax()]
        alone.append(p_value(best, trial))
        of_all.append(p_value(best, trial, epochs))
    assert np.mean(np.array(alone) < 0.05) > 0.5
    assert np.mean(np.array(of_all) < 0.05) <= 0.2
    assert np.median(of_all) == pytest.approx(0.5, abs=0.2)
    same = np.repeat(best[None], 30, axis=0)
    assert p_value(best, seed, same) == p_value(best, seed), "epochs that are alike are one"
    assert p_value(np.ones(50), seed, random.normal(size=(30, 50))) < 0.01
    assert p_value(best, seed, np.full((2, 50), math.nan)) == p_value(best, seed)


def test_many_held_out_samples_take_no_more_memory_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.random.default_rng(1).normal(size=64) + 0.1
    whole = p_value(gains, 1)
    monkeypatch.setattr(acceptance, "MOST_AT_ONCE", 1000)
    assert p_value(gains, 1) == whole
