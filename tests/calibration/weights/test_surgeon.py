"""Zeros that change a quadratic form least: nearer than by size alone, and never with more zeros than asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calibration.arrays import Floats
from calibration.weights import surgeon
from calibration.weights.surgeon import ZeroRule, solved, with_zeros

NUM_CHANNELS, NUM_WEIGHTS = 12, 144
ANY, TWO_OF_FOUR = ZeroRule(0.5, "any", 9), ZeroRule(0.5, "2:4", 9)


@pytest.fixture(scope="module")
def form() -> Floats:
    """Of inputs that go together."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(600, 40)) @ random.normal(size=(40, NUM_WEIGHTS)) / 6
    return np.asarray(rows.T @ rows / 600 + 0.05 * np.eye(NUM_WEIGHTS))


@pytest.fixture(scope="module")
def weights() -> Floats:
    return np.random.default_rng(2).normal(size=(NUM_CHANNELS, NUM_WEIGHTS))


def error(made: Floats, weights: Floats, form: Floats) -> float:
    return float(np.einsum("mk,kl,ml->", made - weights, form, made - weights))


def by_size(weights: Floats, form: Floats) -> Floats:
    order = np.argsort(np.abs(weights) * np.sqrt(np.diag(form)), axis=1)
    made = weights.copy()
    np.put_along_axis(made, order[:, : NUM_WEIGHTS // 2], 0.0, 1)
    return made


@pytest.mark.parametrize("rule", [ANY, TWO_OF_FOUR], ids=["any", "2:4"])
@pytest.mark.parametrize("most_work", [surgeon.MOST_WORK, NUM_CHANNELS * (NUM_WEIGHTS // 2) ** 3, 0])
def test_what_is_left_is_nearer_than_by_size(
    weights: Floats, form: Floats, rule: ZeroRule, most_work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, in turn with what is left solved for, and in turn alone."""
    monkeypatch.setattr(surgeon, "MOST_WORK", most_work)
    made = with_zeros(weights, form, rule)
    assert ((made == 0).sum(axis=1) == NUM_WEIGHTS // 2).all()
    assert error(made, weights, form) < error(by_size(weights, form), weights, form)
    if rule.pattern == "2:4":
        fours = (made == 0).reshape(NUM_CHANNELS, -1, 4, 9).sum(axis=2)  # Neighbours along the input channels.
        assert (fours == 2).all()
    if most_work:
        np.testing.assert_allclose(made, solved(weights, form, made != 0), atol=1e-8)


def test_one_by_one_is_the_best_of_the_three(weights: Floats, form: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for most_work in (surgeon.MOST_WORK, NUM_CHANNELS * (NUM_WEIGHTS // 2) ** 3, 0):
        monkeypatch.setattr(surgeon, "MOST_WORK", most_work)
        errors.append(error(with_zeros(weights, form, ANY), weights, form))
    assert errors == sorted(errors)


def test_one_zero_is_the_best_of_all() -> None:
    """Against each weight tried in turn."""
    random = np.random.default_rng(5)
    rows = random.normal(size=(50, 6)) @ random.normal(size=(6, 6))
    form, weights = rows.T @ rows / 50 + 0.01 * np.eye(6), random.normal(size=(4, 6))
    made = with_zeros(weights, form, ZeroRule(1 / 6, "any", 1))
    for row, own in zip(weights, made):
        tried = [solved(row[None], form, np.arange(6)[None] != at)[0] for at in range(6)]
        best = min(tried, key=lambda each: error(each[None], row[None], form))
        np.testing.assert_allclose(own, best, atol=1e-9)


def test_several_at_once_lose_little(weights: Floats, form: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for num_rounds in (NUM_WEIGHTS, 16):
        monkeypatch.setattr(surgeon, "NUM_ROUNDS", num_rounds)
        errors.append(error(with_zeros(weights, form, ANY), weights, form))
    assert errors[1] < errors[0] * 1.2


def test_pieces_of_channels_change_nothing(weights: Floats, form: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = with_zeros(weights, form, ANY)
    monkeypatch.setattr(surgeon, "MOST_AT_ONCE", 1)
    np.testing.assert_allclose(with_zeros(weights, form, ANY), whole, atol=1e-12)


def test_a_share_that_leaves_no_weight_to_take(weights: Floats, form: Floats) -> None:
    assert with_zeros(weights, form, ZeroRule(0.001, "any", 9)) is weights


@pytest.mark.parametrize("share", [0.01, 0.25, 0.9, 0.99])
def test_as_many_zeros_as_asked_for_rounded_down(weights: Floats, form: Floats, share: float) -> None:
    made = with_zeros(weights, form, ZeroRule(share, "any", 9))
    assert set((made == 0).sum(axis=1)) == {int(share * NUM_WEIGHTS)}


def test_neighbours_along_the_input_channels_and_back() -> None:
    values = np.arange(2 * 8 * 3, dtype=np.float64).reshape(2, 24)
    rule = ZeroRule(0.5, "2:4", 3)
    fours = rule.fours(values)
    for channel, position, group in itertools.product(range(8), range(3), range(2)):
        assert values[0, channel * 3 + position] in fours[0, channel // 4 * 3 + position], group
    np.testing.assert_array_equal(rule.unfours(fours), values)
