"""Go up the ladder: each technique is made as a plan of its own would make it, and held to the bounds."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from pipeline.errors import CheckFailed, ConfigError, DataError, EngineError, ModelError, StageError
from pipeline.flow import run
from pipeline.gate.decide import worst
from pipeline.ladder.ascent import Ascent
from pipeline.ladder.bounds import bounds_of, has_goal, held
from pipeline.ladder.hardware import check_hardware, hardware_settings, suited_backends, suits, why_unsuited
from pipeline.ladder.row import Row
from pipeline.ladder.steps import STEPS, TechniqueStep
from pipeline.plan import Plan
from pipeline.results import Variant
from pipeline.stats.intervals import Outcome
from pipeline.store import Entry, Store
from pipeline.techniques.record import Rung, RungOutcome

log = logging.getLogger(__name__)

JUDGING = ("infer", "validate", "tolerate", "benchmark")
"""Stages that say what a variant is worth; their time is not counted as making it."""
ONLY_THIS = (CheckFailed, ConfigError, DataError, StageError, ModelError, EngineError)
"""Errors by which one technique is not possible, while others may be; a machine that lacks something ends the run."""
OUTCOMES: dict[Outcome, RungOutcome] = {"pass": "holds", "not decided": "not decided", "fail": "does not hold"}
BEST_FIRST: tuple[Outcome, ...] = ("pass", "not decided", "fail")
SECONDS_PER_MINUTE = 60.0


def climb(plan: Plan, store: Store, *, everything: bool) -> Ascent:
    """Try the techniques in their order until one holds all bounds; with ``everything`` go on to the end.

    Where no bound names a goal (a latency, a size), all of post-training quantization is tried, and what comes after it
    until integers hold the bounds.

    Raises:
        ConfigError, DataError, Unavailable: as a run of the plan does, before any technique is tried; or a bound is
            none, or no backend of the plan suits the hardware.
        StageError, ModelError, EngineError, CheckFailed: the network in FP32 already fails.
    """
    bounds, notes = bounds_of(plan)
    ascent = Ascent(plan, bounds, notes=notes)
    check_hardware(plan, [step.precisions for step in _steps_of(plan)[1:]])
    started = time.monotonic()
    for step in _steps_of(plan):
        spent = (time.monotonic() - started) / SECONDS_PER_MINUTE
        reason, outcome = _why_left_out(ascent, step, everything=everything, minutes=spent)
        backends = () if reason else suited_backends(plan, step.backends(plan))
        if not reason and not backends:
            first = suited_backends(plan, plan.variants.backends)[0]
            outcome, reason = "not possible", step.why_not_for(plan, first)
        if reason:
            ascent.rungs.append(_rung(step, (), outcome, reason))
            continue
        log.info("%s", step.technique.title)
        _take(ascent, store, step, (*step.settings(ascent, backends), *hardware_settings(plan, step.precisions)))
    return ascent


def _steps_of(plan: Plan) -> list[TechniqueStep]:
    """Those that the plan names, and FP32, which all are compared with."""
    names = plan.advise.techniques
    return [step for number, step in enumerate(STEPS) if not number or not names or step.technique.name in names]


def _why_left_out(ascent: Ascent, step: TechniqueStep, *, everything: bool, minutes: float) -> tuple[str, RungOutcome]:
    """Why a step is not taken, empty if it is; and what that makes of its rung."""
    if not ascent.rows:
        return "", "not tried"
    if reason := step.why_not(ascent) or why_unsuited(ascent.plan, step.precisions):
        return reason, "not possible"
    reason = "" if everything else _why_needless(ascent, step)
    if not reason and minutes > ascent.plan.advise.minutes:
        reason = f"the {ascent.plan.advise.minutes:g} minutes of [advise] were spent"
    return reason, "not tried"


def _why_needless(ascent: Ascent, step: TechniqueStep) -> str:
    holder = _holder(ascent, step)
    return f"{holder.technique.title} holds all bounds" if holder else step.why_idle(ascent)


def _holder(ascent: Ascent, step: TechniqueStep) -> Row | None:
    """What makes a step needless: a row that holds all bounds.

    Without a goal FP32 itself holds them. Then all of post-training quantization is tried, and what comes after it
    until integers hold them.
    """
    holding = ascent.holding()
    if has_goal(ascent.bounds):
        return holding[0] if holding else None
    if step.technique.group == "post-training":
        return None
    return next((row for row in holding if row.variant.precision.has_scales), None)


def _take(ascent: Ascent, store: Store, step: TechniqueStep, settings: tuple[str, ...]) -> None:
    """Make what a step makes, and hold it to the bounds."""
    first = len(store.account)
    try:
        plan = ascent.plan.changed(settings)
        results = run(plan, store, "validate")
    except ONLY_THIS as error:
        if not ascent.rows:
            raise
        ascent.rungs.append(_rung(step, settings, "not possible", str(error)))
        return
    entries = [entry for entry in store.account[first:] if entry.digest not in ascent.base]
    made = [
        Row(step.technique, step.name_of(variant), variant, plan, results, seconds_of(entries, variant))
        for variant in results.engines
        if step.makes(variant)
    ]
    if not ascent.rows:
        ascent.base = frozenset(entry.digest for entry in entries)
    full = {row.variant.backend: row for row in (*made, *ascent.rows) if row.is_plain()}
    judged = [held(row, full[row.variant.backend], ascent.bounds) for row in made]
    ascent.rows += judged
    fitting = [row.outcome for row in judged if suits(ascent.plan, row.variant)]
    best = next((outcome for outcome in BEST_FIRST if outcome in fitting), worst([row.outcome for row in judged]))
    ascent.rungs.append(_rung(step, settings, OUTCOMES[best], ""))


def _rung(step: TechniqueStep, settings: tuple[str, ...], outcome: RungOutcome, why: str) -> Rung:
    technique = step.technique
    return Rung(
        technique=technique.name,
        title=technique.title,
        data=technique.data,
        claim=technique.claim,
        hardware=technique.hardware,
        settings=settings,
        outcome=outcome,
        why=why,
    )


def seconds_of(entries: Sequence[Entry], variant: Variant) -> float | None:
    """What making a variant took, of the account of its rung: what is its own, and what all of the rung share.

    Stages that judge are left out; None where the time of one is not known.
    """
    ours = [e for e in entries if e.stage not in JUDGING and e.variant in ("", variant.name)]
    seconds = {entry.digest: entry.made_seconds for entry in ours}
    return None if None in seconds.values() else sum(value or 0.0 for value in seconds.values())
