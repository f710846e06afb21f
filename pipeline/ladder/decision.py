"""Which technique to use, decided by rule and said in one paragraph with the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.advice.recommendation import OtherLoad, recommend
from pipeline.gate.record import Check
from pipeline.ladder.ascent import Ascent
from pipeline.ladder.bounds import has_goal
from pipeline.ladder.row import ACCURACY, Row
from pipeline.ladder.steps import COMPRESSED
from pipeline.page.numbers import change_text, metric_text, ms_text, size_text, speedup_text
from pipeline.page.toml_text import key_text, value_text
from pipeline.plan import merged, setting_from_text
from pipeline.record import MetricInfo, Recommendation, VariantRecord
from pipeline.report.advice_table import duration
from pipeline.stats.intervals import Outcome
from pipeline.techniques import catalogue
from pipeline.techniques.record import TechniqueRow

ANSWERS = "answers"
"""The quantity of the check of [validate]'s tolerances."""
LEAST_BOUND = 1e-9
"""A bound of 0 is missed by an endless share."""

NO_PART_OF_A_VARIANT = ("advise", "report")
"""Tables of the plan that change nothing that is built."""


@dataclass(frozen=True)
class LadderNumbers:
    """All that the ladder found out, by the rows' names."""

    ascent: Ascent
    rows: Mapping[str, TechniqueRow]
    variants: Mapping[str, VariantRecord]
    metric: MetricInfo | None
    load: OtherLoad
    """What other programs took while engines were timed."""

    def fastest(self, rows: Sequence[Row]) -> Row:
        """The one with the lowest p50; where none was timed, the smallest."""
        return min(rows, key=lambda row: (self.p50_ms(row), self.variants[row.name].size_bytes))

    def p50_ms(self, row: Row) -> float:
        """The median latency; infinite where it was not timed."""
        latency = self.variants[row.name].latency_ms
        return float("inf") if latency is None else latency.p50


@dataclass(frozen=True)
class Choice:
    """What to use, and what to do if nothing holds."""

    outcome: Outcome
    row: Row | None
    sentence: str
    next_steps: tuple[str, ...]

    def toml(self) -> str:
        """What to write into the plan for it; empty where it is FP32, or nothing was chosen."""
        if self.row is None or self.row.is_plain():
            return ""
        changed = setting_from_text(f"variants.backends={json.dumps([self.row.variant.backend])}")
        table: Mapping[str, Any] = {}
        for text in self.row.plan.settings:
            table = merged(table, setting_from_text(text))
        table = {key: value for key, value in table.items() if key not in NO_PART_OF_A_VARIANT}
        return "\n".join(lines_of_table(merged(table, changed))) + "\n"

    def recommendation(self, max_metric_drop: float) -> Recommendation:
        """As every report has one."""
        if self.row is None:
            return Recommendation("undecided", "", self.sentence, max_metric_drop)
        outcome = "stay" if self.row.is_plain() else "ship"
        return Recommendation(outcome, self.row.name, self.sentence, max_metric_drop)  # type: ignore[arg-type]


