"""The record of one gate: everything that gate.json, the JUnit file, the summary and the page say.

Documented key by key in ``docs/gate.md``. ``None`` (null in JSON) means that there is no such number; the docstring
of the field says why that can be.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.advice.precision_steps import Step
from pipeline.gate.steadiness import Conditions
from pipeline.latency.intervals import Statistic
from pipeline.machine.identity import Machine
from pipeline.record import DataInfo, MetricInfo, PlanInfo
from pipeline.stats.intervals import Outcome

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Check:
    """One budget, and what became of it. One test case of the JUnit file."""

    budget: str
    """In its canonical spelling; for the tolerances of [validate], ``outputs of VARIANT within [validate.int8]``."""
    quantity: str
    """Its name, such as ``p99_ms``; ``answers`` for the tolerances."""
    variant: str
    """The engine that it is about."""
    batch_size: int
    """0 for what does not depend on it."""
    outcome: Outcome
    estimate: float | None
    """In the quantity's unit; of a relative budget the ratio candidate / baseline. None where it was not measured."""
    low: float | None
    high: float | None
    """Bounds of the interval of ``estimate``; None with it. Equal to it for what is exact, such as a file's size."""
    bound: float | None
    """None for the tolerances of [validate]."""
    at_most: bool
    """Whether ``bound`` is an upper one."""
    relative: bool
    """Whether ``estimate`` and ``bound`` are multiples of the baseline's."""
    sentence: str
    """All of it in words, with the numbers."""
    advice: str
    """What to do, or what would decide; empty where it passed."""


@dataclass(frozen=True)
class EngineInfo:
    """One engine of the gate."""

    name: str
    path: str
    digest: str
    """SHA-256 (hex) of the engine's file."""
    backend: str
    size_bytes: int
    min_batch: int
    max_batch: int
    """The batches that it takes; 0: no bound."""


@dataclass(frozen=True)
class Estimate:
    """An estimate and its interval; None for a bound that so few queries do not give."""

    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Percentile:
    """One row of the table of percentiles."""

    statistic: Statistic
    candidate_ms: Estimate
    baseline_ms: float | None
    """None without a baseline; so is the next one."""
    ratio: Estimate | None
    """The candidate's over the baseline's, see ``pipeline.latency.paired``."""


@dataclass(frozen=True)
class LatencyMeasurement:
    """One engine's queries at one batch size, and its baseline's, interleaved."""

    variant: str
    batch_size: int
    num_queries: int
    num_loads: int
    """How often both engines were reloaded."""
    num_rounds: int
    seconds: float
    began_ms: float
    """When its first round began, since that of the first measurement; samples/monitor.npz counts from there too."""
    queries_file: str
    """``.npz``, see ``pipeline.latency.benchmark.Queries``; relative to gate.json."""
    baseline_file: str
    """Empty without a baseline."""
    percentiles: tuple[Percentile, ...]


@dataclass(frozen=True)
class Accuracy:
    """One engine's answers on the evaluation samples."""

    variant: str
    metric: float | None
    """None where there is no metric."""
    reference_metric: float | None
    """FP32's; None without a metric or without FP32's answers."""
    baseline_metric: float | None
    """None without a metric or a baseline."""
    agreement: float | None
    """With FP32; None where that is not told, or no output is class scores."""


@dataclass(frozen=True)
class GateRecord:
    """One gate."""

    schema_version: int
    created: str
    """ISO 8601, with the offset from UTC."""
    outcome: Outcome
    """``fail`` if any check failed, else ``not decided`` if any is, else ``pass``."""
    exit_status: int
    candidate: str
    """The engine that is judged."""
    baseline: str
    """Name of the baseline; empty without one."""
    baseline_set: str
    """When a kept baseline was set (ISO 8601); empty for one that was not kept, or none."""
    plan: PlanInfo | None
    """None where engines were gated directly."""
    evaluation: DataInfo
    metric: MetricInfo | None
    engines: tuple[EngineInfo, ...]
    """The candidate, others that budgets name, and the baseline last."""
    machine: Machine
    conditions: Conditions
    protocol: str
    """How it was measured, in a sentence."""
    num_threads: int
    seconds: float
    """That measuring took."""
    checks: tuple[Check, ...]
    measured: tuple[LatencyMeasurement, ...]
    accuracy: tuple[Accuracy, ...]
    steps: tuple[Step, ...]
    """Empty where there is but one precision, or engines were gated directly."""
    advice: str
    """What to ship, in a sentence; empty where engines were gated directly."""
    notes: tuple[str, ...]
