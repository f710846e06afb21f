"""What was tried of the ladder so far, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.gate.budget import Budget
from pipeline.ladder.hardware import suits
from pipeline.ladder.row import Row
from pipeline.plan import Plan
from pipeline.techniques.catalogue import Technique
from pipeline.techniques.record import Rung


@dataclass
class Ascent:
    """What was tried, and what came of it."""

    plan: Plan
    bounds: tuple[Budget, ...]
    rows: list[Row] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    base: frozenset[str] = frozenset()
    """Digests of what FP32 needs, which is no part of making anything else."""

    def of(self, technique: Technique) -> list[Row]:
        """The rows of a technique."""
        return [row for row in self.rows if row.technique is technique]

    def candidates(self) -> list[Row]:
        """The rows that may be deployed where the plan wants it."""
        return [row for row in self.rows if suits(self.plan, row.variant)]

    def full_of(self, row: Row) -> Row:
        """FP32 on the row's backend, as it was trained."""
        return next(r for r in self.rows if r.is_plain() and r.variant.backend == row.variant.backend)

    def holding(self) -> list[Row]:
        """Those that hold all bounds, in the order of the ladder."""
        return [row for row in self.candidates() if row.outcome == "pass"]

    def has_labels(self) -> bool:
        """Whether the calibration samples have labels; not before there is a row."""
        calibration = self.rows[0].results.calibration if self.rows else None
        return calibration is not None and calibration.reader.labels() is not None
