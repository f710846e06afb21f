"""The record of trying techniques: the key ``advice`` of report.json, documented in ``docs/report-schema.md``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipeline.stats.intervals import Outcome

RungOutcome: TypeAlias = Literal["holds", "does not hold", "not decided", "not tried", "not possible"]


@dataclass(frozen=True)
class CheckedBound:
    """One bound of ``[advise]``, as a variant kept it."""

    bound: str
    """In the gate's words, such as ``metric_drop <= 0.01``."""
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class CheckedClaim:
    """What is claimed of a technique in general, beside what was measured of it here."""

    claim: str
    measured: str
    holds: bool | None
    """None where the measurement does not decide it."""


@dataclass(frozen=True)
class TechniqueRow:
    """One technique on one backend: what the table has beside the variant's own numbers."""

    technique: str
    """Its name."""
    variant: str
    """The name of its object in ``variants``."""
    outcome: Outcome
    """Of all bounds together."""
    checks: tuple[CheckedBound, ...]
    size_ratio: float
    """Bytes / bytes of FP32 on the same backend."""
    compressed_bytes: int
    """Of the file that gzip makes of the engine at its highest level."""
    compressed_ratio: float
    """``compressed_bytes`` / those of FP32 on the same backend."""
    metric_interval: tuple[float, float] | None
    """Of the metric; None without a metric, or where the metric is NaN."""
    drop_interval: tuple[float, float] | None
    """Of the drop of the metric against the FP32 ONNX model; None likewise, and for that model itself."""
    confidence: float
    """Of the two intervals."""
    p_value: float | None
    """McNemar's exact test that the variant and FP32 are right equally often; None where samples are not right or
    wrong."""
    p50_interval_ms: tuple[float, float] | None
    """95 % bootstrap interval of the p50; None where it was not timed."""
    measured_on: str
    """The machine, or what simulated the answers."""
    seconds: float | None
    """What making it took: ranges, training, models and engines, in this run or earlier; None where an earlier release
    made a part of it."""
    claims: tuple[CheckedClaim, ...]


@dataclass(frozen=True)
class Rung:
    """One technique of the ladder."""

    technique: str
    title: str
    data: str
    """What it needs of the user's data."""
    claim: str
    """What is said of it in general; empty where nothing is."""
    hardware: str
    settings: tuple[str, ...]
    """What ``--set`` makes of the plan for it."""
    outcome: RungOutcome
    why: str
    """Why it was not tried or is not possible; empty where it was tried."""


@dataclass(frozen=True)
class Advice:
    """Which technique to use on this network."""

    bounds: tuple[str, ...]
    hardware: str
    """Where the engine is to run; empty: wherever a backend of the plan does."""
    outcome: Outcome
    """``pass``: a technique holds all bounds; ``fail``: none does; ``not decided``: none surely does, one might."""
    technique: str
    """The one to use; empty where none holds."""
    variant: str
    """The variant to use; empty likewise."""
    toml: str
    """What to write into the plan for it; empty where nothing is to be changed, or none holds."""
    contradicted: tuple[str, ...]
    """Claims that this network does not bear out."""
    next_steps: tuple[str, ...]
    """What to try where nothing holds, or to decide what is not decided."""
    rungs: tuple[Rung, ...]
    rows: tuple[TechniqueRow, ...]
