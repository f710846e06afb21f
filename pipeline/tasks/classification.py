"""Classes and events: precision, recall, F1 and average precision, as scikit-learn defines them.

One score for each sample is of an event, which happens where the score is at least the threshold; of two, the second
is. (N, C) scores are of classes, of which the largest is the answer; the metric is the plain mean over the classes that
labels have, each against the rest. With labels (N, C) of 0 and 1 the C columns are events that may happen together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from calibration.arrays import Bools, Floats, Ints
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.answers import (
    SampleCounts,
    class_labels,
    empty_notes,
    last_places,
    numbers_only,
    squeezed,
)

THRESHOLD = 0.5
"""Of probabilities."""
ANSWER_TYPES = (np.bool_, np.int32, np.int64)
"""Of an output (N,) that is the answer itself; smaller integers are scores of a quantized network."""
Ratio = Callable[[Floats, Floats, Floats], Floats]
"""From true positives, false positives and false negatives, (K,) each, to (K,)."""


@dataclass(frozen=True)
class Decisions:
    """Which events happened, and which the network named."""

    name: str
    is_named: Bools
    happened: Bools
    """Both (N, K): by event, or by class."""
    ratio: Ratio
    is_nan: bool
    """A score is no number."""

    def value(self, counts: SampleCounts) -> float:
        """The mean over events, of which each has a sample among those that count."""
        if self.is_nan:
            return math.nan
        weights = counts.astype(np.float64)
        both = weights @ (self.is_named & self.happened)
        num_named, num_happened = weights @ self.is_named, weights @ self.happened
        counted = _counted(self.name, num_happened)
        return float(self.ratio(both, num_named - both, num_happened - both)[counted].mean())

    def notes(self) -> list[str]:
        """What should be known of the labels."""
        return _notes(self.name, self.happened)


@dataclass(frozen=True)
class Rankings:
    """Scores of events in falling order, with what happened."""

    orders: tuple[Ints, ...]
    """(N,) of each event: samples by falling score."""
    ends: tuple[Ints, ...]
    """Of each event: the last place of each score, so that equal scores count together."""
    happened: Bools
    """(N, K)."""
    is_nan: bool

    def value(self, counts: SampleCounts) -> float:
        """The mean over events of Σ (recall_k − recall_(k−1)) × precision_k over all thresholds k."""
        if self.is_nan:
            return math.nan
        counted = _counted("average_precision", counts.astype(np.float64) @ self.happened)
        return float(np.mean([self._average_precision(int(column), counts) for column in np.flatnonzero(counted)]))

    def notes(self) -> list[str]:
        """What should be known of the labels."""
        return _notes("average_precision", self.happened)

    def _average_precision(self, column: int, counts: SampleCounts) -> float:
        order, ends = self.orders[column], self.ends[column]
        weights = counts[order]
        num_named = np.cumsum(weights)[ends]
        num_right = np.cumsum(weights * self.happened[order, column])[ends]
        precision = num_right / np.maximum(num_named, 1)
        recall = num_right / num_right[-1]
        return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def decisions(name: str, threshold: float | None, scores: Array, labels: Array) -> Decisions:
    """For ``precision``, ``recall`` and ``f1``; ``threshold`` None: of probabilities.

    An output (N,) of ``ANSWER_TYPES`` is taken as the answers themselves.

    Raises:
        ConfigError: scores or labels of another kind; scores that are no probabilities, without a threshold.
    """
    table = squeezed(scores)
    ratio = RATIOS[name]
    if table.ndim == 1 and table.dtype in ANSWER_TYPES:
        return _of_answers(name, table, labels)
    _check_table(name, table, scores)
    is_nan = bool(np.isnan(table).any()) if table.dtype.kind == "f" else False
    happened, of_events = _happened(name, table, labels)
    if of_events and (table.ndim == 1 or labels.shape == table.shape):
        level = _level(name, threshold, table)
        return Decisions(name, np.greater_equal(table, level).reshape(happened.shape), happened, ratio, is_nan)
    if threshold is not None:
        raise ConfigError(
            f"metric '{name}@{threshold:g}': the output is {scores.shape}, of which the largest score is the answer; a "
            f"threshold is for one score of an event: write {name}"
        )
    answers = np.argmax(table, axis=1)
    named = answers[:, None] == (np.array([1]) if of_events else np.arange(table.shape[1]))
    return Decisions(name, named, happened, ratio, is_nan)


def average_precision(scores: Array, labels: Array) -> Rankings:
    """For ``average_precision``.

    Raises:
        ConfigError: scores or labels of another kind.
    """
    name, table = "average_precision", squeezed(scores)
    _check_table(name, table, scores)
    happened, of_events = _happened(name, table, labels)
    values = table.astype(np.float64)
    if table.ndim == 2 and of_events and labels.shape != table.shape:
        values = values @ np.array([-1.0, 1.0])
    columns = values.reshape(happened.shape)
    orders = tuple(np.argsort(-column, kind="stable") for column in columns.T)
    ends = tuple(last_places(column[order]) for column, order in zip(columns.T, orders, strict=True))
    return Rankings(orders, ends, happened, bool(np.isnan(values).any()))


def _of_answers(name: str, answers: Array, labels: Array) -> Decisions:
    """Of an output that is no score but the number of the class."""
    truth = class_labels(name, labels, max(int(np.max(squeezed(labels))), int(answers.max()), 1) + 1)
    if set(np.unique(truth)) <= {0, 1}:
        return Decisions(name, (answers == 1)[:, None], (truth == 1)[:, None], RATIOS[name], is_nan=False)
    classes = np.arange(max(int(truth.max()), int(answers.max())) + 1)
    return Decisions(name, answers[:, None] == classes, truth[:, None] == classes, RATIOS[name], is_nan=False)


def _happened(name: str, table: Array, labels: Array) -> tuple[Bools, bool]:
    """(N, K) what happened, and whether the K are events rather than classes of which one is right."""
    numbers_only(name, labels)
    if table.ndim == 2 and labels.shape == table.shape and table.shape[1] > 1:
        if not np.isin(labels, (0, 1)).all():
            raise ConfigError(
                f"metric '{name}': labels (N, events) must be 0 or 1, other values are found; correct them"
            )
        return labels == 1, True
    num_classes = 2 if table.ndim == 1 else table.shape[1]
    classes = class_labels(name, labels, num_classes)
    if num_classes == 2:
        return (classes == 1)[:, None], True
    return classes[:, None] == np.arange(num_classes), False


def _check_table(name: str, table: Array, scores: Array) -> None:
    if table.ndim > 2:
        raise ConfigError(
            f"metric '{name}': the output is {scores.shape}, (N,) or (N, classes) is expected; name another"
        )


def _level(name: str, threshold: float | None, table: Array) -> float:
    """The threshold; that of probabilities if they are."""
    if threshold is not None:
        return threshold
    low, high = float(np.nanmin(table)), float(np.nanmax(table))
    if low < 0 or high > 1:
        raise ConfigError(
            f"metric '{name}': scores go from {low:.3g} to {high:.3g}, probabilities are expected; write the score "
            f"from which on an event is named, such as {name}@0 for logits"
        )
    return THRESHOLD


def _counted(name: str, num_happened: Floats) -> Bools:
    """(K,): which events have samples among those that count; there must be some."""
    counted: Bools = num_happened > 0
    if not counted.any():
        which = "no sample is of class 1" if len(counted) == 1 else "no sample is of any class"
        raise ConfigError(f"metric '{name}': {which}; use more evaluation data")
    return counted


def _notes(name: str, happened: Bools) -> list[str]:
    return empty_notes(name, np.flatnonzero(~happened.any(axis=0)).tolist(), happened.shape[1])


def _quotient(over: Floats, under: Floats) -> Floats:
    """0 where there is nothing to divide by."""
    return np.asarray(over / np.where(under == 0, 1, under))


def _precision(right: Floats, wrong: Floats, _missed: Floats) -> Floats:
    return _quotient(right, right + wrong)


def _recall(right: Floats, _wrong: Floats, missed: Floats) -> Floats:
    return _quotient(right, right + missed)


def _f1(right: Floats, wrong: Floats, missed: Floats) -> Floats:
    return _quotient(2 * right, 2 * right + wrong + missed)


RATIOS: dict[str, Ratio] = {"precision": _precision, "recall": _recall, "f1": _f1}
DECIDED = {name: partial(decisions, name) for name in RATIOS}
"""By the metric's name: called with (threshold, scores, labels)."""
