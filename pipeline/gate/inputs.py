"""What a gate is about: the engines, their answers, the baseline, and which budget is about which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from calibration.data.batches import Samples
from pipeline.advice.precision_steps import Step
from pipeline.artifact import Engine
from pipeline.errors import ConfigError
from pipeline.gate.accuracy import EvaluationOutputs
from pipeline.gate.budget import Budget
from pipeline.gate.checks import EngineBudget, GateEngines, Validated
from pipeline.record import MetricInfo, PlanInfo
from pipeline.spelling import nearest
from pipeline.stages.benchmark import Benchmark


@dataclass(frozen=True)
class BaselineEngine:
    """The baseline: an engine to measure beside the candidate."""

    name: str
    engine: Engine
    set_on: str = ""
    """When it was set (ISO 8601); empty for an engine that is no kept baseline."""
    evaluation_digest: str = ""
    """Of the samples that it was gated on; empty likewise."""
    p50_ms: Mapping[int, float] = field(default_factory=dict)
    """By batch size, when it was gated; empty likewise."""

    @property
    def side(self) -> str:
        """Its name where it is measured, which no candidate has."""
        return f"baseline {self.name}"


@dataclass(frozen=True)
class GateInputs:
    """What a gate is about."""

    candidate: str
    """Name of the engine that is judged, where a budget names no other."""
    engines: Mapping[str, Engine]
    """The candidate and whatever else budgets may name; not the baseline."""
    baseline: BaselineEngine | None
    no_baseline: str
    """Why there is none though one was named; empty if there is one, or none was named."""
    outputs: EvaluationOutputs
    samples: Samples
    benchmark: Benchmark
    """Threads, monitor and first batch size are its."""
    verdicts: Mapping[str, Validated]
    """By engine; empty where nothing was validated."""
    metric: MetricInfo | None
    plan: PlanInfo | None
    steps: tuple[Step, ...] = ()
    advice: str = ""
    notes: tuple[str, ...] = ()

    def engine_budgets(self, budgets: Sequence[Budget]) -> tuple[EngineBudget, ...]:
        """Each budget with the engine that it is about, each once.

        Raises:
            ConfigError: it names an engine that is not there, there is no baseline to compare with, or two bound the
                same thing.
        """
        check_budgets(budgets, list(self.engines), has_baseline=bool(self.baseline or self.no_baseline))
        return engine_budgets(budgets, self.candidate, self.benchmark.batch_sizes[0])

    def remarks(self) -> tuple[str, ...]:
        """What whoever reads the gate should know of its baseline."""
        if self.no_baseline:
            return (f"{self.no_baseline[:1].upper()}{self.no_baseline[1:]}.",)
        if self.baseline and self.baseline.set_on and self.baseline.evaluation_digest != self.samples.digest():
            return (
                f"The evaluation samples or their labels are not those that baseline '{self.baseline.name}' was gated "
                "on; both engines are evaluated on today's.",
            )
        return ()

    def comparable(self, budget: Budget) -> bool:
        """Whether what the budget compares with is there."""
        return self.baseline is not None or not budget.needs_baseline

    def gate_engines(self, budgets: Sequence[EngineBudget]) -> GateEngines:
        """The engines that budgets are about, the candidate first, and the baseline last."""
        names = dict.fromkeys([self.candidate, *(name for name, _ in budgets)])
        engines = {name: self.engines[name] for name in names}
        if self.baseline is None:
            return GateEngines(engines, "")
        return GateEngines(engines | {self.baseline.side: self.baseline.engine}, self.baseline.side)


def engine_budgets(budgets: Sequence[Budget], candidate: str, first_batch_size: int) -> tuple[EngineBudget, ...]:
    """Each budget with the engine that it is about, and its batch size, each once.

    Raises:
        ConfigError: two bound the same quantity, as by naming the batch size that the other leaves out.
    """
    by_subject: dict[tuple[str, str, bool], EngineBudget] = {}
    for budget in budgets:
        engine = budget.variant or candidate
        complete = budget
        if budget.quantity.by_batch:
            complete = replace(budget, batch_size=budget.batch_size or first_batch_size)
        key = engine, replace(complete, variant="").subject, budget.relative
        other = by_subject.setdefault(key, EngineBudget(engine, complete)).budget
        if other.bound != budget.bound:
            raise ConfigError(f"'{other.text}' and '{budget.text}' bound the same quantity of {engine}; leave one out")
    return tuple(by_subject.values())


def check_budgets(budgets: Sequence[Budget], names: list[str], *, has_baseline: bool) -> None:
    """That budgets are about engines that are there.

    Raises:
        ConfigError: one names another engine, or compares with a baseline where none was named.
    """
    for budget in budgets:
        if budget.variant and budget.variant not in names:
            raise ConfigError(
                f"'{budget.text}': there is no variant '{budget.variant}'{nearest(budget.variant, names)}"
            )
        if budget.needs_baseline and not has_baseline:
            raise ConfigError(
                f"'{budget.text}': there is no baseline to compare with; name one in [gate] baseline or with --baseline"
            )
