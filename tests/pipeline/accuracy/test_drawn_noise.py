"""The bound that follows from drawn engines: by hand, where nothing can be told, and how well it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.accuracy.drawn_noise import PRIOR_DEVIATION_DB, DrawnNoise


def noise_of(*noises: float, floor: float = 0.0, num_samples: int = 1) -> DrawnNoise:
    """One output of signal 100, and draws with so much noise, the same on every sample."""
    drawn = DrawnNoise()
    for sample in range(num_samples):
        expected = np.array([10.0, 0.0]) / math.sqrt(num_samples)
        drawn.add_reference(sample, expected, expected + np.array([0.0, math.sqrt(floor / num_samples)]))
        for draw, noise in enumerate(noises):
            drawn.add(draw, sample, expected, expected + np.array([0.0, math.sqrt(noise / num_samples)]))
    return drawn


@pytest.mark.parametrize("num_samples", [1, 5])
def test_the_bound_by_hand(num_samples: int) -> None:
    bound = noise_of(1.0, 0.1, 10.0, num_samples=num_samples).bound(2.0)
    assert bound is not None
    deviation = math.sqrt((4 * PRIOR_DEVIATION_DB**2 + 200) / 6)
    assert bound.mean_db == pytest.approx(20.0)
    assert bound.deviation_db == pytest.approx(deviation)
    assert bound.min_sqnr_db == pytest.approx(20.0 - 2 * deviation)
    assert bound.error_db == pytest.approx(deviation * math.sqrt(1 / 3 + 4 / 12))
    assert bound.floor_db == math.inf
    assert bound.record()["floor_db"] is None
    if num_samples == 1:
        assert bound.atol == pytest.approx(
            max(4 * math.sqrt(10), min(10.0, math.exp(4 * np.std(np.log(10.0) * np.array([0.5, 0, -0.5])))))
        )


def test_draws_that_are_alike_are_no_proof_that_every_engine_is() -> None:
    alike = noise_of(1.0, 1.0, 1.0, 1.0, floor=1.0).bound(4.0)
    assert alike is not None
    assert alike.deviation_db == pytest.approx(PRIOR_DEVIATION_DB * math.sqrt(4 / 7))
    assert alike.floor_db == pytest.approx(20.0)
    assert alike.min_sqnr_db == pytest.approx(-10 * math.log10(10 ** (-2 + 0.4 * alike.deviation_db) + 10**-2))


def test_more_draws_make_the_bound_better_known() -> None:
    errors = [bound.error_db for num in (4, 8, 16) if (bound := noise_of(*np.geomspace(1, 3, num)).bound(4.0))]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 3


@pytest.mark.parametrize("noise", [0.0, math.inf, math.nan])
def test_where_nothing_can_be_told_there_is_no_bound(noise: float) -> None:
    assert noise_of(1.0, 2.0, noise).bound(4.0) is None


def test_where_samples_differ_much_the_largest_difference_of_all_is_extrapolated() -> None:
    drawn, random = DrawnNoise(), np.random.default_rng(0)
    for sample in range(16):
        drawn.add_reference(sample, np.array([1.0, -100.0]), np.ones(2))
        for draw in range(2):
            drawn.add(draw, sample, np.ones(2), np.ones(2) + 1e-3 * math.exp(2 * random.normal()))
    bound = drawn.bound(4.0)
    assert bound is not None
    assert bound.atol > 4 * max(drawn.largest.values())
