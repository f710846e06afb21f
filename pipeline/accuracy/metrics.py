"""Task metrics: how good a network's answers are, judged against labels. Fractions, not percent."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.arrays import Bools, Floats
from calibration.data.user_function import load_function
from engines.contract import Array
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Metric:
    """One task metric, bound to the output it reads.

    A NaN among the scores of a sample makes it wrong for ``top1`` and ``top5``; in any other metric the value is NaN,
    and no bound holds for a NaN.
    """

    name: str
    higher_is_better: bool
    needs_labels: bool
    unit: str
    """What the value is counted in, for a person; empty for a pure number."""
    output: str
    """The output that is read; empty: the only one. A user's own function gets this one, or all of them."""
    compute: Callable[[Any, Any], Any]
    """For our own metrics: (scores, labels) -> value; for a user's: the function itself."""

    @property
    def per_sample(self) -> bool:
        """Whether ``correct`` can say of each sample if it was answered rightly."""
        return self.name in _NUM_GUESSES

    def __call__(self, outputs: Mapping[str, Array], labels: Array | None) -> float:
        """The value over all samples: ``outputs`` by name, each (num_samples, ...), and labels (num_samples, ...).

        Raises:
            ConfigError: labels are missing or do not fit the outputs, the output is not named, or a user's function
                raised (``__cause__``) or gave no number.
        """
        self.check_labels(labels)
        if labels is None or ":" in self.name:
            return self._own(outputs, labels)
        return float(self.compute(self._scores(outputs, labels), labels))

    def check_labels(self, labels: Array | None) -> None:
        """What can be told before anything is run.

        Raises:
            ConfigError: there are no labels, or they are text, and the metric is not a user's own function.
        """
        if self.needs_labels and labels is None:
            raise ConfigError(f"metric '{self.name}': needs labels, there are none; set labels in [data]")
        if labels is not None and labels.dtype.kind == "U" and ":" not in self.name:
            raise ConfigError(
                f"metric '{self.name}': labels are text, such as {str(labels.reshape(-1)[0])!r:.40}, numbers are "
                "expected; store each class's index, or name a function of your own as module:function"
            )

    def correct(self, outputs: Mapping[str, Array], labels: Array) -> Bools:
        """(num_samples,): whether each sample was answered rightly. For paired tests of two engines.

        Raises:
            ConfigError: as for a call; and the metric is neither ``top1`` nor ``top5``.
        """
        if not self.per_sample:
            raise ConfigError(
                f"metric '{self.name}': does not classify single samples as right or wrong; use "
                f"{' or '.join(_NUM_GUESSES)}"
            )
        return _hits(self.name, self._scores(outputs, labels), labels)

    @property
    def is_mean(self) -> bool:
        """Whether the value is the mean of one value for each sample, which ``values`` gives."""
        return self.name in _VALUES

    def values(self, outputs: Mapping[str, Array], labels: Array) -> Floats:
        """(num_samples,): the value of each sample alone, whose mean is the metric's value.

        Raises:
            ConfigError: as for a call.
            KeyError: the metric is no mean.
        """
        return _VALUES[self.name](self._scores(outputs, labels), labels)

    def _chosen(self, outputs: Mapping[str, Array]) -> str:
        """The name of the output that is judged."""
        if self.output and self.output not in outputs:
            raise ConfigError(
                f"metric '{self.name}': there is no output '{self.output}', the outputs are {', '.join(outputs)}; "
                "correct output"
            )
        if not self.output and len(outputs) != 1:
            raise ConfigError(
                f"metric '{self.name}': there are {len(outputs)} outputs ({', '.join(outputs)}), it reads one; set "
                "output to one of them"
            )
        return self.output or next(iter(outputs))

    def _scores(self, outputs: Mapping[str, Array], labels: Array) -> Array:
        """The output that is judged, with as many samples as there are labels."""
        name = self._chosen(outputs)
        scores = outputs[name]
        if scores.dtype.kind == "O":
            raise ConfigError(
                f"metric '{self.name}': output '{name}' has another shape for each sample, one for all is expected; "
                "name a function of your own as module:function, or another output"
            )
        if scores.ndim == 0 or labels.ndim == 0 or len(scores) != len(labels) or len(labels) == 0:
            raise ConfigError(
                f"metric '{self.name}': output '{name}' is {scores.shape}, the labels are {labels.shape}; the same "
                "number of samples, at least one, is expected; give one label for each sample"
            )
        return scores

    def _own(self, outputs: Mapping[str, Array], labels: Array | None) -> float:
        """A user's function, held to giving a number."""
        judged = {self._chosen(outputs): outputs[self.output]} if self.output else dict(outputs)
        try:
            value = self.compute(judged, labels)
        except Exception as error:
            raise ConfigError(f"metric '{self.name}': raised {type(error).__name__} ({error}); fix it") from error
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"metric '{self.name}': gave a {type(value).__name__}, one number is expected; fix it"
            ) from None


