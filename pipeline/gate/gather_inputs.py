"""What a gate is about, from a plan that was run, or from engines on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.data.batches import Samples, input_specs_from_onnx
from calibration.data.input_specs import shape_words
from calibration.data.source import DYNAMIC
from engines import backend
from pipeline.advice.precision_steps import steps_from
from pipeline.advice.recommendation import recommend
from pipeline.artifact import Engine, Outputs
from pipeline.errors import ConfigError, NotDecided, Unavailable
from pipeline.gate.accuracy import EvaluationOutputs, check_meaning
from pipeline.gate.baseline import baseline_named, is_variant_name
from pipeline.gate.budget import budgets_from_texts
from pipeline.gate.checks import Validated
from pipeline.gate.generations import names_in
from pipeline.gate.inputs import BaselineEngine, GateInputs, check_budgets, engine_budgets
from pipeline.plan import Plan
from pipeline.record import MetricInfo, PlanInfo
from pipeline.report.write import variant_record
from pipeline.results import Results, variant_named
from pipeline.spelling import nearest, some_of
from pipeline.stages.benchmark import Benchmark, timings_from
from pipeline.stages.gate import Gate
from pipeline.stages.infer import Infer
from pipeline.stages.validate import Judge
from pipeline.store import Store
from pipeline.variants import variants

BASELINES_NAMED = 5
"""In the sentence on one that is not there, which a night of a thousand new plans says a thousand times."""


def check_gate(plan: Plan, store: Path) -> None:
    """What is bound to fail fails before an hour of building.

    Raises:
        ConfigError: there is no budget, one is wrong, or the candidate or the baseline is not one of the plan's.
        DataError: the baseline is damaged.
        Unavailable: the candidate cannot run on this machine.
    """
    used = check_gate_elsewhere(plan)
    if plan.gate.baseline and not is_variant_name(plan.gate.baseline):
        baseline_engine(plan.gate.baseline, store)
    for name in sorted(used):
        if reason := backend(variant_named(name).backend).why_not_run():
            raise Unavailable(f"{name}: cannot be gated where it cannot run: {reason}")


def check_gate_elsewhere(plan: Plan) -> set[str]:
    """What of a gate is bound to fail on whatever machine it is held.

    Returns:
        The names of the variants that have to run for it.

    Raises:
        ConfigError: there is no budget, one is wrong, or the candidate or the baseline is not one of the plan's.
    """
    budgets = budgets_from_texts(plan.gate.budgets, f"{plan.path}: [gate] budgets")
    names = [variant.name for variant in variants(plan, "gate")]
    candidate = candidate_of(plan, names)
    engine_budgets(budgets, candidate, plan.benchmark.batch_sizes[0])
    used = {candidate, *(budget.variant for budget in budgets if budget.variant)}
    if is_variant_name(plan.gate.baseline):
        if plan.gate.baseline not in names:
            raise ConfigError(
                f"{plan.path}: [gate] baseline: there is no variant '{plan.gate.baseline}'"
                f"{nearest(plan.gate.baseline, names)}"
            )
        used.add(plan.gate.baseline)
    check_budgets(budgets, names, has_baseline=bool(plan.gate.baseline))
    judge = Judge(plan.data.metric, plan.data.output, plan.folder, plan.data.detector)
    for budget in budgets:
        check_meaning(budget, judge, has_reference=True)
    return used


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
            f"{plan.path}: [gate] candidate: {', '.join(reduced)} could ship, but a gate checks one; write "
            f'candidate = "{reduced[-1]}", or give --candidate'
        )
    return reduced[0]


def inputs_from_plan(plan: Plan, store: Store, results: Results) -> GateInputs:
    """What the gate of a plan is about, after its run."""
    names = [variant.name for variant in results.engines]
    candidate = candidate_of(plan, names)
    engines = {variant.name: engine for variant, engine in results.engines.items() if can_run(variant.backend)}
    outputs = {variant.name: saved for variant, saved in results.outputs.items() if variant.name in engines}
    baseline, no_baseline = _baseline_of(plan, store.folder, engines)
    check_one_network(engines[candidate], baseline)
    baseline_outputs = None if baseline is None else outputs.get(baseline.name)
    if baseline is not None and baseline_outputs is None:
        baseline_outputs = store.run(plan.infer, baseline.engine, results.evaluation)
    verdicts = {
        variant.name: Validated(f"validate.{variant.precision.name}", tuple(verdict.read()["failures"]))
        for variant, verdict in results.verdicts.items()
    }
    judge = Judge(plan.data.metric, plan.data.output, plan.folder, plan.data.detector)
    inputs = GateInputs(
        candidate=candidate,
        engines=engines,
        baseline=baseline,
        no_baseline=no_baseline,
        outputs=EvaluationOutputs(outputs, results.reference, baseline_outputs, judge, results.evaluation),
        samples=results.evaluation,
        benchmark=plan.benchmark,
        verdicts=verdicts,
        metric=metric_info(judge),
        plan=PlanInfo(str(plan.path), plan.digest()),
        notes=tuple(results.notes),
    )
    if results.timings is None:
        return inputs
    timings = timings_from(results.timings)
    variants = tuple(variant_record(results, built, timings) for built in results.engines)
    advised = recommend(variants, metric_info(judge), plan.report.max_metric_drop)
    return replace(inputs, steps=steps_from(variants, timings), advice=advised.sentence)


def _baseline_of(plan: Plan, store: Path, engines: Mapping[str, Engine]) -> tuple[BaselineEngine | None, str]:
    name = plan.gate.baseline
    if not name:
        return None, ""
    if is_variant_name(name):
        return BaselineEngine(name, engines[name]), ""
    return baseline_engine(name, store)


def baseline_engine(name: str, store: Path) -> tuple[BaselineEngine | None, str]:
    """A kept baseline to measure beside the candidate, or why there is none.

    Raises:
        ConfigError: it was measured on another machine.
        DataError: it is damaged.
    """
    try:
        baseline = baseline_named(name, store)
    except NotDecided as upgraded:
        return None, str(upgraded).partition(";")[0]
    if baseline is None:
        stored_names = some_of(names_in(store), BASELINES_NAMED)
        return None, f"no baseline '{name}' is kept in {store}{f', only {stored_names}' if stored_names else ' yet'}"
    record = baseline.record
    p50_ms = {measured.batch_size: measured.percentiles[0].candidate_ms.estimate for measured in record.measured}
    return BaselineEngine(name, baseline.engine, record.set_on, record.evaluation_digest, p50_ms), ""


def check_one_network(candidate: Engine, baseline: BaselineEngine | None) -> None:
    """That candidate and baseline take the same inputs, as far as their files say so without being loaded.

    Raises:
        ConfigError: they do not.
        ModelError: a file is damaged.
    """
    if baseline is None or not (candidate.is_onnx and baseline.engine.is_onnx):
        return
    inputs = [{spec.name: spec for spec in input_specs_from_onnx(e.path)} for e in (candidate, baseline.engine)]
    ours, theirs = inputs
    if set(ours) != set(theirs) or not all(_fit(ours[name].shape[1:], theirs[name].shape[1:]) for name in ours):
        shapes = [", ".join(f"'{spec.name}' {shape_words(spec)}" for spec in specs.values()) for specs in inputs]
        raise ConfigError(
            f"baseline '{baseline.name}': takes {shapes[1]}, the candidate takes {shapes[0]}; compare engines of "
            "one network"
        )


def _fit(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one array can have both shapes."""
    return len(shape) == len(other) and all(a == b or DYNAMIC in (a, b) for a, b in zip(shape, other))


