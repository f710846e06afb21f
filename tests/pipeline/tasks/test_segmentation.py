"""mIoU: scikit-learn's Jaccard score over all pixels as the judge, layouts, sizes, and the sentence for each misfit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.arrays import Floats
from engines.contract import Array
from pipeline.accuracy.metric_intervals import Sampling, metric_drop
from pipeline.accuracy.metrics import metric
from pipeline.errors import ConfigError


def value(scores: Any, labels: Any) -> float:
    """mIoU of one output."""
    return metric("miou")({"y": np.asarray(scores)}, np.asarray(labels))


def by_sklearn(classes: Array, labels: Array) -> float:
    judge = pytest.importorskip("sklearn.metrics").jaccard_score
    judged = labels != 255
    truth, answers = labels[judged].reshape(-1), classes[judged].reshape(-1)
    return float(judge(truth, answers, labels=np.unique(truth), average="macro", zero_division=0))


def scenes(num: int, seed: int) -> tuple[Floats, Array]:
    """Scores (N, 4, 12, 16), and labels of which class 3 has none and a frame is not judged."""
    random = np.random.default_rng(seed)
    labels = np.kron(random.integers(3, size=(num, 3, 4)), np.ones((4, 4))).astype(np.uint8)
    scores = 1.5 * np.moveaxis(np.eye(4)[labels], 3, 1) + random.normal(size=(num, 4, 12, 16))
    labels[:, :1] = 255
    return scores, labels


def test_it_is_scikit_learns_in_each_layout_and_on_a_resample() -> None:
    scores, labels = scenes(6, 1)
    classes = np.argmax(scores, axis=1)
    expected = by_sklearn(classes, labels)
    assert 0.3 < expected < 0.8
    for answers in (scores, np.moveaxis(scores, 1, 3), classes, classes[:, None].astype(np.int32), classes[..., None]):
        assert value(answers, labels) == pytest.approx(expected), answers.shape
    picks = np.array([0, 0, 3, 5, 5, 5])
    drawn = metric("miou").of_samples({"y": scores}, labels)(picks)
    assert drawn == pytest.approx(by_sklearn(classes[picks], labels[picks]))
    assert metric("miou").with_notes({"y": scores}, labels)[1] == [
        "miou: class 3 has no sample among the labels, the mean is over the other 3"
    ]


def test_by_hand_on_two_by_two_pixels() -> None:
    """Class 0: 1 of 2 pixels; class 1: 2 of 3."""
    classes, labels = np.array([[[0, 1], [1, 1]]]), np.array([[[0, 0], [1, 1]]], np.uint8)
    assert value(classes, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert value(classes, np.array([[[0, 255], [1, 1]]], np.uint8)) == 1


def test_answers_of_another_size_are_brought_to_that_of_the_labels() -> None:
    """As networks with a stride have: each pixel is the nearest."""
    small = np.array([[[0, 1], [1, 2]]])
    labels = np.kron(small, np.ones((4, 4))).astype(np.int64)
    assert value(np.moveaxis(np.eye(3)[small], 3, 1), labels) == 1
    odd = np.array([[[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [1, 1, 1, 2, 2]]])
    assert value(np.eye(3)[np.array([[[0, 1], [1, 2]]])], odd[:, :, :3]) < 1


def test_nan_is_no_class() -> None:
    scores, labels = scenes(2, 3)
    scores[1, 2, 5, 5] = np.nan
    assert np.isnan(value(scores, labels))


@pytest.mark.parametrize(
    ("scores", "labels", "sentence"),
    [
        (np.zeros((2, 3, 4, 5)), np.zeros(2, np.int64), r"labels are int64 \(2,\), a class for each pixel"),
        (np.zeros((2, 3, 4, 5)), np.zeros((2, 9, 5), np.int64), "in the same aspect is expected, it is neither"),
        (np.zeros((2, 4, 4, 4)), np.zeros((2, 4, 4), np.int64), "it could be either; name another output"),
        (np.zeros((2, 3, 4, 5)), np.full((2, 4, 5), 3), "labels go from 3 to 3, the output has the classes 0 to 2"),
        (np.zeros((2, 3)), np.zeros((2, 4, 5), np.int64), r"the output is \(2, 3\) with labels of 4 x 5 pixels"),
        (np.zeros((2, 3, 4, 5)), np.full((2, 4, 5), 255), "no pixel is labelled with a class"),
        (np.zeros((2, 2, 4, 5)), np.full((2, 4, 5), 255) * (np.arange(5) > 2), "labels are 0 and 255 alone, and 255"),
        (
            np.zeros((2, 1, 4, 5)),
            np.zeros((2, 4, 5), np.int64),
            r"\(2, 1, 4, 5\), one score for each pixel",
        ),
        (np.zeros((2, 4, 5)), np.zeros((2, 4, 5), np.int64), r"the output is \(2, 4, 5\), one score for each pixel"),
        (np.full((2, 4, 5), -1), np.zeros((2, 4, 5), np.int64), "the output has the class -1"),
    ],
)
def test_what_does_not_fit_is_a_sentence(scores: Array, labels: Array, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        value(scores, labels)


def test_the_drop_has_a_paired_interval_over_pictures() -> None:
    scores, labels = scenes(40, 5)
    worse = scores + np.random.default_rng(6).normal(size=scores.shape)
    drop = metric_drop(metric("miou"), {"y": worse}, {"y": scores}, labels, Sampling(0.95, 500)).interval
    assert drop.estimate == pytest.approx(value(scores, labels) - value(worse, labels))
    assert 0 < drop.low < drop.estimate < drop.high < 0.3
