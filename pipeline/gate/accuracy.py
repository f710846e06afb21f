"""The budgets of a gate about answers: metric, its drop, and agreement, judged as a sample of what is to come.

The evaluation samples stand for others like them, so each number has an interval. Where [gate] sampled is false they
stand for themselves alone, and the number is what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from engines.contract import Array
from pipeline.accuracy.comparison import read_outputs
from pipeline.accuracy.metric_intervals import (
    Drop,
    Sampling,
    agreement_interval,
    grown_drop,
    grown_metric,
    grown_share,
    metric_drop,
    metric_interval,
    samples_needed,
)
from pipeline.artifact import Outputs
from pipeline.errors import ConfigError
from pipeline.gate.budget import Budget
from pipeline.gate.checks import EngineBudget, check_from_interval, check_not_finite, exact_interval, number_beside
from pipeline.gate.record import Accuracy, Check
from pipeline.json_record import finite
from pipeline.stages.validate import Judge, Labelled, agreement, same_arg_max
from pipeline.stats.intervals import Interval, Limit, outcome

ALONE = "consider these samples only with sampled = false"


@dataclass(frozen=True)
class EvaluationOutputs:
    """What engines answered on the evaluation samples, and how answers are judged."""

    engines: Mapping[str, Outputs]
    reference: Outputs | None
    """FP32's; None where engines are gated directly without one."""
    baseline: Outputs | None
    judge: Judge
    labelled: Labelled


@dataclass(frozen=True)
class IntervalPolicy:
    """How sure a number about answers must be."""

    confidence: float
    sampled: bool

    @property
    def sampling(self) -> Sampling:
        """For ``pipeline.accuracy.metric_intervals``."""
        return Sampling(self.confidence)

    def of(self, interval: Interval) -> Interval:
        """The interval, or where samples stand for themselves alone, what was found."""
        return interval if self.sampled else exact_interval(interval.estimate)


def accuracy_of(outputs: EvaluationOutputs, name: str) -> Accuracy:
    """The numbers of one engine."""
    candidate = read_outputs(outputs.engines[name].path)
    reference, baseline = (
        None if saved is None else read_outputs(saved.path) for saved in (outputs.reference, outputs.baseline)
    )
    metric, reference_metric, baseline_metric = (
        None if arrays is None or not outputs.judge.name else finite(outputs.judge(arrays, outputs.labelled))
        for arrays in (candidate, reference, baseline)
    )
    return Accuracy(
        variant=name,
        metric=metric,
        reference_metric=reference_metric,
        baseline_metric=baseline_metric,
        agreement=None if reference is None else agreement(candidate, reference, outputs.judge.output),
    )


def check_accuracy(outputs: EvaluationOutputs, policy: IntervalPolicy, engine_budget: EngineBudget) -> Check:
    """The check of one budget about answers.

    Raises:
        ConfigError: the budget means nothing here: there is no metric, its direction is another, or there is nothing
            to compare with.
    """
    name, budget = engine_budget
    other = outputs.baseline if budget.versus_baseline else outputs.reference
    candidate = read_outputs(outputs.engines[name].path)
    num = len(next(iter(candidate.values())))
    check_meaning(budget, outputs.judge, has_reference=outputs.reference is not None)
    if budget.quantity.name == "metric":
        metric = outputs.judge.metric()
        interval = metric_interval(metric, candidate, _labels(outputs), policy.sampling)
        grown = grown_metric(metric, interval, num)
        check = _check_with_sample_size(engine_budget, policy.of(interval), grown, num)
        return _advise_on_data(check, outputs, budget) if check.outcome == "fail" else check
    assert other is not None, "check_meaning refuses it"
    reference = read_outputs(other.path)
    lists = outputs.judge.metric().lists(reference) if outputs.judge.name else ()
    others = ({n: array for n, array in arrays.items() if n not in lists} for arrays in (candidate, reference))
    _check_same_shapes(budget, *others)
    if budget.quantity.name == "metric_drop":
        drop = metric_drop(outputs.judge.metric(), candidate, reference, _labels(outputs), policy.sampling)
        check = _check_with_sample_size(engine_budget, policy.of(drop.interval), grown_drop(drop, num), num)
        return _advise_bisection(_with_mcnemar(check, drop), budget)
    same = same_arg_max(candidate, reference, outputs.judge.output)
    if same is None:
        raise ConfigError(
            f"'{budget.text}': the model's output is not class scores (N, classes), so there is no arg max to "
            "compare; leave it out, or name [data] output"
        )
    interval = agreement_interval(same, policy.sampling)
    check = _check_with_sample_size(engine_budget, policy.of(interval), grown_share(interval), num)
    return _advise_bisection(check, budget)


