"""The share of right answers, areas under curves, and distances: metrics of one output beside labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from calibration.arrays import Bools, Floats
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.answers import class_labels, same_shape, squeezed

NUM_GUESSES = {"top1": 1, "top5": 5}
"""Metrics that say of each sample if it was answered rightly, and how many of the best scores they look at."""


def top1(scores: Array, labels: Array) -> float:
    """Share of samples whose largest score is the label's class."""
    return float(np.mean(hits("top1", scores, labels)))


def top5(scores: Array, labels: Array) -> float:
    """Share of samples whose label is among the five largest scores; of equal scores the lower class counts first."""
    return float(np.mean(hits("top5", scores, labels)))


def mae(scores: Array, labels: Array) -> float:
    """Mean absolute difference of output and labels, over all samples and elements, in the labels' unit."""
    return float(np.mean(distances(scores, labels)))


def cosine(scores: Array, labels: Array) -> float:
    """Mean over samples of the cosine between output and label, each flattened: 1 is the same direction.

    A zero vector has no direction: its cosine is 1 with another zero vector, and 0 with any other.
    """
    return float(np.mean(cosines(scores, labels)))


def auc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve by ranks, ties counting one half (Mann-Whitney U; Hanley and McNeil 1982).

    Scores (N,) or (N, 1) are of class 1; of (N, 2) the difference counts, which orders probabilities and logits as
    they are meant. (N, C) is one class against the rest, the plain mean over classes, each by its own column, so
    logits should be softmax outputs; with labels (N, C) of 0 and 1, each column by itself.
    """
    table = squeezed(scores).astype(np.float64)
    if table.ndim > 2:
        raise ConfigError(f"metric 'auc': the output is {scores.shape}, (N,) or (N, classes) is expected; name another")
    if np.isnan(table).any():
        return math.nan
    if table.ndim == 2 and labels.shape == table.shape and table.shape[1] > 1:
        if not np.isin(labels, (0, 1)).all():
            raise ConfigError("metric 'auc': labels (N, classes) must be 0 or 1, other values are found; correct them")
        return float(np.mean([_binary_auc(table[:, c], labels[:, c] == 1, c) for c in range(table.shape[1])]))
    num_classes = table.shape[1] if table.ndim == 2 else 2
    classes = class_labels("auc", labels, num_classes)
    if num_classes == 2:
        positive = table if table.ndim == 1 else table[:, 1] - table[:, 0]
        return _binary_auc(positive, classes == 1, 1)
    return float(np.mean([_binary_auc(table[:, c], classes == c, c) for c in range(num_classes)]))


def _binary_auc(scores: Floats, positive: Bools, index: int) -> float:
    """P(a positive scores above a negative) + half of P(they are equal)."""
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        which = "no sample" if not num_positive else "every sample"
        raise ConfigError(
            f"metric 'auc': {which} is of class {index}, both kinds are needed for a ROC curve; use more evaluation "
            "data"
        )
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place.reshape(-1)]
    above = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def distances(scores: Array, labels: Array) -> Floats:
    """(N,): mean absolute difference of each sample."""
    got, want = same_shape("mae", scores, labels)
    return np.asarray(np.abs(got - want).reshape(len(got), -1).mean(axis=1))


def cosines(scores: Array, labels: Array) -> Floats:
    """(N,): the cosine of each sample."""
    got, want = (array.reshape(len(array), -1) for array in same_shape("cosine", scores, labels))
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    both_zero = ~got.any(axis=1) & ~want.any(axis=1)
    dots = np.sum(got * want, axis=1)
    return np.where(both_zero, 1.0, dots / np.where(norms == 0, 1.0, norms))


def hits(name: str, scores: Array, labels: Array) -> Bools:
    """(N,): whether the label is among the best scores; a row with NaN never is."""
    num_guesses = NUM_GUESSES[name]
    table = squeezed(scores)
    if table.ndim != 2 or table.shape[1] < max(num_guesses, 2):
        raise ConfigError(
            f"metric '{name}': the output is {scores.shape}, (N, classes) with at least {max(num_guesses, 2)} "
            "classes is "
            "expected; name another output or metric"
        )
    classes = class_labels(name, labels, table.shape[1])
    values = table.astype(np.float64)
    best = np.argsort(-values, axis=1, kind="stable")[:, :num_guesses]
    right: Bools = (best == classes[:, None]).any(axis=1) & ~np.isnan(values).any(axis=1)
    return right


VALUES: dict[str, Callable[[Array, Array], Floats]] = {
    "top1": lambda scores, labels: hits("top1", scores, labels).astype(np.float64),
    "top5": lambda scores, labels: hits("top5", scores, labels).astype(np.float64),
    "mae": distances,
    "cosine": cosines,
}
"""Those that are means: the value of each sample, (N,)."""
