"""What every stage says of itself, so that a plan, its run and its verbs need no lists of names."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from engines.model_format import ModelFormat
from engines.precision import Precision

S = TypeVar("S", bound="Stage")


class Stage:
    """The base of all stages: a frozen dataclass that is called with a folder and its inputs."""

    WRITES: ClassVar[tuple[str, ...]] = ()
    """The precisions that it writes into a model, by name."""
    FORMAT: ClassVar[ModelFormat] = "onnx"
    """Of the models that it writes them into."""
    NEEDS_ENGINES: ClassVar[bool] = False
    """Whether a run up to it builds engines; without, its work is done by the machine that packs a bundle."""
    NEEDS_TOLERANCES: ClassVar[bool] = False
    """Whether a run up to it derives tolerances."""
    RESULT: ClassVar[str] = ""
    """The field of ``pipeline.results.Results`` that has what a run up to it is for: an artifact, or one by variant."""

    def placed_for(self: S, _placement: str) -> S:
        """The same stage for a backend that wants its Q/DQ nodes in that placement; most have no use for it.

        Raises:
            ConfigError: such a backend takes no model of the precision that it writes.
        """
        return self

    def writing(self: S, _precision: str) -> S:
        """The same stage for that precision of ``WRITES``; most write one, in one way."""
        return self

    def reads_ranges(self, precision: Precision) -> bool:
        """Whether it writes that precision with the ranges that calibration found."""
        return precision.needs_ranges