def lines_of_table(table: Mapping[str, Any], name: str = "") -> list[str]:
    """A table as TOML, each value in one line, tables after values."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"[{name}]"] if name and values else []
    lines += [f"{key_text(key)} = {value_text(value)}" for key, value in values.items()]
    for key, inner in table.items():
        if isinstance(inner, Mapping):
            lines += lines_of_table(inner, f"{name}.{key_text(key)}" if name else key_text(key))
    return lines


def choose(numbers: LadderNumbers) -> Choice:
    """The first technique of the ladder that holds all bounds, on its fastest backend.

    Where no bound names a goal, what post-training quantization made is chosen among as `trtforge run` does: the
    fastest beyond doubt, else FP32.
    """
    ascent = numbers.ascent
    holding = ascent.holding()
    if not holding:
        return _nothing_holds(numbers)
    if not has_goal(ascent.bounds):
        return _by_speed(numbers, holding)
    first = [row for row in holding if row.technique is holding[0].technique]
    chosen = numbers.fastest(first)
    needless = " Nothing needs to be done for the bounds." if chosen.is_plain() else ""
    sentence = f"{_praise(numbers, chosen)}{needless}{_also(numbers, chosen, holding)}"
    return Choice("pass", chosen, sentence, _too_late(ascent))


def _by_speed(numbers: LadderNumbers, holding: Sequence[Row]) -> Choice:
    plan, metric = numbers.ascent.plan, numbers.metric
    goal = "No bound names a latency or a size, so the fastest of what holds is chosen."
    if metric is None:
        chosen = numbers.fastest(holding)
        return _with_open(numbers, chosen, f"{_praise(numbers, chosen)} {goal}")
    names = {row.name: row for row in holding}
    variants = [variant for name, variant in numbers.variants.items() if name in names]
    advised = recommend(variants, metric, plan.report.max_metric_drop, numbers.load)
    if not advised.variant:
        steps = ("set a bound on a size, which needs no latency, or run where the engines run",)
        return Choice("not decided", None, advised.sentence, steps)
    chosen = names[advised.variant]
    smallest = min(holding, key=lambda row: numbers.variants[row.name].size_bytes)
    smaller = "" if smallest is chosen else f" Where size counts: {_praise(numbers, smallest)}"
    return _with_open(numbers, chosen, f"{_praise(numbers, chosen)} {goal}{smaller}")


def _with_open(numbers: LadderNumbers, chosen: Row, sentence: str) -> Choice:
    """What was chosen for its speed, and what would be faster, if it holds, which is not decided."""
    p50_ms = numbers.p50_ms
    faster = [
        row for row in numbers.ascent.candidates() if row.outcome == "not decided" and p50_ms(row) < p50_ms(chosen)
    ]
    steps = _unique(check.advice for row in faster for check in _open(row))
    if faster:
        best = numbers.fastest(faster)
        sentence += (
            f" Not decided of what is faster: {', '.join(row.name for row in faster)}; of {best.name}, p50 "
            f"{ms_text(p50_ms(best))}: {_reasons(_open(best))}."
        )
    return Choice("pass", chosen, sentence, (*steps, *_too_late(numbers.ascent)))


def _praise(numbers: LadderNumbers, row: Row) -> str:
    """The numbers that speak for a row."""
    variant, record, metric = numbers.variants[row.name], numbers.rows[row.name], numbers.metric
    full = numbers.variants[numbers.ascent.full_of(row).name]
    facts = []
    if metric is not None and variant.metric_drop is not None:
        facts.append(f"{metric.name} {metric_text(metric, variant.metric)}")
        facts[0] += "" if row.is_plain() else f", {change_text(metric, variant.metric_drop)}"
    if variant.latency_ms is not None:
        facts.append(f"p50 {ms_text(variant.latency_ms.p50)}")
        if variant.speedup is not None and not row.is_plain():
            facts[-1] += f", {speedup_text(variant.speedup, variant.by_batch[0].speedup_interval)}"
    else:
        facts.append("not timed here")
    if row.is_plain():
        facts.append(size_text(variant.size_bytes))
        return f"Stay with {row.name}, which holds all bounds: {'; '.join(facts)}."
    facts.append(f"{size_text(variant.size_bytes)} instead of {size_text(full.size_bytes)}")
    facts.append(f"{size_text(record.compressed_bytes)} compressed")
    took = "" if record.seconds is None else f", and took {duration(record.seconds)} to make"
    needs = "no data" if row.technique.data == "none" else row.technique.data
    return f"Use {row.technique.title}: {row.name} holds all bounds ({'; '.join(facts)}). It needs {needs}{took}."


def _also(numbers: LadderNumbers, chosen: Row, holding: Sequence[Row]) -> str:
    """Other techniques that hold, where they were tried."""
    others = dict.fromkeys(row.name for row in holding if row.technique is not chosen.technique)
    fastest = numbers.fastest(holding)
    faster = "" if fastest.technique is chosen.technique else f", of which {fastest.name} is the fastest"
    return f" All bounds are also held by {', '.join(others)}{faster}." if others else ""


def _nothing_holds(numbers: LadderNumbers) -> Choice:
    rows = [row for row in numbers.ascent.candidates() if not row.is_plain()] or numbers.ascent.candidates()
    open_rows = [row for row in rows if row.outcome == "not decided"]
    if open_rows:
        best = min(open_rows, key=lambda row: len(_open(row)))
        sentence = (
            f"Not decided: {best.name} ({best.technique.title}) may hold all bounds, but {_reasons(_open(best))}."
        )
        return Choice("not decided", None, sentence, _unique(check.advice for check in _open(best)))
    if not rows:
        return Choice("fail", None, "No technique could be made for this hardware.", _ways(numbers, set()))
    nearest = min(rows, key=lambda row: _distance(row, len(numbers.ascent.bounds)))
    missed = [check for check in nearest.checks if check.outcome == "fail"]
    sentence = (
        f"No technique that was tried holds all bounds. Nearest is {nearest.name} ({nearest.technique.title}): "
        f"{_reasons(missed)}."
    )
    return Choice("fail", None, sentence, _ways(numbers, nearest.failing_quantities()))


def _distance(row: Row, num_bounds: int) -> tuple[int, float]:
    """How far a row is from so many bounds: how many it does not surely hold, and by which share one is missed at most.

    A bound that was not measured, as another was missed before, is not held; nor are the tolerances of [validate].
    """
    num_held = sum(check.outcome == "pass" and check.quantity != ANSWERS for check in row.checks)
    num_broken = sum(check.outcome == "fail" and check.quantity == ANSWERS for check in row.checks)
    missed = [check for check in row.checks if check.outcome == "fail"]
    shares = [
        abs(check.estimate - check.bound) / max(abs(check.bound), LEAST_BOUND)
        for check in missed
        if check.estimate is not None and check.bound is not None
    ]
    return num_bounds - num_held + num_broken, max(shares, default=0.0)


def _open(row: Row) -> list[Check]:
    return [check for check in row.checks if check.outcome == "not decided"]


def _reasons(checks: Sequence[Check]) -> str:
    return "; ".join(check.sentence for check in checks)


def _unique(texts: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def _too_late(ascent: Ascent) -> tuple[str, ...]:
    """What to do where techniques were left out for the minutes alone."""
    num = sum("minutes of [advise]" in rung.why for rung in ascent.rungs)
    return (f"raise [advise] minutes: {num} of {len(ascent.rungs)} techniques were not tried",) if num else ()


def _ways(numbers: LadderNumbers, missed: set[str]) -> tuple[str, ...]:
    """What to try next, by what is missed."""
    ascent = numbers.ascent
    plan = ascent.plan
    left = [rung for rung in ascent.rungs if rung.outcome == "not possible"]
    ways = [f"{rung.title} was not possible: {rung.why}" for rung in left if rung.why]
    ways += _too_late(ascent)
    if missed & set(ACCURACY):
        trained = ascent.of(catalogue.QUANTIZATION_AWARE_TRAINING)
        if trained and plan.data.tuning is None:
            ways.append(
                'train on more samples, labelled if you have labels: name them in [data.tuning], with loss = "both" in '
                "[tune]"
            )
        ways.append("calibrate on more samples, like those that the network will see")
    if any(quantity.endswith("_ms") or quantity.startswith("throughput") for quantity in missed):
        ways.append(
            "no technique here makes it fast enough on this hardware: take a smaller network, or a backend for other "
            "hardware"
        )
    if COMPRESSED in missed:
        ways.append(f"prune more than {plan.prune.share:.0%}: set [prune] share, with epochs to train meanwhile")
    if "size_mib" in missed:
        ways.append("take a smaller network: no technique makes the file on disk smaller than integers do")
    return tuple(dict.fromkeys(ways))
