"""Faces, voices, products: are two samples the same? TAR at FAR, and the equal error rate.

Two samples are as alike as the cosine of their outputs (embeddings). A network that takes both and gives one score,
higher for the same, is judged by that score. TAR: the share of pairs of the same that are accepted (true accept rate);
FAR: the share of pairs of others that are (false accept rate, NIST's FMR).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Bools, Floats, Ints
from calibration.data.labels.pairs import is_pair_table, pairs_in
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.answers import SampleCounts, last_places, squeezed

MOST_PAIRS = 20_000_000
"""All pairs of some 6,000 samples."""


@dataclass(frozen=True)
class RankedPairs:
    """Pairs by falling likeness."""

    name: str
    far: float | None
    """TAR at this FAR; None: the equal error rate."""
    first: Ints
    second: Ints
    """(P,) rows of the two samples; the same where one sample is a pair."""
    is_same: Bools
    ends: Ints
    """The last place of each likeness, so that pairs that are equally alike are accepted together."""
    is_nan: bool

    def value(self, counts: SampleCounts) -> float:
        """TAR at FAR, or the equal error rate. A pair of samples that occur twice and three times occurs six times."""
        if self.is_nan:
            return math.nan
        weights = counts[self.first] * np.where(self.first == self.second, 1, counts[self.second])
        num_same, num_others = int(weights[self.is_same].sum()), int(weights[~self.is_same].sum())
        if not num_same or not num_others:
            which = "the same" if not num_same else "others"
            raise ConfigError(
                f"metric '{self.name}': there is no pair of {which}, both kinds are needed; give more pairs"
            )
        tar = np.cumsum(weights * self.is_same)[self.ends] / num_same
        far = np.cumsum(weights * ~self.is_same)[self.ends] / num_others
        return _equal_error(tar, far) if self.far is None else float(tar[far <= self.far].max(initial=0.0))

    def notes(self) -> list[str]:
        """None: every pair counts."""
        return []


def verification(name: str, far: float | None, scores: Array, labels: Array) -> RankedPairs:
    """For ``tar`` and ``eer``: embeddings (N, D), or one score for each sample that is a pair.

    Labels are pairs (``calibration.data.labels.pairs``), or who each sample is, (N,) whole numbers: pairs of
    all; or for one score 1 for the same and 0.

    Raises:
        ConfigError: scores or labels of another kind, a FAR that so few pairs cannot show.
    """
    table = squeezed(scores)
    if table.ndim > 2 or (table.ndim == 2 and table.shape[1] < 2):
        raise ConfigError(
            f"metric '{name}': the output is {scores.shape}, embeddings (N, D) or scores (N,) are expected; name "
            "another output"
        )
    values = table.astype(np.float64)
    if table.ndim == 1:
        is_same = _same_or_not(name, labels)
        first = second = np.arange(len(values))
        likeness = values
    else:
        first, second, is_same = _pairs(name, labels)
        likeness = _cosines(values, first, second)
    num_others = int((~is_same).sum())
    if far is not None and num_others * far < 1:
        raise ConfigError(
            f"metric '{name}': a false accept rate of {far:g} cannot be told from 0 with {num_others:,} pairs of "
            f"others; give at least {math.ceil(1 / far):,}, or take a larger rate, as in tar@0.01"
        )
    order = np.argsort(-likeness, kind="stable")
    ends, is_nan = last_places(likeness[order]), bool(np.isnan(likeness).any())
    return RankedPairs(name, far, first[order], second[order], is_same[order], ends, is_nan)


def _pairs(name: str, labels: Array) -> tuple[Ints, Ints, Bools]:
    """Rows of the samples of each pair, and whether they are the same."""
    if is_pair_table(labels):
        first, second, is_same = pairs_in(labels)
    elif squeezed(labels).ndim == 1 and labels.dtype.kind in "biu":
        who = squeezed(labels)
        if len(who) * (len(who) - 1) // 2 > MOST_PAIRS:
            raise ConfigError(
                f"metric '{name}': {len(who):,} samples make too many pairs; give a list of pairs, or set limit"
            )
        first, second = np.triu_indices(len(who), 1)
        is_same = who[first] == who[second]
    else:
        raise ConfigError(
            f"metric '{name}': labels are {labels.dtype} {labels.shape}; a list of pairs, or who each sample is as a "
            "whole number (N,), is expected"
        )
    return first, second, is_same


def _same_or_not(name: str, labels: Array) -> Bools:
    flat = squeezed(labels)
    if flat.ndim != 1 or flat.dtype.kind not in "biu" or not np.isin(flat, (0, 1)).all():
        raise ConfigError(
            f"metric '{name}': the output is one score for each sample, which is taken as a pair: 1 (the same) or 0 is "
            f"expected as its label, they are {labels.dtype} {labels.shape}; correct them, or name the output with the "
            "embeddings"
        )
    return np.asarray(flat == 1)


def _cosines(values: Floats, first: Ints, second: Ints) -> Floats:
    """(P,): of a zero vector it is 0."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    directions = values / np.where(norms == 0, 1.0, norms)
    parts = range(0, len(first), 1 << 16)  # All pairs at once would be copies of every embedding.
    chunks = [(first[at : at + (1 << 16)], second[at : at + (1 << 16)]) for at in parts]
    return np.concatenate([np.einsum("pd,pd->p", directions[i], directions[j]) for i, j in chunks] or [np.zeros(0)])


def _equal_error(tar: Floats, far: Floats) -> float:
    """Where the share of the same that are refused is that of others that are accepted, between thresholds linearly."""
    accepted = np.concatenate(([0.0], far))
    refused = 1 - np.concatenate(([0.0], tar))
    at = int(np.argmax(accepted >= refused))  # The last threshold accepts all, the first nothing.
    gap_before, gap = accepted[at - 1] - refused[at - 1], accepted[at] - refused[at]
    part = -gap_before / (gap - gap_before)
    return float(accepted[at - 1] + part * (accepted[at] - accepted[at - 1]))
