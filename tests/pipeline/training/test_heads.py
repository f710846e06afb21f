"""What answers are taken for: classes, events or values, by the user's word, the graph, the metric and labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.errors import DataError
from engines.contract import Array
from engines.torch_graph.library import load_torch
from pipeline.artifact import OnnxModel
from pipeline.errors import ConfigError
from pipeline.stages.tune import Tune
from pipeline.training.heads import Head, class_axis, heads_of, judged_heads
from pipeline.training.losses import label_loss
from pipeline.training.options import TrainingAim

HEADS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 4] soft, float[N, 4] event, float[N, 4] plain, int64[N] best)
{
    a = Relu (x)
    soft = Softmax <axis = 1> (a)
    b = Neg (x)
    event = Sigmoid (b)
    plain = Exp (x)
    d = Abs (x)
    best = ArgMax <axis = 1, keepdims = 0> (d)
}
"""
AIM = TrainingAim(OnnxModel(Path()), "", "", Path())
FOUR = np.arange(24, dtype=np.float32).reshape(6, 4)


def judged(head: Head, answers: Array, labels: Array | None, aim: TrainingAim = AIM, distance: str = "auto") -> Head:
    (only,) = judged_heads([head], Tune(distance=distance), aim, labels, {head.tensor: answers})  # type: ignore[arg-type]
    return only


def test_the_graph_says_what_answers_are() -> None:
    heads = heads_of(onnx.parser.parse_model(HEADS), ())
    assert [(head.tensor, head.kind, head.axis, head.why) for head in heads] == [
        ("a", "softmax", 1, "output 'soft' is its Softmax"),
        ("b", "sigmoid", -1, "output 'event' is its Sigmoid"),
        ("plain", "values", -1, ""),
        ("d", "softmax", 1, "output 'best' is its ArgMax"),
    ]
    with pytest.raises(ConfigError, match="answers: the model has no tensor 'plian'; did you mean 'plain'"):
        heads_of(onnx.parser.parse_model(HEADS), ["plian"])


@pytest.mark.parametrize(
    ("metric", "labels", "kind", "why"),
    [
        ("", None, "values", "nothing says that it has classes"),
        ("", np.arange(6) % 4, "softmax", "labels are numbers of its 4 classes"),
        ("", np.arange(6), "values", "nothing says that it has classes"),
        ("", FOUR, "values", "nothing says that it has classes"),
        ("top1", None, "softmax", "metric top1 counts classes"),
        ("mae", np.arange(6) % 4, "values", "metric mae compares values"),
        ("auc", np.arange(6) % 4, "softmax", "labels are numbers of its 4 classes"),
    ],
)
def test_what_a_plain_output_is(metric: str, labels: Array | None, kind: str, why: str) -> None:
    head = judged(Head("y", "values", output="y"), FOUR, labels, replace(AIM, metric=metric))
    assert (head.kind, head.why) == (kind, why)


def test_the_users_word_comes_first_and_the_graph_before_the_metric() -> None:
    soft = Head("a", "softmax", 1, "soft", "output 'soft' is its Softmax")
    assert judged(soft, FOUR, None, replace(AIM, metric="mae")) == soft
    assert judged(soft, FOUR, None, distance="mse").kind == "values"
    assert judged(Head("y", "values"), FOUR, None, distance="kl").axis == 1
    assert judged(Head("y", "values"), FOUR, None, distance="bce").why == "distance is bce"
    pixels = np.zeros((6, 4, 5, 5), np.float32)
    with pytest.raises(ConfigError, match=r"which axis of 'y' \(6, 4, 5, 5\) has classes is not known"):
        judged(Head("y", "values"), pixels, None, distance="kl")
    of_pixels = judged(Head("y", "values"), pixels, np.zeros((6, 5, 5), np.int64))
    assert (of_pixels.kind, of_pixels.axis) == ("softmax", 1)


def test_the_metric_is_for_one_output() -> None:
    aim = replace(AIM, metric="top1", output="one")
    heads = [Head("one", "values", output="one"), Head("two", "values", output="two")]
    both = judged_heads(heads, Tune(), aim, None, {"one": FOUR, "two": FOUR})
    assert [head.kind for head in both] == ["softmax", "values"]
    both = judged_heads(heads, Tune(), replace(aim, output=""), None, {"one": FOUR, "two": FOUR})
    assert [head.kind for head in both] == ["values", "values"], "of two outputs none is meant"


def test_the_axis_that_labels_lack() -> None:
    assert class_axis(np.zeros((6, 5, 5)), np.ones((6, 5), np.int64), first=-1) == 2
    assert class_axis(np.zeros((6, 5, 5)), np.ones((6, 5), np.int64)) == 1
    assert class_axis(np.zeros((6, 7, 1)), np.ones((6, 1), np.int64)) == 1
    assert class_axis(np.zeros((6, 1)), np.ones(6, np.int64)) is None, "one number is no class"
    assert class_axis(np.zeros((6, 3)), np.full(6, 3)) is None
    assert class_axis(np.zeros((6, 3)), np.ones(6)) is None


def test_labels_are_compared_as_what_they_are() -> None:
    """A single number is a value, though its labels are whole ones; shares of classes are no values."""
    torch = load_torch()

    def loss(head: Head, answers: Array, labels: Array) -> float:
        by_labels = label_loss(torch, head, labels, answers)
        return float(by_labels({"y": torch.tensor(answers)}, {}, torch.tensor(labels)))

    ages = np.array([[3.0], [5.0]], np.float32)
    assert loss(Head("y", "values"), ages, np.array([4, 5])) == 0.5
    logits, shares = np.array([[1.0, 3.0]], np.float32), np.array([[0.25, 0.75]], np.float32)
    expected = -(shares * np.log(np.exp(logits) / np.exp(logits).sum())).sum()
    assert loss(Head("y", "softmax", 1), logits, shares) == pytest.approx(expected)
    assert loss(Head("y", "values"), logits, shares) == pytest.approx(((logits - shares) ** 2).mean())
    with pytest.raises(DataError, match=r"labels are \(6,\) from 4 to 4, the answers in 'y' \(6, 4\); give the number"):
        loss(Head("y", "softmax", 1), FOUR, np.full(6, 4))
