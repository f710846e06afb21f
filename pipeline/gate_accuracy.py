"""The budgets of a gate about answers: metric, its drop, and agreement, judged as a sample of what is to come.

The evaluation samples stand for others like them, so each number has an interval. Where [gate] sampled is false they
stand for themselves alone, and the number is what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engines.contract import Array
from pipeline.artifact import Outputs
from pipeline.budget import Budget
from pipeline.comparison import read_outputs
from pipeline.deciding import Interval
from pipeline.errors import ConfigError
from pipeline.gate_checks import Asked, beside, decided, exact
from pipeline.gate_record import Accuracy, Check
from pipeline.record import finite
from pipeline.stages.validate import Judge, Labelled, agreement, same_arg_max

Picks = npt.NDArray[np.int64]

NUM_RESAMPLES = 2000
MORE = "give more evaluation samples, or judge these alone with sampled = false"


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
    seed: int = 0


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
    if budget.quantity.name == "metric":
        _check_direction(budget, answers.judge)
        check = decided(one, _metric_interval(answers, judging, ours, None), MORE)
        return _blamed(check, answers, budget) if check.outcome == "fail" else check
    if other is None:
        raise ConfigError(
            f"'{budget.text}': there are no answers of FP32 to compare with; give --reference, or write "
            f"'{budget.quantity.name} {budget.quantity.compares} baseline {budget.limit}'"
        )
    theirs = read_outputs(other.path)
    if budget.quantity.name == "metric_drop":
        _check_metric(budget, answers.judge)
        return decided(one, _metric_interval(answers, judging, ours, theirs), MORE)
    same = same_arg_max(ours, theirs, answers.judge.output)
    if same is None:
        raise ConfigError(
            f"'{budget.text}': the model's output is not class scores (N, classes), so there is no arg max to agree "
            "in; leave it out, or name [data] output"
        )
    interval = share_interval(int(same.sum()), len(same), judging.confidence)
    return decided(one, interval if judging.sampled else exact(interval.estimate), MORE)


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


def _check_metric(budget: Budget, judge: Judge) -> None:
    if not judge.name:
        raise ConfigError(f"'{budget.text}': there is no metric; name one in [data] metric, or with --metric")


def _check_direction(budget: Budget, judge: Judge) -> None:
    _check_metric(budget, judge)
    higher = judge.metric().higher_is_better
    if budget.at_most == higher:
        better, relation = ("higher", ">=") if higher else ("lower", "<=")
        raise ConfigError(f"'{budget.text}': {judge.name} is the better the {better} it is; write metric {relation} …")


def _metric_interval(
    answers: Answers, judging: Judging, ours: Mapping[str, Array], theirs: Mapping[str, Array] | None
) -> Interval:
    """Of the metric, or with ``theirs`` of its drop against them; by bootstrap over samples, the same for both."""
    found = answers.judge.metric()
    labels = answers.labelled.labels() if found.needs_labels else None
    sign = 1.0 if found.higher_is_better else -1.0

    def value(picks: Picks) -> float:
        picked = None if labels is None else labels[picks]
        own = found({name: array[picks] for name, array in ours.items()}, picked)
        if theirs is None:
            return own
        return sign * (found({name: array[picks] for name, array in theirs.items()}, picked) - own)

    num = len(next(iter(ours.values())))
    estimate = value(np.arange(num))
    if not judging.sampled or math.isnan(estimate):
        return exact(estimate)
    random = np.random.default_rng(judging.seed)
    drawn = [value(random.integers(num, size=num)) for _ in range(NUM_RESAMPLES)]
    tail = (1 - judging.confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Interval(estimate, float(low), float(high), judging.confidence)


def share_interval(num_hits: int, num: int, confidence: float) -> Interval:
    """A share's exact interval (Clopper and Pearson, Biometrika 26, 1934): of ``num`` samples, ``num_hits`` do."""
    tail = (1 - confidence) / 2
    low = 0.0 if num_hits == 0 else _root(lambda p: 1 - _cdf(num_hits - 1, num, p), tail)
    high = 1.0 if num_hits == num else 1 - _root(lambda q: 1 - _cdf(num - num_hits - 1, num, q), tail)
    return Interval(num_hits / num, low, high, confidence)


def _root(rising: Callable[[float], float], value: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2


def _cdf(most: int, num: int, p: float) -> float:
    """P(X <= most) of a binomial distribution."""
    if p in (0.0, 1.0):
        return 1.0 if p == 0 or most >= num else 0.0
    k = np.arange(most + 1)
    logs = np.array([math.lgamma(num + 1) - math.lgamma(i + 1) - math.lgamma(num - i + 1) for i in k])
    return float(np.exp(logs + k * math.log(p) + (num - k) * math.log1p(-p)).sum())
