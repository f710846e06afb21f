"""What a gate is about, from a plan that was run, or from engines on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.data.batches import Samples, input_specs_from_onnx
from calibration.data.input_specs import shape_words
from calibration.data.source import DYNAMIC
from engines import backend
from pipeline.advice.precision_steps import steps_from
from pipeline.advice.recommendation import recommend
from pipeline.artifact import Engine, Outputs
from pipeline.errors import ConfigError, Unavailable
from pipeline.gate.accuracy import Answers, check_meaning
from pipeline.gate.baseline import Baseline, baseline_named, baselines_in, is_variant_name
from pipeline.gate.budget import budgets_from_texts
from pipeline.gate.case import Case, Known, asked_from, check_budgets
from pipeline.gate.checks import Validated
from pipeline.plan import Plan
from pipeline.record import MetricInfo, PlanInfo
from pipeline.report.write import variant_record
from pipeline.results import variant_named
from pipeline.spelling import nearest
from pipeline.stages.benchmark import timings_from
from pipeline.stages.gate import Gate
from pipeline.stages.infer import Infer
from pipeline.stages.validate import Judge
from pipeline.store import Store

if TYPE_CHECKING:
    from pipeline.results import Results


def check_gate(plan: Plan, store: Path) -> None:
    """What is bound to fail fails before an hour of building.

    Raises:
        ConfigError: there is no budget, one is wrong, or the candidate or the baseline is not one of the plan's.
        DataError: the baseline is damaged.
        Unavailable: the candidate cannot run on this machine.
    """
    from pipeline.variants import variants

    budgets = budgets_from_texts(plan.gate.budgets, f"{plan.path}: [gate] budgets")
    names = [variant.name for variant in variants(plan, "gate")]
    candidate = candidate_of(plan, names)
    asked_from(budgets, candidate, plan.benchmark.batch_sizes[0])
    used = {candidate, *(budget.variant for budget in budgets if budget.variant)}
    if is_variant_name(plan.gate.baseline):
        if plan.gate.baseline not in names:
            raise ConfigError(
                f"{plan.path}: [gate] baseline: there is no variant '{plan.gate.baseline}'"
                f"{nearest(plan.gate.baseline, names)}"
            )
        used.add(plan.gate.baseline)
    elif plan.gate.baseline:
        baseline_named(plan.gate.baseline, store)
    check_budgets(budgets, names, has_baseline=bool(plan.gate.baseline))
    judge = Judge(plan.data.metric, plan.data.output, plan.folder)
    for budget in budgets:
        check_meaning(budget, judge, has_reference=True)
    for name in sorted(used):
        if reason := backend(variant_named(name).backend).why_not_run():
            raise Unavailable(f"{name}: cannot be gated where it cannot run: {reason}")


def can_run(name: str) -> bool:
    """Whether engines of that backend run on this machine."""
    return not backend(name).why_not_run()


def candidate_of(plan: Plan, names: list[str]) -> str:
    """The variant that is to ship: the one that was named, or the only one of a reduced precision, or the only one.

    Raises:
        ConfigError: it is not one of the plan's, or there are several and none was named.
    """
    named = plan.gate.candidate
    if named:
        if named not in names:
            raise ConfigError(f"{plan.path}: [gate] candidate: there is no variant '{named}'{nearest(named, names)}")
        return named
    reduced = [name for name in names if not variant_named(name).precision.is_full] or names
    if len(reduced) > 1:
        raise ConfigError(
            f"{plan.path}: [gate] candidate: {', '.join(reduced)} could ship, a gate judges one; write "
            f'candidate = "{reduced[-1]}", or give --candidate'
        )
    return reduced[0]


def case_from_plan(plan: Plan, store: Store, made: Results) -> Case:
    """What the gate of a plan is about, after its run."""
    names = [variant.name for variant in made.engines]
    candidate = candidate_of(plan, names)
    engines = {variant.name: engine for variant, engine in made.engines.items() if can_run(variant.backend)}
    answers = {variant.name: outputs for variant, outputs in made.outputs.items() if variant.name in engines}
    known, why = _baseline_of(plan, store.folder, engines)
    check_one_network(engines[candidate], known)
    before = None if known is None else answers.get(known.name)
    if known is not None and before is None:
        before = store.run(plan.infer, known.engine, made.evaluation)
    verdicts = {
        variant.name: Validated(f"validate.{variant.precision.name}", tuple(verdict.read()["failures"]))
        for variant, verdict in made.verdicts.items()
    }
    judge = Judge(plan.data.metric, plan.data.output, plan.folder)
    case = Case(
        candidate=candidate,
        engines=engines,
        baseline=known,
        no_baseline=why,
        answers=Answers(answers, made.reference, before, judge, made.evaluation),
        samples=made.evaluation,
        benchmark=plan.benchmark,
        verdicts=verdicts,
        metric=metric_info(judge),
        plan=PlanInfo(str(plan.path), plan.digest()),
        notes=tuple(made.notes),
    )
    if made.timings is None:
        return case
    timings = timings_from(made.timings)
    variants = tuple(variant_record(made, built, timings) for built in made.engines)
    advised = recommend(variants, metric_info(judge), plan.report.max_metric_drop)
    return replace(case, steps=steps_from(variants, timings), advice=advised.sentence)


def _baseline_of(plan: Plan, store: Path, engines: Mapping[str, Engine]) -> tuple[Known | None, str]:
    name = plan.gate.baseline
    if not name:
        return None, ""
    if is_variant_name(name):
        return Known(name, engines[name]), ""
    return known_from(baseline_named(name, store), name, store)


def known_from(found: Baseline | None, name: str, store: Path) -> tuple[Known | None, str]:
    """A kept baseline to measure beside the candidate, or why there is none."""
    if found is None:
        kept = ", ".join(one for one, _ in baselines_in(store))
        return None, f"no baseline '{name}' is kept in {store}{f', only {kept}' if kept else ' yet'}"
    record = found.record
    p50_ms = {one.batch_size: one.percentiles[0].candidate_ms.estimate for one in record.measured}
    return Known(name, found.engine, record.set_on, record.evaluation_digest, p50_ms), ""


def check_one_network(candidate: Engine, known: Known | None) -> None:
    """That candidate and baseline take the same inputs, as far as their files say so without being loaded.

    Raises:
        ConfigError: they do not.
        ModelError: a file is damaged.
    """
    if known is None or not candidate.path.suffix == known.engine.path.suffix == ".onnx":
        return
    ours, theirs = ({one.name: one for one in input_specs_from_onnx(e.path)} for e in (candidate, known.engine))
    if set(ours) != set(theirs) or not all(_fit(ours[name].shape[1:], theirs[name].shape[1:]) for name in ours):
        said = [", ".join(f"'{spec.name}' {shape_words(spec)}" for spec in one.values()) for one in (ours, theirs)]
        raise ConfigError(
            f"baseline '{known.name}': takes {said[1]}, the candidate takes {said[0]}; hold an engine to one of its "
            "own network"
        )


def _fit(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one array can have both shapes."""
    return len(shape) == len(other) and all(a == b or DYNAMIC in (a, b) for a, b in zip(shape, other))