def metric(name: str, output: str = "", folder: Path = Path()) -> Metric:
    """The metric of that name: top1, top5, mae, cosine, auc, or ``module:function`` found from ``folder``.

    A user's function is called with (outputs, labels); its attributes ``higher_is_better`` (True), ``needs_labels``
    (True) and ``unit`` ("") are respected, with these defaults.

    Raises:
        ConfigError: no such metric; with the nearest name.
        DataError: the user's function cannot be loaded.
    """
    if ":" in name:
        function = load_function(name, folder)
        return Metric(
            name=name,
            higher_is_better=bool(getattr(function, "higher_is_better", True)),
            needs_labels=bool(getattr(function, "needs_labels", True)),
            unit=str(getattr(function, "unit", "")),
            output=output,
            compute=function,
        )
    if name not in _METRICS:
        near = difflib.get_close_matches(name, _METRICS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "choose one"
        raise ConfigError(f"metric '{name}': is not one of {', '.join(_METRICS)}, nor module:function; {hint}")
    compute, higher_is_better, unit = _METRICS[name]
    return Metric(name, higher_is_better, True, unit, output, compute)


def counts_classes(name: str) -> bool | None:
    """Whether a metric takes answers for scores of classes, or for values; None where its name says neither."""
    return True if name in _NUM_GUESSES else False if name in ("mae", "cosine") else None


def top1(scores: Array, labels: Array) -> float:
    """Share of samples whose largest score is the label's class."""
    return float(np.mean(_hits("top1", scores, labels)))


def top5(scores: Array, labels: Array) -> float:
    """Share of samples whose label is among the five largest scores; of equal scores the lower class counts first."""
    return float(np.mean(_hits("top5", scores, labels)))


def mae(scores: Array, labels: Array) -> float:
    """Mean absolute difference of output and labels, over all samples and elements, in the labels' unit."""
    return float(np.mean(_distances(scores, labels)))


def cosine(scores: Array, labels: Array) -> float:
    """Mean over samples of the cosine between output and label, each flattened: 1 is the same direction.

    A zero vector has no direction: its cosine is 1 with another zero vector, and 0 with any other.
    """
    return float(np.mean(_cosines(scores, labels)))


def auc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve by ranks, ties counting one half (Mann-Whitney U; Hanley and McNeil 1982).

    Scores (N,) or (N, 1) are of class 1; of (N, 2) the difference counts, which orders probabilities and logits as
    they are meant. (N, C) is one class against the rest, the plain mean over classes, each by its own column, so
    logits should be softmax outputs; with labels (N, C) of 0 and 1, each column by itself.
    """
    table = _squeezed(scores).astype(np.float64)
    if table.ndim > 2:
        raise ConfigError(f"metric 'auc': the output is {scores.shape}, (N,) or (N, classes) is expected; name another")
    if np.isnan(table).any():
        return math.nan
    if table.ndim == 2 and labels.shape == table.shape and table.shape[1] > 1:
        if not np.isin(labels, (0, 1)).all():
            raise ConfigError("metric 'auc': labels (N, classes) must be 0 or 1, other values are found; correct them")
        return float(np.mean([_binary_auc(table[:, c], labels[:, c] == 1, c) for c in range(table.shape[1])]))
    num_classes = table.shape[1] if table.ndim == 2 else 2
    classes = _class_labels("auc", labels, num_classes)
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


def _distances(scores: Array, labels: Array) -> Floats:
    """(N,): mean absolute difference of each sample."""
    got, want = _same_shape("mae", scores, labels)
    return np.asarray(np.abs(got - want).reshape(len(got), -1).mean(axis=1))


def _cosines(scores: Array, labels: Array) -> Floats:
    """(N,): the cosine of each sample."""
    got, want = (array.reshape(len(array), -1) for array in _same_shape("cosine", scores, labels))
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    both_zero = ~got.any(axis=1) & ~want.any(axis=1)
    dots = np.sum(got * want, axis=1)
    return np.where(both_zero, 1.0, dots / np.where(norms == 0, 1.0, norms))


def _hits(name: str, scores: Array, labels: Array) -> Bools:
    """(N,): whether the label is among the best scores; a row with NaN never is."""
    num_guesses = _NUM_GUESSES[name]
    table = _squeezed(scores)
    if table.ndim != 2 or table.shape[1] < max(num_guesses, 2):
        raise ConfigError(
            f"metric '{name}': the output is {scores.shape}, (N, classes) with at least {max(num_guesses, 2)} "
            "classes is "
            "expected; name another output or metric"
        )
    classes = _class_labels(name, labels, table.shape[1])
    values = table.astype(np.float64)
    best = np.argsort(-values, axis=1, kind="stable")[:, :num_guesses]
    hits: Bools = (best == classes[:, None]).any(axis=1) & ~np.isnan(values).any(axis=1)
    return hits


def _class_labels(name: str, labels: Array, num_classes: int) -> npt.NDArray[np.int64]:
    """(N,) class indices, each below ``num_classes``."""
    squeezed = _squeezed(labels)
    if squeezed.ndim != 1 or squeezed.dtype.kind not in "biu":
        raise ConfigError(
            f"metric '{name}': labels are {labels.dtype} {labels.shape}, whole numbers (N,) are expected; store each "
            "class's index"
        )
    low, high = int(squeezed.min()), int(squeezed.max())
    if low < 0 or high >= num_classes:
        raise ConfigError(
            f"metric '{name}': labels go from {low} to {high}, the output has the classes 0 to {num_classes - 1}; "
            "correct "
            "the labels, or name another output"
        )
    return squeezed.astype(np.int64)


def _same_shape(name: str, scores: Array, labels: Array) -> tuple[Floats, Floats]:
    """Both as float64 of one shape, up to axes of length 1; never broadcast."""
    got, want = _squeezed(scores), _squeezed(labels)
    if got.shape != want.shape:
        raise ConfigError(
            f"metric '{name}': the output is {scores.shape}, the labels are {labels.shape}, the same shape is "
            "expected; "
            "store labels in the shape of the output"
        )
    return got.astype(np.float64), want.astype(np.float64)


def _squeezed(array: Array) -> Array:
    """Without axes of length 1, but for the first: (N, 1, 1, C) -> (N, C)."""
    return array.reshape(array.shape[0], *(size for size in array.shape[1:] if size != 1))


_NUM_GUESSES = {"top1": 1, "top5": 5}
_METRICS: dict[str, tuple[Callable[[Array, Array], float], bool, str]] = {
    "top1": (top1, True, "fraction of samples"),
    "top5": (top5, True, "fraction of samples"),
    "mae": (mae, False, "unit of the labels"),
    "cosine": (cosine, True, ""),
    "auc": (auc, True, ""),
}
_VALUES: dict[str, Callable[[Array, Array], Floats]] = {
    "top1": lambda scores, labels: _hits("top1", scores, labels).astype(np.float64),
    "top5": lambda scores, labels: _hits("top5", scores, labels).astype(np.float64),
    "mae": _distances,
    "cosine": _cosines,
}
"""Those that are means: the value of each sample, (N,)."""
