"""From a budget and an interval to a check: the outcome, and the sentence that can be defended."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from calibration.file_digest import file_digest
from pipeline.artifact import Engine, external_files
from pipeline.gate.budget import Budget
from pipeline.gate.record import Check
from pipeline.json_record import finite
from pipeline.page.numbers import MIB
from pipeline.stats.intervals import Interval, Limit, Outcome, outcome

Asked: TypeAlias = tuple[str, Budget]
"""The name of an engine, and a budget that it is held to; its batch size is filled in."""

UNITS = {
    "p50_ms": "ms",
    "p90_ms": "ms",
    "p99_ms": "ms",
    "mean_ms": "ms",
    "cold_start_ms": "ms",
    "throughput_per_s": "per s",
    "size_mib": "MiB",
    "peak_memory_mib": "MiB",
    "device_memory_mib": "MiB",
    "energy_mj": "mJ",
}
"""Quantity -> the unit of its numbers; the others have none."""

TIMED = ("latency", "start", "energy")
"""Kinds of quantities that a noisy machine spoils."""

UNQUIET = "; but this machine was too unquiet to decide by: "

LEAST_DIGITS, MOST_DIGITS = 4, 12


@dataclass(frozen=True)
class Sides:
    """The engines by name, and which of them is the baseline; empty: there is none."""

    engines: Mapping[str, Engine]
    baseline: str


@dataclass(frozen=True)
class Validated:
    """What [validate] said of an engine."""

    table: str
    """Of its tolerances, such as ``validate.int8``."""
    failures: tuple[str, ...]


def exact(value: float) -> Interval:
    """What is known without doubt."""
    return Interval(value, value, value, 1.0)


def decided(one: Asked, interval: Interval, advice: str) -> Check:
    """The check of a budget by its interval.

    Args:
        one: the engine and the budget.
        interval: of the quantity, in its unit; of a relative budget, of the ratio candidate / baseline.
        advice: what would decide, or what to do; kept where it is not decided.
    """
    return told(one, (outcome(interval, Limit(one[1].bound, one[1].at_most)), interval), advice)


def told(one: Asked, found: tuple[Outcome, Interval], advice: str) -> Check:
    """The check of a budget that was decided elsewhere; as ``decided``."""
    said = said_of(one[1], found[1], found[0])
    return _check(one, found, said, advice if found[0] == "not decided" else "")


def undecided(one: Asked, why: str, advice: str) -> Check:
    """The check of a budget whose quantity could not be measured."""
    return _check(one, ("not decided", None), f"{one[1].subject} is not known: {why}", advice)


def broken(one: Asked, why: str) -> Check:
    """The check of a budget that no number could keep."""
    return _check(one, ("fail", None), f"{one[1].subject} is no number: {why}", "")


def without_baseline(one: Asked, why: str) -> Check:
    """The check of a budget that compares with a baseline which is not there."""
    return undecided(one, why, "set one, with `trtforge baseline set`")


def check_size(one: Asked, sides: Sides) -> Check:
    """The check of ``size_mib``, which is exact."""
    sizes = {name: size_bytes(engine.path) / MIB for name, engine in sides.engines.items()}
    return decided(one, exact(sizes[one[0]] / (sizes[sides.baseline] if one[1].relative else 1.0)), "")


def check_tolerances(name: str, verdict: Validated) -> Check:
    """The check of what [validate] said: not a budget, but nothing ships that is out of its tolerances."""
    budget = f"answers of {name} within [{verdict.table}]"
    said = f"answers of {name} are within [{verdict.table}]"
    if verdict.failures:
        said = f"answers of {name} are out of [{verdict.table}]: {'; '.join(verdict.failures)}"
    became: Outcome = "fail" if verdict.failures else "pass"
    return Check(budget, "answers", name, 0, became, None, None, None, None, True, False, said, "")


def unsettled(check: Check, budget: Budget, objections: Sequence[str]) -> Check:
    """The check on a machine to which there are objections: nothing that was timed is decided."""
    if not objections or budget.quantity.kind not in TIMED or check.estimate is None:
        return check
    why = "; ".join(objections)
    if UNQUIET in check.sentence:
        return replace(check, sentence=f"{check.sentence}; {why}")
    more = f"; {check.advice}" if check.advice else ""
    said = f"{check.sentence}{more}{UNQUIET}{why}"
    return replace(check, outcome="not decided", sentence=said, advice="quiet the machine and gate again")


def _check(one: Asked, found: tuple[Outcome, Interval | None], said: str, advice: str) -> Check:
    (variant, budget), (became, interval) = one, found
    estimate, low, high = (None, None, None) if interval is None else (interval.estimate, interval.low, interval.high)
    return Check(
        budget=budget.text,
        quantity=budget.quantity.name,
        variant=variant,
        batch_size=budget.batch_size,
        outcome=became,
        estimate=finite(estimate),
        low=finite(low),
        high=finite(high),
        bound=budget.bound,
        at_most=budget.at_most,
        relative=budget.relative,
        sentence=said,
        advice=advice,
    )


def said_of(budget: Budget, interval: Interval, found: Outcome) -> str:
    """The numbers in words: ``p50_ms is 1.052 x the baseline's (95 % interval 1.049 to 1.056), above 1.03``."""
    unit = "x the baseline's" if budget.relative else UNITS.get(budget.quantity.name, "")
    value = " ".join(part for part in (beside(interval.estimate, budget.bound), unit) if part)
    bound = f"{budget.bound:.12g}"
    doubt = ""
    if interval.low < interval.high:
        low, high = (
            beside(end, budget.bound) if math.isfinite(end) else "any" for end in (interval.low, interval.high)
        )
        doubt = f" ({100 * interval.confidence:.3g} % interval {low} to {high})"
    if found == "not decided":
        return f"{budget.subject} is {value}{doubt}, too uncertain to say whether {budget.limit} holds"
    if found == "fail":
        return f"{budget.subject} is {value}{doubt}, {'above' if budget.at_most else 'below'} {bound}"
    return f"{budget.subject} is {value}{doubt}, within {budget.limit}"


def files_of_engine(engine: Path) -> list[Path]:
    """The engine's file, and those that hold weights of it."""
    return [engine, *(external_files(engine) if engine.suffix == ".onnx" else [])]


def digest_of_engine(engine: Path) -> str:
    """SHA-256 (hex) of the engine's file, as `sha256sum` prints it; of all their digests where there are several."""
    digests = [file_digest(file).hex() for file in files_of_engine(engine)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def size_bytes(engine: Path) -> int:
    """Of all files of the engine."""
    return sum(file.stat().st_size for file in files_of_engine(engine))


def beside(value: float, bound: float) -> str:
    """A number to so many digits that it does not look like the bound unless it is the bound."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    whole = math.floor(math.log10(abs(value))) + 1
    for digits in range(LEAST_DIGITS, MOST_DIGITS):
        text = f"{value:,.{max(digits - whole, 0)}f}"
        if value == bound or float(text.replace(",", "")) != bound:
            return text
    return f"{value:.{MOST_DIGITS}g}"
