"""What is known of a network and its data before there is a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from calibration.data.preprocess import Preprocess


@dataclass(frozen=True)
class DataSet:
    """One of a plan's sets of samples, as it is to stand there."""

    path: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    labels: str = ""
    fold: str = ""


@dataclass(frozen=True)
class DataSets:
    """What calibrates and what judges, and what was seen there."""

    calibration: DataSet
    evaluation: DataSet
    are_pictures: bool
    notes: tuple[str, ...] = ()
    """Why they were chosen so."""
    asks: tuple[str, ...] = ()
    """What would make the plan better."""
    questions: Mapping[str, str] = field(default_factory=dict)
    """Key of the two tables -> what has to be answered there before the plan can be run."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to samples, how it is known, and what is not."""

    options: Preprocess = field(default_factory=Preprocess)
    notes: tuple[str, ...] = ()
    questions: Mapping[str, str] = field(default_factory=dict)
    """Key of the table -> what has to be answered there before the plan can be run."""

    def with_scale(self, scale: float, mean: tuple[float, ...], std: tuple[float, ...], note: str) -> Preprocessing:
        """The same with pixels scaled so."""
        return replace(self, options=replace(self.options, scale=scale, mean=mean, std=std), notes=(*self.notes, note))

    def asking(self, key: str, question: str) -> Preprocessing:
        """The same with one more question."""
        return replace(self, questions={**self.questions, key: question})
