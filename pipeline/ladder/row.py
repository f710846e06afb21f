"""One variant of one technique: what it was made of, and how it kept the bounds."""

from __future__ import annotations

from dataclasses import dataclass

from engines import backend
from pipeline.artifact import Engine
from pipeline.gate.decide import worst
from pipeline.gate.record import Check
from pipeline.json_record import finite
from pipeline.plan import Plan
from pipeline.results import Results, Variant
from pipeline.stats.intervals import Outcome
from pipeline.techniques.catalogue import NONE, Technique

ACCURACY = ("metric", "metric_drop", "agreement", "answers")
"""Quantities of checks that are about answers."""


@dataclass(frozen=True, eq=False)
class Row:
    """A variant that a technique made."""

    technique: Technique
    name: str
    """In tables and files, where each name stands once."""
    variant: Variant
    plan: Plan
    results: Results
    seconds: float | None
    """What making it took; None where that is not known."""
    checks: tuple[Check, ...] = ()
    """Of the bounds; a bound that another missed before may not have been measured."""

    @property
    def engine(self) -> Engine:
        """What would be deployed."""
        return self.results.engines[self.variant]

    def on_gpu(self) -> bool:
        """Whether its engine is for a GPU."""
        return backend(self.variant.backend).GPU

    def why_not_run(self) -> str:
        """Empty if its engine runs here; else one sentence."""
        return backend(self.variant.backend).why_not_run()

    @property
    def outcome(self) -> Outcome:
        """Of all bounds together."""
        return worst([check.outcome for check in self.checks])

    def is_accurate(self) -> bool:
        """Whether no bound on its answers is missed."""
        return not any(check.outcome == "fail" and check.quantity in ACCURACY for check in self.checks)

    def failing_quantities(self) -> set[str]:
        """Of the bounds that it misses."""
        return {check.quantity for check in self.checks if check.outcome == "fail"}

    def worst_sqnr_db(self) -> float | None:
        """Of its outputs against FP32's, dB; None where all are equal."""
        rows = self.results.verdicts[self.variant].read()["comparison"].values()
        ratios = [ratio for row in rows if (ratio := finite(row["sqnr_db"])) is not None]
        return min(ratios, default=None)

    def is_plain(self) -> bool:
        """Whether it is FP32 as it was trained."""
        return self.technique is NONE
