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
from pipeline.gate.checks import Asked, beside, broken, decided, exact
from pipeline.gate.record import Accuracy, Check
from pipeline.json_record import finite
from pipeline.stages.validate import Judge, Labelled, agreement, same_arg_max
from pipeline.stats.intervals import Interval, Limit, outcome

SHARES = ("top1", "top5", "auc")
"""Metrics that are between 0 and 1."""
ALONE = "judge these alone with sampled = false"


@dataclass(frozen=True)
class Answers:
    """What engines answered on the evaluation samples, and how answers are judged."""

    engines: Mapping[str, Outputs]
    reference: Outputs | None
    """FP32's; None where engines are gated directly without one."""
    baseline: Outputs | None
    judge: Judge
    labelled: Labelled


@dataclass(frozen=True)
class Judging:
    """How sure a number about answers must be."""

    confidence: float
    sampled: bool

    @property
    def sampling(self) -> Sampling:
        """For ``pipeline.accuracy.metric_intervals``."""
        return Sampling(self.confidence)

    def of(self, interval: Interval) -> Interval:
        """The interval, or where samples stand for themselves alone, what was found."""
        return interval if self.sampled else exact(interval.estimate)


def accuracy_of(answers: Answers, name: str) -> Accuracy:
    """The numbers of one engine."""
    ours = read_outputs(answers.engines[name].path)
    theirs, before = (None if one is None else read_outputs(one.path) for one in (answers.reference, answers.baseline))
    mine, full, last = (
        None if one is None or not answers.judge.name else finite(answers.judge(one, answers.labelled))
        for one in (ours, theirs, before)
    )
    return Accuracy(
        variant=name,
        metric=mine,
        reference_metric=full,
        baseline_metric=last,
        agreement=None if theirs is None else agreement(ours, theirs, answers.judge.output),
    )


def check_answers(answers: Answers, judging: Judging, one: Asked) -> Check:
    """The check of one budget about answers.

    Raises:
        ConfigError: the budget means nothing here: there is no metric, its direction is another, or there is nothing
            to compare with.
    """
    name, budget = one
    other = answers.baseline if budget.versus_baseline else answers.reference
    ours = read_outputs(answers.engines[name].path)
    num = len(next(iter(ours.values())))
    check_meaning(budget, answers.judge, has_reference=answers.reference is not None)
    if budget.quantity.name == "metric":
        interval = metric_interval(answers.judge.metric(), ours, _labels(answers), judging.sampling)
        check = _decided(one, judging.of(interval), (grown_metric(answers.judge.metric(), interval, num), num))
        return _blamed(check, answers, budget) if check.outcome == "fail" else check
    assert other is not None, "check_meaning refuses it"
    theirs = read_outputs(other.path)
    _check_alike(budget, ours, theirs)
    if budget.quantity.name == "metric_drop":
        drop = metric_drop(answers.judge.metric(), ours, theirs, _labels(answers), judging.sampling)
        check = _decided(one, judging.of(drop.interval), (grown_drop(drop, num), num))
        return _searched(_with_test(check, drop), budget)
    same = same_arg_max(ours, theirs, answers.judge.output)
    if same is None:
        raise ConfigError(
            f"'{budget.text}': the model's output is not class scores (N, classes), so there is no arg max to agree "
            "in; leave it out, or name [data] output"
        )
    interval = agreement_interval(same, judging.sampling)
    return _searched(_decided(one, judging.of(interval), (grown_share(interval), num)), budget)


def _decided(one: Asked, interval: Interval, samples: tuple[Callable[[int], Interval], int]) -> Check:
    """The check; where it is not decided, with how many samples would do.

    Args:
        one: the engine and the budget.
        interval: of the quantity.
        samples: the interval from any number of samples (``samples_needed``), and how many there are.
    """
    if math.isnan(interval.estimate):
        return broken(one, "the answers hold NaN, for which no bound holds")
    limit, (grown, num) = Limit(one[1].bound, one[1].at_most), samples
    if math.isnan(interval.low) or outcome(interval, limit) != "not decided":
        return decided(one, interval, f"give more evaluation samples; or {ALONE}")
    needed = samples_needed(grown, num, limit)
    if math.isinf(needed):
        return decided(one, interval, f"it lies on the bound, or too near to be told from it; {ALONE}")
    unit = 10 ** max(math.floor(math.log10(needed)) - 1, 0)
    about = math.ceil(needed / unit) * unit
    return decided(one, interval, f"about {about:,} evaluation samples such as these {num:,} would decide; or {ALONE}")


def _labels(answers: Answers) -> Array | None:
    return answers.labelled.labels() if answers.judge.metric().needs_labels else None


def _with_test(check: Check, drop: Drop) -> Check:
    """The check of a drop, with the exact test beside it where samples are right or wrong."""
    if drop.p_value is None:
        return check
    said = (
        f"; of the samples on which one alone is right, {drop.num_only_reference} are the other's and "
        f"{drop.num_only_candidate} its own (McNemar's exact p {drop.p_value:.2g})"
    )
    return replace(check, sentence=check.sentence + said)


def _searched(check: Check, budget: Budget) -> Check:
    """The check; where answers are too far from FP32's, with what finds out where."""
    if check.outcome != "fail" or budget.versus_baseline:
        return check
    return replace(check, advice="`trtforge bisect` names the layer at which its model goes wrong")


def _blamed(check: Check, answers: Answers, budget: Budget) -> Check:
    """The check of a metric that is out of bound; where it is so without this engine, the engine is not to blame."""
    what, outputs = ("FP32 itself", answers.reference) if answers.reference else ("the baseline", answers.baseline)
    if outputs is None:
        return check
    value = answers.judge(read_outputs(outputs.path), answers.labelled)
    if value <= budget.bound if budget.at_most else value >= budget.bound:
        return check
    said = f"{what} has {beside(value, budget.bound)} on these samples: look at the labels and the data first"
    return replace(check, advice=said)


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
        raise ConfigError(f"'{budget.text}': {judge.name} is the better the {better} it is; write metric {relation} …")
    if judge.name in SHARES and not _is_possible(budget):
        raise ConfigError(
            f"'{budget.text}': {judge.name} is a share, from 0 to 1, so this bounds nothing; write 0.01 for 1 %"
        )
    if budget.quantity.compares and not budget.versus_baseline and not has_reference:
        raise ConfigError(
            f"'{budget.text}': there are no answers of FP32 to compare with; give --reference, or write "
            f"'{name} {budget.quantity.compares} baseline {budget.limit}'"
        )


def _is_possible(budget: Budget) -> bool:
    """Whether a share could keep the budget and another break it; percent instead of shares are found so."""
    if budget.quantity.name == "metric":
        return 0 < budget.bound <= 1
    return budget.quantity.name != "metric_drop" or -1 < budget.bound < 1


def _check_alike(budget: Budget, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> None:
    shapes = [{name: array.shape for name, array in one.items()} for one in (ours, theirs)]
    if shapes[0] != shapes[1]:
        ends = [", ".join(f"{name} {shape}" for name, shape in one.items()) for one in shapes]
        other = "the baseline" if budget.versus_baseline else "FP32"
        raise ConfigError(
            f"'{budget.text}': the engine answers {ends[0]}, {other} answers {ends[1]}; compare engines of one network"
        )
