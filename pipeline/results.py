"""What a run has made so far, by variant."""

from __future__ import annotations

from dataclasses import dataclass, field

from calibration.data.batches import Samples
from engines.contract import Precision
from pipeline.artifact import (
    Engine,
    Findings,
    OnnxModel,
    Outputs,
    Ranges,
    Source,
    Timings,
    Tolerances,
    Verdict,
)
from pipeline.bundle import Bundle


@dataclass(frozen=True)
class Variant:
    """One precision for one backend."""

    precision: Precision
    backend: str

    @property
    def name(self) -> str:
        """As it stands in tables and reports: ``int8@onnxruntime``."""
        return f"{self.precision}@{self.backend}"


@dataclass
class Results:
    """What a run has made so far, by variant where there are several."""

    source: Source
    fp32: OnnxModel
    calibration: Samples | None
    """None on a device that was given a bundle: the samples stayed behind."""
    evaluation: Samples
    packed: Bundle | None = None
    """Where the models come from a bundle."""
    source_verdict: Verdict | None = None
    """The exported FP32 model against the trained network itself."""
    reference: Outputs | None = None
    findings: Findings | None = None
    ranges: Ranges | None = None
    models: dict[Variant, OnnxModel] = field(default_factory=dict)
    tolerances: dict[Variant, Tolerances] = field(default_factory=dict)
    """Derived, for the variants that the plan holds to them."""
    engines: dict[Variant, Engine] = field(default_factory=dict)
    outputs: dict[Variant, Outputs] = field(default_factory=dict)
    verdicts: dict[Variant, Verdict] = field(default_factory=dict)
    timings: Timings | None = None
    not_timed: dict[Variant, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
