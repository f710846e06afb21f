"""Task metrics: how good a network's answers are, judged against labels. Fractions, not percent."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calibration.arrays import Bools, Floats, Ints
from calibration.data.user_function import load_function
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.answers import Tally
from pipeline.tasks.classification import DECIDED, average_precision
from pipeline.tasks.coco import MEANS, check_available
from pipeline.tasks.detection import count_mae, mean_average_precision
from pipeline.tasks.detector import AS_IT_SAYS, Detector
from pipeline.tasks.output_reading import reading_of
from pipeline.tasks.regression import r2, rmse
from pipeline.tasks.scores import NUM_GUESSES, VALUES, auc, cosine, hits, mae, top1, top5
from pipeline.tasks.segmentation import miou
from pipeline.tasks.verification import verification


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
    tallied: Callable[[Any, Array], Tally] | None = None
    """For metrics of ``pipeline.tasks``, from (scores, labels): samples are compared with their labels once, and the
    value is then that of any of them."""
    reads_all: bool = False
    """``tallied`` gets all outputs by name, or the one that is named, as a detector has several."""
    detector: Detector = AS_IT_SAYS
    """How those are read."""

    @property
    def per_sample(self) -> bool:
        """Whether ``correct`` can say of each sample if it was answered rightly."""
        return self.name in NUM_GUESSES

    def __call__(self, outputs: Mapping[str, Array], labels: Array | None) -> float:
        """The value over all samples: ``outputs`` by name, each (num_samples, ...), and labels (num_samples, ...).

        Raises:
            ConfigError: labels are missing or do not fit the outputs, the output is not named, or a user's function
                raised (``__cause__``) or gave no number.
        """
        self.check_labels(labels)
        if labels is None or ":" in self.name:
            return self._own(outputs, labels)
        return float(self.compute(self._judged(outputs, labels), labels))

    def of_samples(self, outputs: Mapping[str, Array], labels: Array | None) -> Callable[[Ints], float]:
        """From indices of samples, of which one may be named several times, to the value over those.

        What each sample alone tells is found out here, once, where the metric is one of ``pipeline.tasks``.

        Raises:
            ConfigError: as for a call, also when the function is called.
        """
        self.check_labels(labels)
        if self.tallied is not None and labels is not None:
            tally = self.tallied(self._judged(outputs, labels), labels)
            return lambda picks: tally.value(np.bincount(picks, minlength=len(labels)))
        picked_from = labels if self.needs_labels else None

        def value(picks: Ints) -> float:
            picked = {name: array[picks] for name, array in outputs.items()}
            return self(picked, None if picked_from is None else picked_from[picks])

        return value

    def lists(self, outputs: Mapping[str, Array]) -> tuple[str, ...]:
        """Names of outputs that are lists in the order of scores, as a detector's after suppression: two that change
        places are another array, and the same answer.

        Raises:
            ConfigError: the outputs are no detector's.
        """  # fmt: skip
        if not self.reads_all:
            return ()
        return reading_of(self._named(outputs), self.detector).chosen()

    def with_notes(self, outputs: Mapping[str, Array], labels: Array | None) -> tuple[float, list[str]]:
        """The value as by a call, and sentences on what of the labels it leaves out."""
        self.check_labels(labels)
        if self.tallied is None or labels is None:
            return self(outputs, labels), []
        tally = self.tallied(self._judged(outputs, labels), labels)
        return tally.value(np.ones(len(labels), np.int64)), tally.notes()

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
                f"{' or '.join(NUM_GUESSES)}"
            )
        return hits(self.name, self._scores(outputs, labels), labels)

    @property
    def is_share(self) -> bool:
        """Whether the value is between 0 and 1."""
        return self.unit.startswith("fraction") or self.name == "auc"

    @property
    def is_mean(self) -> bool:
        """Whether the value is the mean of one value for each sample, which ``values`` gives."""
        return self.name in VALUES

    def values(self, outputs: Mapping[str, Array], labels: Array) -> Floats:
        """(num_samples,): the value of each sample alone, whose mean is the metric's value.

        Raises:
            ConfigError: as for a call.
            KeyError: the metric is no mean.
        """
        return VALUES[self.name](self._scores(outputs, labels), labels)

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

    def _named(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The output that is named, or all of them."""
        return {self._chosen(outputs): outputs[self.output]} if self.output else dict(outputs)

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

    def _judged(self, outputs: Mapping[str, Array], labels: Array) -> Any:
        """What ``compute`` and ``tallied`` get: one output, or all by name."""
        if not self.reads_all:
            return self._scores(outputs, labels)
        judged = self._named(outputs)
        for name, array in judged.items():
            if array.ndim == 0 or len(array) != len(labels) or not len(labels):
                raise ConfigError(
                    f"metric '{self.name}': output '{name}' is {array.shape}, there are labels of {len(labels)} "
                    "pictures; the same number of pictures, at least one, is expected"
                )
        return judged

    def _own(self, outputs: Mapping[str, Array], labels: Array | None) -> float:
        """A user's function, held to giving a number."""
        judged = self._named(outputs)
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


