"""The budgets about answers: intervals that hold, and what is said where they mean nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.accuracy.comparison import write_outputs
from pipeline.artifact import Outputs
from pipeline.errors import ConfigError
from pipeline.gate.accuracy import EvaluationOutputs, IntervalPolicy, accuracy_of, check_accuracy
from pipeline.gate.budget import budget_from_text
from pipeline.gate.checks import EngineBudget
from pipeline.stages.validate import Judge, LabelFile
from pipeline.stats.proportions import clopper_pearson, tango


def outputs(path: Path, classes: npt.NDArray[np.int64]) -> Outputs:
    """Scores (N, 3) whose arg max are these classes."""
    write_outputs(path, "made up", [{"scores": np.eye(3, dtype=np.float32)[classes]}])
    return Outputs(path)


@pytest.fixture
def answers(tmp_path: Path) -> EvaluationOutputs:
    """300 samples: FP32 is right on all, the engine wrong on 30, the baseline on 15 of these."""
    labels = np.arange(300) % 3
    ours, before = labels.copy(), labels.copy()
    ours[:30] = (labels[:30] + 1) % 3
    before[:15] = (labels[:15] + 1) % 3
    np.savez(tmp_path / "labels.npz", y=labels)
    return EvaluationOutputs(
        {"int8": outputs(tmp_path / "ours.json", ours)},
        outputs(tmp_path / "fp32.json", labels),
        outputs(tmp_path / "before.json", before),
        Judge("top1", "", Path()),
        LabelFile(tmp_path / "labels.npz", "y"),
    )


@pytest.mark.parametrize(
    ("text", "estimate", "outcome"),
    [
        ("metric >= 0.8", 0.9, "pass"),
        ("metric >= 0.9", 0.9, "not decided"),
        ("metric >= 0.97", 0.9, "fail"),
        ("metric_drop <= 0.2", 0.1, "pass"),
        ("metric_drop <= 0.11", 0.1, "not decided"),
        ("metric_drop <= 0.01", 0.1, "fail"),
        ("metric_drop from baseline <= 0.1", 0.05, "pass"),
        ("metric_drop from baseline <= 0.005", 0.05, "fail"),
        ("agreement >= 0.8", 0.9, "pass"),
        ("agreement >= 0.97", 0.9, "fail"),
        ("agreement with baseline >= 0.9", 0.95, "pass"),
    ],
)
def test_each_outcome(answers: EvaluationOutputs, text: str, estimate: float, outcome: str) -> None:
    check = check_accuracy(
        answers, IntervalPolicy(0.99, sampled=True), EngineBudget("int8", budget_from_text(text, ""))
    )
    assert check.estimate == pytest.approx(estimate)
    assert check.outcome == outcome
    assert check.low is not None
    assert check.high is not None
    assert check.low < estimate < check.high
    bisected = outcome == "fail" and text.startswith(("metric_drop <=", "agreement >="))
    assert bool(check.advice) == (outcome == "not decided" or bisected)


def test_samples_that_stand_for_themselves_are_exact(answers: EvaluationOutputs) -> None:
    for text, outcome in (("metric >= 0.9", "pass"), ("metric_drop <= 0.0999", "fail"), ("agreement >= 0.9", "pass")):
        check = check_accuracy(
            answers, IntervalPolicy(0.99, sampled=False), EngineBudget("int8", budget_from_text(text, ""))
        )
        assert (check.outcome, check.low, check.high) == (outcome, check.estimate, check.estimate)


def test_the_numbers_of_an_engine(answers: EvaluationOutputs) -> None:
    found = accuracy_of(answers, "int8")
    assert (found.metric, found.reference_metric, found.baseline_metric, found.agreement) == (0.9, 1.0, 0.95, 0.9)


def test_nothing_to_compare_with(answers: EvaluationOutputs) -> None:
    alone = EvaluationOutputs(answers.engines, None, None, answers.judge, answers.labelled)
    with pytest.raises(ConfigError, match=r"no outputs of FP32.*or write 'metric_drop from baseline <= 0\.01'"):
        check_accuracy(
            alone, IntervalPolicy(0.99, sampled=True), EngineBudget("int8", budget_from_text("metric_drop <= 0.01", ""))
        )
    blind = EvaluationOutputs(answers.engines, answers.reference, None, Judge("", "", Path()), answers.labelled)
    with pytest.raises(ConfigError, match=r"there is no metric; name one in \[data\] metric, or with --metric"):
        check_accuracy(
            blind, IntervalPolicy(0.99, sampled=True), EngineBudget("int8", budget_from_text("metric >= 0.9", ""))
        )
    assert accuracy_of(blind, "int8").metric is None


def num_advised(advice: str, num: int) -> int:
    found = re.fullmatch(
        rf"about ([\d,]+) evaluation samples such as these {num} would decide; or consider these samples only with "
        r"sampled = "
        "false",
        advice,
    )
    assert found is not None, advice
    return int(found[1].replace(",", ""))


def test_how_many_samples_would_decide(answers: EvaluationOutputs) -> None:
    judging = IntervalPolicy(0.99, sampled=True)
    check = check_accuracy(answers, judging, EngineBudget("int8", budget_from_text("agreement >= 0.88", "")))
    assert check.outcome == "not decided"
    advised = num_advised(check.advice, 300)
    assert clopper_pearson(round(0.9 * advised), advised, 0.99)[0] >= 0.88
    assert clopper_pearson(round(0.9 * 0.9 * advised), round(0.9 * advised), 0.99)[0] < 0.88, "a tenth fewer would not"
    on_it = check_accuracy(answers, judging, EngineBudget("int8", budget_from_text("agreement >= 0.9", "")))
    assert on_it.advice.startswith("it is on the bound")


def test_a_drop_has_the_exact_test_beside_it(answers: EvaluationOutputs) -> None:
    check = check_accuracy(
        answers, IntervalPolicy(0.99, sampled=True), EngineBudget("int8", budget_from_text("metric_drop <= 0.01", ""))
    )
    assert check.sentence.endswith(
        "; of the samples on which one alone is right, 30 are the other's and 0 its own (McNemar's exact p 1.9e-09)"
    )


def test_no_difference_on_few_samples_is_no_proof(answers: EvaluationOutputs) -> None:
    same = replace(answers, engines={"int8": answers.reference or Outputs(Path())})
    check = check_accuracy(
        same, IntervalPolicy(0.99, sampled=True), EngineBudget("int8", budget_from_text("metric_drop <= 0.001", ""))
    )
    assert check.estimate == 0
    assert check.outcome == "not decided", "300 equal samples leave room for one in a thousand"
    advised = num_advised(check.advice, 300)
    assert tango(0, 0, advised, 0.99)[1] <= 0.001 < tango(0, 0, round(0.9 * advised), 0.99)[1]


@pytest.mark.parametrize("text", ["metric >= 95", "metric >= 0", "metric_drop <= 1", "metric_drop from baseline <= 2"])
def test_percent_where_a_share_is_meant_bounds_nothing(answers: EvaluationOutputs, text: str) -> None:
    with pytest.raises(ConfigError, match=r"top1 is a share, from 0 to 1, so this is no limit; write 0\.01 for 1 %"):
        check_accuracy(answers, IntervalPolicy(0.99, sampled=True), EngineBudget("int8", budget_from_text(text, "")))
