"""Hold a row to the bounds of ``[advise]``, as the gate holds an engine to its budgets, beside FP32 on its backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.errors import ConfigError
from pipeline.gate.accuracy import EvaluationOutputs, check_meaning
from pipeline.gate.budget import Budget, budgets_from_texts
from pipeline.gate.checks import EngineBudget, Validated, check_not_measured
from pipeline.gate.decide import decide
from pipeline.gate.gather_inputs import metric_info
from pipeline.gate.inputs import BaselineEngine, GateInputs
from pipeline.gate.record import Check
from pipeline.ladder.row import ACCURACY, Row
from pipeline.plan import Plan
from pipeline.record import PlanInfo
from pipeline.variants import is_reference, judge_of

KNOWN_AT_ONCE = ("accuracy", "size")
"""Kinds of quantities that need no measurement."""
GOALS = ("latency", "start", "size", "memory", "energy")
"""Kinds of quantities that a technique is taken for; a bound on accuracy says what it may cost."""


def bounds_of(plan: Plan) -> tuple[tuple[Budget, ...], list[str]]:
    """The plan's bounds, and sentences on what was added to them.

    Raises:
        ConfigError: one is no bound, names a variant, means nothing here, or nothing bounds the loss of accuracy.
    """
    where, judge = f"{plan.path}: [advise] bounds", judge_of(plan)
    bounds = budgets_from_texts(plan.advise.bounds, where) if plan.advise.bounds else ()
    notes = []
    for bound in bounds:
        if bound.variant or bound.versus_baseline:
            raise ConfigError(
                f"{where}: '{bound.text}': each bound is held by every variant beside FP32; leave out 'of' and 'from'"
            )
        check_meaning(bound, judge, has_reference=True)
    if not any(bound.quantity.kind == "accuracy" for bound in bounds):
        if not judge.name:
            raise ConfigError(
                f"{where}: nothing bounds what a technique may cost, and the plan names no metric; name one in [data] "
                "metric, or write a bound such as 'agreement >= 0.98'"
            )
        text = f"metric_drop <= {plan.report.max_metric_drop:.12g}"
        bounds = (*bounds, *budgets_from_texts([text], where))
        notes.append(f"[advise] bounds has none on accuracy, so {text} was taken, as [report] max_metric_drop says.")
    return bounds, notes


def has_goal(bounds: Sequence[Budget]) -> bool:
    """Whether a technique is to reach something, beside what it may not lose."""
    return any(bound.quantity.kind in GOALS for bound in bounds)


def held(row: Row, full: Row, bounds: Sequence[Budget]) -> Row:
    """The row with the checks of all bounds; ``full`` is FP32 on its backend.

    What is known at once is decided first; where that is missed already, nothing is timed.
    """
    at_once = [bound for bound in bounds if bound.quantity.kind in KNOWN_AT_ONCE]
    measured = [bound for bound in bounds if bound.quantity.kind not in KNOWN_AT_ONCE]
    if is_reference(row.plan, row.variant):  # What all answers are compared with, to be judged by its metric alone.
        at_once = [bound for bound in at_once if not bound.quantity.compares]
    checks = list(_decided(row, full, at_once)) if at_once else []
    is_missed = any(check.outcome == "fail" for check in checks)
    if measured and not is_missed:
        checks += _not_here(row, full, measured) or _timed(row, full, measured)
    return replace(row, checks=tuple(checks))


def _timed(row: Row, full: Row, measured: Sequence[Budget]) -> list[Check]:
    return [check for check in _decided(row, full, measured) if check.quantity not in ACCURACY]


def _not_here(row: Row, full: Row, measured: Sequence[Budget]) -> list[Check]:
    """The checks of what cannot be measured on this machine; none where it can."""
    if not (reason := row.why_not_run() or full.why_not_run()):
        return []
    what_to_do = "run `trtforge advise` where it runs"
    return [check_not_measured(EngineBudget(row.name, bound), reason, what_to_do) for bound in measured]


def _decided(row: Row, full: Row, bounds: Sequence[Budget]) -> tuple[Check, ...]:
    plan, results, judge = row.plan, row.results, judge_of(row.plan)
    verdict = results.verdicts[row.variant].read()
    inputs = GateInputs(
        candidate=row.name,
        engines={row.name: row.engine},
        baseline=BaselineEngine(full.name, full.engine),
        no_baseline="",
        outputs=EvaluationOutputs(
            {row.name: results.outputs[row.variant]},
            results.reference,
            full.results.outputs[full.variant],
            judge,
            results.evaluation,
        ),
        samples=results.evaluation,
        benchmark=plan.benchmark,
        verdicts={row.name: Validated(f"validate.{row.variant.precision.name}", tuple(verdict["failures"]))},
        metric=metric_info(judge),
        plan=PlanInfo(str(plan.path), plan.digest()),
    )
    with TemporaryDirectory(prefix="trtforge-") as folder:
        return decide(plan.gate, Path(folder), inputs, bounds).checks
