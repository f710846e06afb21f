"""From a budget and an interval to a check: the outcome, and the sentence that can be defended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from engines import backend
from engines.contract import SharingBackend
from engines.provider_share import num_fallback_nodes
from pipeline.artifact import Engine, files_of_engine
from pipeline.errors import ConfigError
from pipeline.gate.budget import Budget, QuantityKind
from pipeline.gate.record import Check
from pipeline.json_record import finite
from pipeline.page.numbers import MIB
from pipeline.report.compressed_size import gzip_bytes
from pipeline.stats.intervals import Interval, Limit, Outcome, outcome

UNITS = {
    "p50_ms": "ms",
    "p90_ms": "ms",
    "p99_ms": "ms",
    "mean_ms": "ms",
    "cold_start_ms": "ms",
    "throughput_per_s": "per s",
    "size_mib": "MiB",
    "size_compressed_mib": "MiB",
    "peak_memory_mib": "MiB",
    "device_memory_mib": "MiB",
    "memory_growth_mib_per_h": "MiB per h",
    "device_memory_growth_mib_per_h": "MiB per h",
    "energy_mj": "mJ",
    "beside_p50_ms": "ms",
    "beside_p99_ms": "ms",
}
"""Quantity -> the unit of its numbers; the others have none."""

TIMED = ("latency", "start", "energy", "beside")
"""Kinds of quantities that a noisy machine spoils."""

UNQUIET = "; but this machine was too noisy to decide by: "

LEAST_DIGITS, MOST_DIGITS = 4, 12


class EngineBudget(NamedTuple):
    """A budget, and the engine that it is about."""

    engine: str
    """Its name."""
    budget: Budget
    """Its batch size is filled in."""


@dataclass(frozen=True)
class GateEngines:
    """The engines by name, and which of them is the baseline; empty: there is none."""

    engines: Mapping[str, Engine]
    baseline: str


@dataclass(frozen=True)
class Validated:
    """What [validate] said of an engine."""

    table: str
    """Of its tolerances, such as ``validate.int8``."""
    failures: tuple[str, ...]


def about(engine_budgets: Sequence[EngineBudget], *kinds: QuantityKind) -> list[EngineBudget]:
    """Those whose quantities are of these kinds."""
    return [engine_budget for engine_budget in engine_budgets if engine_budget.budget.quantity.kind in kinds]


def exact_interval(value: float) -> Interval:
    """What is known without doubt."""
    return Interval(value, value, value, 1.0)


def check_from_interval(engine_budget: EngineBudget, interval: Interval, advice: str) -> Check:
    """The check of a budget by its interval.

    Args:
        engine_budget: the engine and the budget.
        interval: of the quantity, in its unit; of a relative budget, of the ratio candidate / baseline.
        advice: what would decide, or what to do; kept where it is not decided.
    """
    limit = Limit(engine_budget.budget.bound, engine_budget.budget.at_most)
    return check_from_outcome(engine_budget, outcome(interval, limit), interval, advice)


def check_from_outcome(engine_budget: EngineBudget, decision: Outcome, interval: Interval, advice: str) -> Check:
    """The check of a budget that was decided elsewhere; as ``check_from_interval``."""
    sentence = interval_sentence(engine_budget.budget, interval, decision)
    return _check(engine_budget, decision, interval, sentence, advice if decision == "not decided" else "")


def check_not_measured(engine_budget: EngineBudget, why: str, advice: str) -> Check:
    """The check of a budget whose quantity could not be measured."""
    return _check(engine_budget, "not decided", None, f"{engine_budget.budget.subject} is not known: {why}", advice)


def check_not_finite(engine_budget: EngineBudget, why: str) -> Check:
    """The check of a budget that no number could keep."""
    return _check(engine_budget, "fail", None, f"{engine_budget.budget.subject} is not a number: {why}", "")


def check_without_baseline(engine_budget: EngineBudget, why: str) -> Check:
    """The check of a budget that compares with a baseline which is not there."""
    return check_not_measured(engine_budget, why, "set a first one, with `trtforge baseline set NAME FOLDER --first`")


def check_size(engine_budget: EngineBudget, gate_engines: GateEngines) -> Check:
    """The check of ``size_mib`` or ``size_compressed_mib``, which are exact."""
    sizer = SIZES[engine_budget.budget.quantity.name]
    sizes = {name: sizer(engine.path) / MIB for name, engine in gate_engines.engines.items()}
    divisor = sizes[gate_engines.baseline] if engine_budget.budget.relative else 1.0
    return check_from_interval(engine_budget, exact_interval(sizes[engine_budget.engine] / divisor), "")


def check_fallback(engine_budget: EngineBudget, gate_engines: GateEngines) -> Check:
    """The check of ``num_fallback_nodes``, which the engine itself tells.

    Raises:
        ConfigError: nobody shares the engine.
    """
    engine = gate_engines.engines[engine_budget.engine]
    runtime = backend(engine.backend)
    if not isinstance(runtime, SharingBackend):
        raise ConfigError(
            f"'{engine_budget.budget.text}': {engine.backend} runs all nodes of {engine_budget.engine} itself; leave "
            "the budget out, or name a variant of a backend that leaves some to others, such as onnxruntime_tensorrt"
        )
    number = num_fallback_nodes(runtime.providers_of(engine.path))
    return check_from_interval(engine_budget, exact_interval(number), "")


def check_tolerances(name: str, verdict: Validated) -> Check:
    """The check of what [validate] said: not a budget, but nothing ships that is out of its tolerances."""
    budget = f"outputs of {name} within [{verdict.table}]"
    sentence = f"outputs of {name} are within [{verdict.table}]"
    if verdict.failures:
        sentence = f"outputs of {name} are outside [{verdict.table}]: {'; '.join(verdict.failures)}"
    decision: Outcome = "fail" if verdict.failures else "pass"
    return Check(budget, "answers", name, 0, decision, None, None, None, None, True, False, sentence, "")


def withhold_decision(check: Check, budget: Budget, objections: Sequence[str]) -> Check:
    """The check on a machine to which there are objections: nothing that was timed is decided."""
    if not objections or budget.quantity.kind not in TIMED or check.estimate is None:
        return check
    why = "; ".join(objections)
    if UNQUIET in check.sentence:
        return replace(check, sentence=f"{check.sentence}; {why}")
    advice = f"; {check.advice}" if check.advice else ""
    sentence = f"{check.sentence}{advice}{UNQUIET}{why}"
    return replace(
        check, outcome="not decided", sentence=sentence, advice="reduce the load on this machine and gate again"
    )


def _check(
    engine_budget: EngineBudget, decision: Outcome, interval: Interval | None, sentence: str, advice: str
) -> Check:
    variant, budget = engine_budget
    estimate, low, high = (None, None, None) if interval is None else (interval.estimate, interval.low, interval.high)
    return Check(
        budget=budget.text,
        quantity=budget.quantity.name,
        variant=variant,
        batch_size=budget.batch_size,
        outcome=decision,
        estimate=finite(estimate),
        low=finite(low),
        high=finite(high),
        bound=budget.bound,
        at_most=budget.at_most,
        relative=budget.relative,
        sentence=sentence,
        advice=advice,
    )


def interval_sentence(budget: Budget, interval: Interval, decision: Outcome) -> str:
    """The numbers in words: ``p50_ms is 1.052 x the baseline's (95 % interval 1.049 to 1.056), above 1.03``."""
    unit = "x the baseline's" if budget.relative else UNITS.get(budget.quantity.name, "")
    estimate = quantity_text(budget.quantity.name, interval.estimate, budget.bound)
    value = " ".join(part for part in (estimate, unit) if part)
    bound = f"{budget.bound:.12g}"
    interval_text = ""
    if interval.low < interval.high:
        low, high = (
            number_beside(end, budget.bound) if math.isfinite(end) else "any" for end in (interval.low, interval.high)
        )
        interval_text = f" ({100 * interval.confidence:.3g} % interval {low} to {high})"
    if decision == "not decided":
        return f"{budget.subject} is {value}{interval_text}, too uncertain to say whether {budget.limit} holds"
    if decision == "fail":
        return f"{budget.subject} is {value}{interval_text}, {'above' if budget.at_most else 'below'} {bound}"
    return f"{budget.subject} is {value}{interval_text}, within {budget.limit}"


def size_bytes(engine: Path) -> int:
    """Of all files of the engine."""
    return sum(file.stat().st_size for file in files_of_engine(engine))


def compressed_bytes(engine: Path) -> int:
    """Of all files of the engine, each compressed by gzip at its highest level."""
    return sum(gzip_bytes(file) for file in files_of_engine(engine))


SIZES = {"size_mib": size_bytes, "size_compressed_mib": compressed_bytes}
"""Quantity -> what counts its bytes."""


def quantity_text(quantity: str, value: float, bound: float) -> str:
    """A measured number: a count whole, all else as ``number_beside`` has it."""
    return f"{value:.0f}" if quantity.startswith("num_") else number_beside(value, bound)


def number_beside(value: float, bound: float) -> str:
    """A number to so many digits that it does not look like the bound unless it is the bound."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    whole = math.floor(math.log10(abs(value))) + 1
    for digits in range(LEAST_DIGITS, MOST_DIGITS):
        text = f"{value:,.{max(digits - whole, 0)}f}"
        if value == bound or float(text.replace(",", "")) != bound:
            return text
    return f"{value:.{MOST_DIGITS}g}"
