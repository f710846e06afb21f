"""Values: remaining life, angles, counts of objects. Root mean square error and R², as scikit-learn defines them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Floats
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.answers import SampleCounts, same_shape


@dataclass(frozen=True)
class SquaredErrors:
    """Squared errors of each sample; those of several values of a sample are counted by value."""

    squares: Floats
    """(N, K)."""

    def value(self, counts: SampleCounts) -> float:
        """The root of the mean square, and of K values the mean of their roots."""
        return float(np.sqrt(counts @ self.squares / counts.sum()).mean())

    def notes(self) -> list[str]:
        """None: every sample counts."""
        return []


@dataclass(frozen=True)
class ExplainedSquares:
    """Squared errors of each sample beside the labels that they are to explain."""

    squares: Floats
    labels: Floats
    """Both (N, K)."""

    def value(self, counts: SampleCounts) -> float:
        """1 − Σ(error²) ÷ Σ((label − mean)²), and of K values the mean of it."""
        num = counts.sum()
        spread = counts @ (self.labels - counts @ self.labels / num) ** 2
        drawn = self.labels[counts > 0]
        constant = (drawn == drawn[0]).all(axis=0)
        if constant.any():
            which = f"value {int(np.argmax(constant))} of the labels is" if len(constant) > 1 else "the labels are"
            raise ConfigError(
                f"metric 'r2': {which} the same for all samples, of which nothing can be explained; take rmse"
            )
        return float((1 - counts @ self.squares / spread).mean())

    def notes(self) -> list[str]:
        """None: every sample counts."""
        return []


def rmse(scores: Array, labels: Array) -> SquaredErrors:
    """For ``rmse``: output and labels of one shape (N, ...)."""
    got, want = _columns("rmse", scores, labels)
    return SquaredErrors((got - want) ** 2)


def r2(scores: Array, labels: Array) -> ExplainedSquares:
    """For ``r2``: output and labels of one shape (N, ...); at least two samples."""
    got, want = _columns("r2", scores, labels)
    if len(want) < 2:
        raise ConfigError("metric 'r2': there is 1 sample, at least 2 are expected; give more evaluation samples")
    return ExplainedSquares((got - want) ** 2, want - want.mean(axis=0))


def _columns(name: str, scores: Array, labels: Array) -> tuple[Floats, Floats]:
    got, want = (array.reshape(len(array), -1) for array in same_shape(name, scores, labels))
    if not math.prod(want.shape):
        raise ConfigError(f"metric '{name}': the output {scores.shape} has no values; name another output")
    return got, want