def _check_with_sample_size(
    engine_budget: EngineBudget, interval: Interval, grown: Callable[[int], Interval], num_samples: int
) -> Check:
    """The check; where it is not decided, with how many samples would do.

    Args:
        engine_budget: the engine and the budget.
        interval: of the quantity.
        grown: the interval from any number of samples (``samples_needed``).
        num_samples: how many there are.
    """
    if math.isnan(interval.estimate):
        return check_not_finite(engine_budget, "the outputs contain NaN, which meets no bound")
    limit = Limit(engine_budget.budget.bound, engine_budget.budget.at_most)
    if math.isnan(interval.low) or outcome(interval, limit) != "not decided":
        return check_from_interval(engine_budget, interval, f"give more evaluation samples; or {ALONE}")
    needed = samples_needed(grown, num_samples, limit)
    if math.isinf(needed):
        advice = f"it is on the bound, or too close to it to be distinguished; {ALONE}"
        return check_from_interval(engine_budget, interval, advice)
    unit = 10 ** max(math.floor(math.log10(needed)) - 1, 0)
    about = math.ceil(needed / unit) * unit
    advice = f"about {about:,} evaluation samples such as these {num_samples:,} would decide; or {ALONE}"
    return check_from_interval(engine_budget, interval, advice)


def _labels(outputs: EvaluationOutputs) -> Array | None:
    return outputs.labelled.labels() if outputs.judge.metric().needs_labels else None


def _with_mcnemar(check: Check, drop: Drop) -> Check:
    """The check of a drop, with the exact test beside it where samples are right or wrong."""
    if drop.p_value is None:
        return check
    test = (
        f"; of the samples on which one alone is right, {drop.num_only_reference} are the other's and "
        f"{drop.num_only_candidate} its own (McNemar's exact p {drop.p_value:.2g})"
    )
    return replace(check, sentence=check.sentence + test)


def _advise_bisection(check: Check, budget: Budget) -> Check:
    """The check; where answers are too far from FP32's, with what finds out where."""
    if check.outcome != "fail" or budget.versus_baseline:
        return check
    return replace(check, advice="`trtforge bisect` names the layer at which its model goes wrong")


def _advise_on_data(check: Check, outputs: EvaluationOutputs, budget: Budget) -> Check:
    """The check of a metric that is out of bounds; where it is so without this engine, the engine is not to blame."""
    what, other = ("FP32 itself", outputs.reference) if outputs.reference else ("the baseline", outputs.baseline)
    if other is None:
        return check
    value, notes = outputs.judge.with_notes(read_outputs(other.path), outputs.labelled)
    if value <= budget.bound if budget.at_most else value >= budget.bound:
        return check
    advice = f"{what} has {number_beside(value, budget.bound)} on these samples: check the labels and the data first"
    advice = "; ".join((advice, *notes))
    return replace(check, advice=advice)


def check_meaning(budget: Budget, judge: Judge, *, has_reference: bool) -> None:
    """That a budget about answers means something, before anything is run; nothing happens for another.

    Raises:
        ConfigError: there is no metric, its direction is another, or there is nothing to compare with.
    """
    name = budget.quantity.name
    if name in ("metric", "metric_drop") and not judge.name:
        raise ConfigError(f"'{budget.text}': there is no metric; name one in [data] metric, or with --metric")
    if name == "metric" and budget.at_most == judge.metric().higher_is_better:
        better, relation = ("higher", ">=") if judge.metric().higher_is_better else ("lower", "<=")
        raise ConfigError(f"'{budget.text}': {judge.name} is better when {better}; write metric {relation} …")
    if judge.name and judge.metric().is_share and not _is_possible(budget):
        raise ConfigError(
            f"'{budget.text}': {judge.name} is a share, from 0 to 1, so this is no limit; write 0.01 for 1 %"
        )
    if budget.quantity.compares and not budget.versus_baseline and not has_reference:
        raise ConfigError(
            f"'{budget.text}': there are no outputs of FP32 to compare with; give --reference, or write "
            f"'{name} {budget.quantity.compares} baseline {budget.limit}'"
        )


def _is_possible(budget: Budget) -> bool:
    """Whether a share could keep the budget and another break it; percent instead of shares are found so."""
    if budget.quantity.name == "metric":
        return 0 < budget.bound <= 1
    return budget.quantity.name != "metric_drop" or -1 < budget.bound < 1


def _check_same_shapes(budget: Budget, candidate: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
    shapes = [{name: array.shape for name, array in outputs.items()} for outputs in (candidate, reference)]
    if shapes[0] != shapes[1]:
        ours, others = (", ".join(f"{name} {shape}" for name, shape in outputs.items()) for outputs in shapes)
        other = "the baseline" if budget.versus_baseline else "FP32"
        raise ConfigError(
            f"'{budget.text}': the engine answers {ours}, {other} answers {others}; compare engines of one network"
        )