@dataclass(frozen=True)
class DirectInputs:
    """Engines that are gated without a plan; names are those of their files."""

    candidate: Engine
    baseline: BaselineEngine | None
    no_baseline: str
    reference: Engine | None
    """The FP32 model to compare answers with."""
    samples: Samples
    judge: Judge
    num_threads: int


def inputs_from_engines(out: Path, direct: DirectInputs, gate: Gate) -> GateInputs:
    """What a gate of engines is about; each answers the samples in a process of its own, if budgets ask for it."""
    budgets = budgets_from_texts(gate.budgets, "--budget")
    check_one_network(direct.candidate, direct.baseline)
    check_budgets(budgets, [direct.candidate.path.name], has_baseline=bool(direct.baseline or direct.no_baseline))
    for budget in budgets:
        check_meaning(budget, direct.judge, has_reference=direct.reference is not None)
    accuracy_budgets = [budget for budget in budgets if budget.quantity.kind == "accuracy"]
    infer = Infer(num_threads=direct.num_threads)

    def infer_samples(which: str, engine: Engine | None) -> Outputs | None:
        if engine is None or not accuracy_budgets:
            return None
        (out / which).mkdir()
        return infer(out / which, engine, direct.samples)

    name = direct.candidate.path.name
    candidate = infer_samples("candidate", direct.candidate)
    reference = infer_samples("reference", direct.reference)
    baseline = infer_samples("baseline", direct.baseline.engine if direct.baseline else None)
    outputs = {} if candidate is None else {name: candidate}
    return GateInputs(
        candidate=name,
        engines={name: direct.candidate},
        baseline=direct.baseline,
        no_baseline=direct.no_baseline,
        outputs=EvaluationOutputs(outputs, reference, baseline, direct.judge, direct.samples),
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
    metric = judge.metric()
    return MetricInfo(metric.name, metric.unit, metric.higher_is_better, None)
