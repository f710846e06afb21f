"""Precision, recall, F1 and average precision: scikit-learn as the judge, and the sentence for each misfit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.contract import Array
from pipeline.accuracy.metrics import metric
from pipeline.errors import ConfigError

SEEDS = st.integers(0, 2**32 - 1)
RATIOS = ("precision", "recall", "f1")


def value(name: str, scores: Any, labels: Any) -> float:
    """One metric of one output."""
    return metric(name)({"y": np.asarray(scores)}, np.asarray(labels))


def of_resample(name: str, scores: Array, labels: Array, picks: npt.NDArray[np.int64]) -> float:
    """The metric over samples that are drawn, some twice, after all were compared once."""
    return metric(name).of_samples({"y": scores}, labels)(picks)


def by_sklearn(name: str, truth: Array, answers: Array, **options: Any) -> float:
    judge = getattr(pytest.importorskip("sklearn.metrics"), f"{name}_score")
    return float(judge(truth, answers, **options))


@pytest.mark.parametrize("name", RATIOS)
@given(SEEDS)
def test_of_one_event_is_scikit_learns(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = random.random((40, 1)), np.append(random.integers(2, size=39), 1)
    picks = np.append(random.integers(40, size=50), 39)
    for threshold, asked in ((0.5, name), (0.3, f"{name}@0.3")):
        answers = scores[:, 0] >= threshold
        assert value(asked, scores, labels) == pytest.approx(by_sklearn(name, labels, answers, zero_division=0))
        drawn = by_sklearn(name, labels[picks], answers[picks], zero_division=0)
        assert of_resample(asked, scores, labels, picks) == pytest.approx(drawn)


@pytest.mark.parametrize("name", RATIOS)
@given(SEEDS)
def test_of_classes_is_scikit_learns_mean_over_the_classes_that_labels_have(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = random.normal(size=(30, 5)), random.integers(0, 4, 30)
    answers, picks = np.argmax(scores, axis=1), random.integers(30, size=20)
    for rows in (np.arange(30), picks):
        present = np.unique(labels[rows])
        expected = by_sklearn(name, labels[rows], answers[rows], labels=present, average="macro", zero_division=0)
        assert of_resample(name, scores, labels, rows) == pytest.approx(expected)


@pytest.mark.parametrize("name", RATIOS)
def test_two_scores_are_of_the_second_and_events_may_happen_together(name: str) -> None:
    random = np.random.default_rng(4)
    pair, labels = random.normal(size=(50, 2)), random.integers(2, size=50)
    expected = by_sklearn(name, labels, np.argmax(pair, axis=1))
    assert value(name, pair, labels) == pytest.approx(expected)
    events, happened = random.random((50, 3)), random.integers(2, size=(50, 3))
    expected = by_sklearn(name, happened, events >= 0.5, average="macro")
    assert value(name, events, happened) == pytest.approx(expected)


def test_an_output_of_whole_numbers_is_the_answer() -> None:
    """As the `label` output of a classifier of scikit-learn in ONNX; bytes are scores of a quantized network."""
    labels, answers = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 1, 1], np.int64)
    assert value("f1", answers, labels) == pytest.approx(by_sklearn("f1", labels, answers))
    three = np.array([0, 1, 2, 0, 1])
    assert value("f1", three, [0, 2, 2, 0, 1]) == pytest.approx(
        by_sklearn("f1", np.array([0, 2, 2, 0, 1]), three, average="macro")
    )
    with pytest.raises(ConfigError, match=r"scores go from 0 to 200, probabilities are expected"):
        value("f1", np.array([0, 200, 3], np.uint8), [0, 1, 1])


@given(SEEDS, st.sampled_from([1, 10]))
def test_average_precision_is_scikit_learns(seed: int, steps: int) -> None:
    """With steps, many scores are equal."""
    random = np.random.default_rng(seed)
    scores, labels = random.random(40), np.append(random.integers(2, size=39), 1)
    scores = np.round(scores * steps) / steps if steps > 1 else scores
    picks = np.append(random.integers(40, size=50), 39)
    for rows in (np.arange(40), picks):
        expected = by_sklearn("average_precision", labels[rows], scores[rows])
        assert of_resample("average_precision", scores, labels, rows) == pytest.approx(expected)
    table = np.stack([1 - scores, scores], axis=1)
    assert value("average_precision", table, labels) == pytest.approx(value("average_precision", scores, labels))


def test_average_precision_of_classes_is_the_mean_over_those_that_labels_have() -> None:
    random = np.random.default_rng(6)
    scores, labels = random.random((60, 4)), random.integers(0, 3, 60)
    each = [by_sklearn("average_precision", labels == c, scores[:, c]) for c in range(3)]
    assert value("average_precision", scores, labels) == pytest.approx(np.mean(each))
    happened = random.integers(2, size=(60, 4))
    expected = by_sklearn("average_precision", happened, scores, average="macro")
    assert value("average_precision", scores, happened) == pytest.approx(expected)


@pytest.mark.parametrize("name", [*RATIOS, "average_precision"])
def test_a_class_without_samples_is_left_out_and_named(name: str) -> None:
    scores, labels = np.eye(4)[[0, 1, 3, 0]], np.array([0, 1, 3, 0])
    assert value(name, scores, labels) == 1
    assert metric(name).with_notes({"y": scores}, labels) == (
        1,
        [f"{name}: class 2 has no sample among the labels, the mean is over the other 3"],
    )
    assert metric(name).with_notes({"y": scores[:, :2]}, np.array([0, 1, 0, 0]))[1] == []


@pytest.mark.parametrize("name", [*RATIOS, "average_precision"])
def test_nan_is_no_answer(name: str) -> None:
    assert np.isnan(value(name, np.array([0.2, np.nan, 0.7]), [0, 1, 1]))


@pytest.mark.parametrize(
    ("name", "scores", "labels", "sentence"),
    [
        (
            "f1",
            np.array([-3.0, 5.0]),
            [0, 1],
            r"scores go from -3 to 5, probabilities are expected; .* f1@0 ",
        ),
        ("f1", np.array([0.3, 0.6]), [0, 0], "no sample is of class 1; use more evaluation data"),
        ("recall", np.zeros((2, 3, 4)), [0, 1], r"the output is \(2, 3, 4\), \(N,\) or \(N, classes\) is expected"),
        ("precision", np.zeros((2, 3)), [0, 3], "labels go from 0 to 3, the output has the classes 0 to 2"),
        ("f1", np.zeros((2, 3)), [[0, 1, 2], [0, 0, 1]], "must be 0 or 1"),
        ("f1@0.2", np.zeros((2, 3)), [0, 1], r"metric 'f1@0.2': .* a threshold is for one score .* write f1"),
        ("f1", np.zeros(2), [0.5, 1.0], "labels are float64"),
        ("average_precision", np.zeros(3), [0, 0, 0], "no sample is of class 1"),
    ],
)
def test_what_does_not_fit_is_a_sentence(name: str, scores: Array, labels: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        value(name, scores, labels)


def test_a_number_behind_the_name_is_read_strictly() -> None:
    with pytest.raises(ConfigError, match=r"metric 'f1@x': has 'x', the score .* is expected; write f1@0.3"):
        metric("f1@x")
    with pytest.raises(ConfigError, match=r"metric 'rmse@2': takes no number; write rmse"):
        metric("rmse@2")
    with pytest.raises(ConfigError, match=r"'tar@2': has '2', the false accept rate between 0 and 1 is expected"):
        metric("tar@2")
    with pytest.raises(ConfigError, match=r"'recal': is not one of .*; did you mean 'recall'\?"):
        metric("recal")


def test_the_examples_of_scikit_learns_manual() -> None:
    truth, answers = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 2, 1, 0, 0, 1])
    assert value("precision", answers, truth) == pytest.approx(0.22, abs=0.005)
    assert value("recall", answers, truth) == pytest.approx(0.33, abs=0.005)
    assert value("f1", answers, truth) == pytest.approx(0.26, abs=0.01)
    assert value("average_precision", np.array([0.1, 0.4, 0.35, 0.8]), [0, 0, 1, 1]) == pytest.approx(0.83, abs=0.005)
