"""A bound that INT8 holds by layers that stay in float, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tasks.detector import AS_IT_SAYS, Detector


@dataclass(frozen=True)
class MixtureBound:
    """What INT8 must hold, on calibration samples."""

    min_sqnr_db: float
    """Of each output, before a last Softmax or Sigmoid; minus infinity: any."""
    max_metric_drop: float
    """Against FP32, in the metric's unit; infinity: any."""
    metric: str = ""
    output: str = ""
    folder: Path = Path()
    """Where a user's own metric lies."""
    detector: Detector = AS_IT_SAYS
    """How a detector's outputs are read."""

    @property
    def has_metric(self) -> bool:
        """Whether the task's metric is bounded."""
        return math.isfinite(self.max_metric_drop)

    @property
    def is_any(self) -> bool:
        """Whether everything holds it."""
        return not self.has_metric and not math.isfinite(self.min_sqnr_db)

    def words(self) -> str:
        """What is asked for."""
        parts = [f"SQNR of at least {self.min_sqnr_db:g} dB"] * math.isfinite(self.min_sqnr_db)
        parts += [f"{self.metric} at most {self.max_metric_drop:g} below FP32's"] * self.has_metric
        return " and ".join(parts)


@dataclass(frozen=True)
class MixturePoint:
    """A set of layers in float that was judged, on calibration samples."""

    num_in_float: int
    sqnr_db: float | None
    """Of the worst output; None where it is equal."""
    metric_drop: float | None
    """None where the metric is not bounded."""
    holds: bool
    cpu_ms: float | None = None
    """CPU time of one sample in ONNX Runtime, on one thread; None where it was not measured."""


@dataclass(frozen=True)
class MixtureInfo:
    """What stays in float so that INT8 holds a bound."""

    in_float: tuple[str, ...]
    """Names of nodes."""
    num_layers: int
    """Groups of nodes that were ranked."""
    points: tuple[MixturePoint, ...]
    bound: str
    """In words."""
    fp32_ms: float | None = None
    """FP32's time beside those of the points, in turns with them; None where there are none."""


def mixture_sentence(record: Mapping[str, Any]) -> str:
    """What was found: how many layers are left in float, and what each number of them gives."""
    rows = "; ".join(_row(row) for row in record["points"])
    num = len(record["in_float"])
    what = f"{num} {'node stays' if num == 1 else 'nodes stay'} in float" if num else "all stays in INT8"
    return f"mixed precision: {what} for {record['bound']}, on calibration samples ({rows})"


def _row(row: Mapping[str, Any]) -> str:
    parts = [f"{row['sqnr_db']:.1f} dB"] if row["sqnr_db"] is not None else []
    parts += [f"drop {row['metric_drop']:.4f}"] if row["metric_drop"] is not None else []
    return f"{row['num_in_float']}: {', '.join(parts) or 'equal'}"