def metric(name: str, output: str = "", folder: Path = Path(), detector: Detector = AS_IT_SAYS) -> Metric:
    """The metric of that name: one of ``METRICS``, or ``module:function`` found from ``folder``.

    ``detector`` is how a detector's outputs are read. A number behind an ``@`` is a threshold, or for ``tar`` the
    false accept rate: ``f1@0.3``, ``tar@0.001``.
    A user's function is called with (outputs, labels); its attributes ``higher_is_better`` (True), ``needs_labels``
    (True) and ``unit`` ("") are respected, with these defaults.

    Raises:
        ConfigError: no such metric, with the nearest name; or a number that it does not take.
        DataError: the user's function cannot be loaded.
        Unavailable: it needs what is not installed.
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
    bare, at, _ = name.partition("@")
    if bare not in METRICS:
        near = difflib.get_close_matches(bare, METRICS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "choose one"
        raise ConfigError(f"metric '{name}': is not one of {', '.join(METRICS)}, nor module:function; {hint}")
    kind = METRICS[bare]
    number = _number_after(name, kind) if at else kind.default
    if kind.detects is not None:
        if bare in MEANS:
            check_available(name)
        by_boxes = partial(kind.detects, name, number, detector)
        return Metric(
            name, kind.higher_is_better, True, kind.unit, output, partial(_whole, by_boxes), by_boxes, True, detector
        )
    if kind.tally is not None:
        tallied = partial(kind.tally, name, number)
        return Metric(name, kind.higher_is_better, True, kind.unit, output, partial(_whole, tallied), tallied)
    assert kind.value is not None, "a metric has one or the other"
    return Metric(name, kind.higher_is_better, True, kind.unit, output, kind.value)


def _whole(tallied: Callable[[Array, Array], Tally], scores: Array, labels: Array) -> float:
    """The value over all samples."""
    return tallied(scores, labels).value(np.ones(len(labels), np.int64))


def _number_after(name: str, kind: TaskMetric) -> float:
    """What stands behind the @ in a metric's name."""
    bare, _, text = name.partition("@")
    if not kind.number:
        raise ConfigError(f"metric '{name}': takes no number; write {bare}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (kind.is_rate and not 0 < number < 1):
        wanted = "between 0 and 1 " if kind.is_rate else ""
        raise ConfigError(f"metric '{name}': has '{text}', {kind.number} {wanted}is expected; write {kind.example}")
    return number


def counts_classes(name: str) -> bool | None:
    """Whether a metric takes answers for scores of classes, or for values; None where its name says neither."""
    return True if name in NUM_GUESSES else False if name.partition("@")[0] in _OF_VALUES else None


@dataclass(frozen=True)
class TaskMetric:
    """What one of our own metrics is: it has a value, or a tally."""

    higher_is_better: bool
    unit: str
    value: Callable[[Array, Array], float] | None = None
    tally: Callable[[str, float | None, Array, Array], Tally] | None = None
    """Called with the name as written, the number behind its @, scores and labels."""
    detects: Callable[[str, float | None, Detector, Any, Array], Tally] | None = None
    """The same of a detector, with how its outputs are read, and all of them by name."""
    number: str = ""
    """What the number behind an @ is; empty: there is none."""
    example: str = ""
    is_rate: bool = False
    """The number is between 0 and 1."""
    default: float | None = None


def _decided(name: str) -> TaskMetric:
    """Precision, recall or F1."""
    return TaskMetric(
        higher_is_better=True,
        unit="fraction",
        tally=lambda _written, threshold, scores, labels: DECIDED[name](threshold, scores, labels),
        number="the score from which on an event is named",
        example=f"{name}@0.3",
    )


def _mean_precision(name: str, _number: float | None, detector: Detector, outputs: Any, labels: Array) -> Tally:
    return mean_average_precision(name, detector, outputs, labels)


METRICS: dict[str, TaskMetric] = {
    "top1": TaskMetric(True, "fraction of samples", top1),
    "top5": TaskMetric(True, "fraction of samples", top5),
    "mae": TaskMetric(False, "unit of the labels", mae),
    "cosine": TaskMetric(True, "", cosine),
    "auc": TaskMetric(True, "", auc),
    "precision": _decided("precision"),
    "recall": _decided("recall"),
    "f1": _decided("f1"),
    "average_precision": TaskMetric(True, "fraction", tally=lambda _name, _number, *both: average_precision(*both)),
    "rmse": TaskMetric(False, "unit of the labels", tally=lambda _name, _number, *both: rmse(*both)),
    "r2": TaskMetric(True, "", tally=lambda _name, _number, *both: r2(*both)),
    "miou": TaskMetric(True, "fraction", tally=lambda _name, _number, *both: miou(*both)),
    "tar": TaskMetric(
        True, "fraction", tally=verification, number="the false accept rate", example="tar@0.001", is_rate=True,
        default=0.001,
    ),
    "eer": TaskMetric(False, "fraction", tally=verification),
    **{name: TaskMetric(True, "fraction", detects=_mean_precision) for name in MEANS},
    "count_mae": TaskMetric(
        False, "objects", detects=count_mae, number="the score from which on an object counts", example="count_mae@0.3",
    ),
}  # fmt: skip
"""Our own metrics by name."""
_OF_VALUES = ("mae", "cosine", "rmse", "r2", "tar", "eer", "count_mae", *MEANS)
"""What outputs of these are is no scores of classes."""