@dataclass(frozen=True)
class Direct:
    """Engines that are gated without a plan; names are those of their files."""

    candidate: Engine
    baseline: Known | None
    no_baseline: str
    reference: Engine | None
    """The FP32 model to compare answers with."""
    samples: Samples
    judge: Judge
    num_threads: int


def case_from_engines(out: Path, direct: Direct, gate: Gate) -> Case:
    """What a gate of engines is about; each answers the samples in a process of its own, if budgets ask for it."""
    from pipeline.stages.benchmark import Benchmark

    budgets = budgets_from_texts(gate.budgets, "--budget")
    check_one_network(direct.candidate, direct.baseline)
    check_budgets(budgets, [direct.candidate.path.name], has_baseline=bool(direct.baseline or direct.no_baseline))
    for budget in budgets:
        check_meaning(budget, direct.judge, has_reference=direct.reference is not None)
    asked = [budget for budget in budgets if budget.quantity.kind == "accuracy"]
    infer = Infer(num_threads=direct.num_threads)

    def answered(which: str, engine: Engine | None) -> Outputs | None:
        if engine is None or not asked:
            return None
        (out / which).mkdir()
        return infer(out / which, engine, direct.samples)

    name = direct.candidate.path.name
    ours = answered("candidate", direct.candidate)
    theirs = answered("reference", direct.reference)
    before = answered("baseline", direct.baseline.engine if direct.baseline else None)
    found = {} if ours is None else {name: ours}
    return Case(
        candidate=name,
        engines={name: direct.candidate},
        baseline=direct.baseline,
        no_baseline=direct.no_baseline,
        answers=Answers(found, theirs, before, direct.judge, direct.samples),
        samples=direct.samples,
        benchmark=Benchmark(num_threads=direct.num_threads),
        verdicts={},
        metric=metric_info(direct.judge),
        plan=None,
    )


def metric_info(judge: Judge) -> MetricInfo | None:
    """What the record says of the metric."""
    if not judge.name:
        return None
    found = judge.metric()
    return MetricInfo(found.name, found.unit, found.higher_is_better, None)
