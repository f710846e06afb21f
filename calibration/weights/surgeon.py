"""Weights set to zero so that the sums of a product change least, the others made good for it: Optimal Brain Surgeon.

Of each channel the weight w is taken that costs the form of errors least, w^2 over its place on the diagonal of the
inverse, and the others move to where the form is least without it (Hassibi and Stork, 1993; for one layer at a time:
Frantar et al., "Optimal Brain Compression", NeurIPS 2022). Each channel has an inverse of its own, from which what is
zero is taken out; so a channel of K weights takes K^3 multiplications. Where that is too much, all channels go through
their weights in one order with one factor, and each block of them gives its share of zeros (Frantar and Alistarh,
"SparseGPT", 2023); then what is left is solved for where that can be afforded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Bools, Floats
from calibration.weights.masks import GROUP, ZEROS, Pattern
from calibration.weights.sums import BLOCK, changed_in_turn, upper_factor

MOST_WORK = 2**42
"""Multiplications for the weights of one product, up to which a better way is taken: a minute or two of one CPU."""
MOST_AT_ONCE = 2**24
"""Numbers that are held at once of what was taken out of inverses."""
NUM_ROUNDS = 64
"""In which zeros come, at most: several at once where a channel has many weights."""


@dataclass(frozen=True)
class ZeroRule:
    """Which weights of a channel may become zero, and how many."""

    share: float
    pattern: Pattern
    num_positions: int
    """Of a kernel: the weights of a sum are in the order of the input channel, then the position."""

    def num_zeros(self, num_weights: int) -> int:
        """Of one channel, rounded down."""
        return num_weights // GROUP * ZEROS if self.pattern == "2:4" else int(self.share * num_weights)

    def scores(self, scores: Floats) -> Floats:
        """(M, K) scores of all weights, those that are zero at -inf: infinite where none may become zero any more."""
        if self.pattern != "2:4":
            return np.where(np.isneginf(scores), np.inf, scores)
        fours = self.fours(scores)
        ranks = np.argsort(np.argsort(fours, axis=-1, kind="stable"), axis=-1)
        return self.unfours(np.where(np.isneginf(fours) | (ranks >= ZEROS), np.inf, fours))

    def fours(self, values: Floats) -> Floats:
        """(M, K/4, 4): neighbours along the input channels in the last axis."""
        split = values.reshape(len(values), -1, GROUP, self.num_positions)
        return np.moveaxis(split, 2, 3).reshape(len(values), -1, GROUP)

    def unfours(self, values: Floats) -> Floats:
        """As it was before ``fours``."""
        split = values.reshape(len(values), -1, self.num_positions, GROUP)
        return np.moveaxis(split, 3, 2).reshape(len(values), -1)


def with_zeros(weights: Floats, form: Floats, rule: ZeroRule) -> Floats:
    """Weights (M, K) of M channels with zeros in them, which change the form (K, K) least.

    Args:
        weights: without zeros the form is least there.
        form: that has an inverse.
        rule: which of them.
    """
    num_channels, num = weights.shape
    num_zeros = rule.num_zeros(num)
    if not num_zeros:
        return weights
    if num_channels * num**3 <= MOST_WORK:
        inverse = np.asarray(np.linalg.inv(form), np.float64)
        return np.concatenate([_one_by_one(piece, inverse, rule) for piece in _pieces(weights, num_zeros)])
    sparse = _in_turn(weights, form, rule)
    if num_channels * (num - num_zeros) ** 3 // 3 <= MOST_WORK:
        sparse = solved(weights, form, sparse != 0)
    return sparse


def solved(weights: Floats, form: Floats, keeps: Bools) -> Floats:
    """Weights (M, K) that are zero but where ``keeps``, and there nearest by the form to those that they were."""
    made, wanted = np.zeros_like(weights), weights @ form
    for row, keep in enumerate(keeps):
        if keep.any():
            made[row, keep] = np.linalg.solve(form[np.ix_(keep, keep)], wanted[row, keep])
    return made


def _pieces(weights: Floats, num_zeros: int) -> Iterator[Floats]:
    size = max(MOST_AT_ONCE // (weights.shape[1] * num_zeros), 1)
    for begin in range(0, len(weights), size):
        yield weights[begin : begin + size]


def _one_by_one(weights: Floats, inverse: Floats, rule: ZeroRule) -> Floats:
    """The weights that cost least, a few at a time.

    A channel's own inverse, without what is zero, is ``inverse`` less the squares of ``taken``; of it the diagonal is
    held, and the rows of what goes next are computed.
    """
    num_channels, num = weights.shape
    num_zeros, num_taken = rule.num_zeros(num), 0
    values, zeros = weights.copy(), np.zeros(weights.shape, bool)
    diagonal = np.repeat(np.diag(inverse)[None], num_channels, axis=0)
    taken = np.empty((num_channels, num_zeros, num))
    for size in _sizes(num_zeros):
        scores = rule.scores(np.where(zeros, -np.inf, np.square(values) / diagonal))
        out = np.argsort(scores, axis=1, kind="stable")[:, :size]
        before = taken[:, :num_taken]
        rows = inverse[out] - np.swapaxes(np.take_along_axis(before, out[:, None, :], 2), 1, 2) @ before
        factor = np.linalg.cholesky(np.take_along_axis(rows, out[:, None, :], 2))
        rows = np.linalg.solve(factor, rows)
        moves = np.linalg.solve(factor, np.take_along_axis(values, out, 1)[:, :, None])
        values -= (np.swapaxes(moves, 1, 2) @ rows)[:, 0]
        diagonal -= np.square(rows).sum(axis=1)
        np.put_along_axis(zeros, out, True, 1)
        np.put_along_axis(diagonal, out, 1.0, 1)
        taken[:, num_taken : num_taken + size] = rows
        num_taken += size
    return np.where(zeros, 0.0, values)


def _sizes(num: int) -> Iterator[int]:
    """``num`` in at most ``NUM_ROUNDS`` parts."""
    bounds = np.linspace(0, num, min(num, NUM_ROUNDS) + 1).round().astype(int)
    yield from (int(size) for size in np.diff(bounds))


def _in_turn(weights: Floats, form: Floats, rule: ZeroRule) -> Floats:
    """One after another, with one factor for all channels; each block gives its share."""
    num = weights.shape[1]
    if rule.pattern == "2:4":  # Four neighbours beside each other.
        order = rule.fours(np.arange(num, dtype=np.float64)[None]).astype(np.int64).reshape(-1)
        inner = ZeroRule(rule.share, rule.pattern, 1)
    else:
        order, inner = np.arange(num), rule
    factor = upper_factor(form[np.ix_(order, order)][None])
    diagonal = np.einsum("kk->k", factor[0])
    zeros = np.zeros(weights.shape, bool)

    def settle(rest: Floats, at: int) -> Floats:
        if at % BLOCK == 0:
            end = min(at + BLOCK, num)
            zeros[:, at:end] = _zeros_of(np.square(rest[0, :, at:end] / diagonal[at:end]), inner)
        return np.where(zeros[:, at], 0.0, rest[0, :, at])[None]

    made = np.empty_like(weights)
    made[:, order] = changed_in_turn(weights[None, :, order], factor, settle)[0]
    return made


def _zeros_of(scores: Floats, rule: ZeroRule) -> Bools:
    scores = rule.scores(scores)
    ranks = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1)
    return np.asarray(ranks < rule.num_zeros(scores.shape[1]))
