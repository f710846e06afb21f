"""Task metrics: numbers one can check by hand, scikit-learn as the judge, and the sentence for each misfit."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from calibration.errors import DataError
from engines.contract import Array
from pipeline.accuracy.metrics import metric
from pipeline.errors import ConfigError

NUMBER = itertools.count()
SCORES = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]], np.float32)


@pytest.fixture(scope="module")
def sklearn_metrics() -> Any:
    """The judge."""
    return pytest.importorskip("sklearn.metrics")


def value(name: str, scores: Any, labels: Any) -> float:
    """One metric of one output."""
    return metric(name)({"y": np.asarray(scores)}, np.asarray(labels))


def test_top1_counts_the_largest_score_and_the_first_of_equals() -> None:
    assert value("top1", SCORES, [1, 0, 0, 0]) == 0.75
    assert value("top1", SCORES, [1, 0, 0, 1]) == 0.5


def test_correct_says_which_samples() -> None:
    labels = np.array([1, 0, 0, 0])
    hits = metric("top1").correct({"y": SCORES}, labels)
    assert hits.dtype == np.bool_
    assert hits.tolist() == [True, True, False, True]


def test_top5() -> None:
    scores = np.array([[6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]])
    assert metric("top5").correct({"y": scores}, np.array([5, 5, 5])).tolist() == [False, True, False]
    assert metric("top5").correct({"y": scores}, np.array([4, 0, 4])).tolist() == [True, False, True]
    assert value("top5", scores, [4, 0, 4]) == pytest.approx(2 / 3)


@given(st.integers(0, 2**32 - 1), st.integers(5, 12))
def test_top1_and_top5_are_scikit_learns(sklearn_metrics: Any, seed: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    scores, labels = generator.normal(size=(20, num_classes)), generator.integers(0, num_classes, 20)
    for name, k in (("top1", 1), ("top5", 5)):
        expected = (
            1.0
            if k == num_classes
            else sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(num_classes))
        )
        assert value(name, scores, labels) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["top1", "top5"])
def test_a_sample_with_nan_is_wrong(name: str) -> None:
    scores = np.tile(np.arange(6, dtype=np.float16), (2, 1))
    scores[0, 0] = np.nan  # Not the label's own score: the largest of the others would still be right.
    assert metric(name).correct({"y": scores}, np.array([5, 5])).tolist() == [False, True]


def test_axes_of_length_1_do_not_matter() -> None:
    assert value("top1", SCORES.reshape(4, 1, 1, 3), np.array([[1], [0], [0], [0]], np.uint8)) == 0.75
    assert value("mae", np.array([[1.0], [3.0]]), np.array([1.0, 1.0])) == 1.0


def test_mae_is_never_broadcast() -> None:
    assert value("mae", np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1, 2], [3, 8]])) == 1.0
    assert value("mae", np.array([250], np.uint8), np.array([255], np.uint8)) == 5.0
    with pytest.raises(ConfigError, match=r"output is \(2, 2\), the labels are \(2,\), the same shape is expected"):
        value("mae", np.zeros((2, 2)), np.zeros(2))


def test_cosine_is_the_mean_over_samples() -> None:
    assert value("cosine", [[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [3.0, 3.0]]) == pytest.approx(0.5)
    assert value("cosine", [[[1.0], [2.0]]], [[[-2.0], [-4.0]]]) == pytest.approx(-1.0)
    assert value("cosine", [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]) == 0.5


def test_half_precision_does_not_overflow() -> None:
    large = np.full((1, 100), 60000, np.float16)
    assert value("cosine", large, large) == pytest.approx(1.0)
    assert value("mae", large, -large.astype(np.float32)) == 120000.0


@pytest.mark.parametrize("name", ["mae", "cosine", "auc"])
def test_nan_gives_nan_which_no_bound_takes(name: str) -> None:
    result = value(name, [0.1, math.nan, 0.3], [0, 1, 1])
    assert math.isnan(result)
    assert not result <= 1e9


def test_auc_by_hand_with_a_tie() -> None:
    # Pairs of (negative, positive): 0.1<0.4, 0.1<0.8, 0.4=0.4 (half), 0.4<0.8 -> 3.5 of 4.
    assert value("auc", [0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1]) == 0.875
    assert value("auc", [[0.1], [0.4], [0.4], [0.8]], [0, 0, 1, 1]) == 0.875
    assert value("auc", [0.5, 0.5], [0, 1]) == 0.5


def test_auc_of_two_columns_orders_logits_by_their_difference() -> None:
    logits = [[0.0, 1.0], [5.0, 2.0]]  # Class 1 is likelier for the first sample, whatever its second column says.
    assert value("auc", logits, [1, 0]) == 1.0


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 5]), st.booleans())
def test_auc_is_scikit_learns(sklearn_metrics: Any, seed: int, num_columns: int, coarse: bool) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (30, num_columns)) + 1.0 if coarse else generator.random((30, num_columns))
    labels = generator.integers(0, max(num_columns, 2), 30)
    assume(len(np.unique(labels)) == max(num_columns, 2))
    if num_columns > 1:
        scores = scores / scores.sum(axis=1, keepdims=True)
    theirs = scores[:, -1] if num_columns < 3 else scores
    expected = sklearn_metrics.roc_auc_score(labels, theirs, multi_class="ovr", average="macro")
    assert value("auc", scores, labels) == pytest.approx(expected, abs=1e-12)


def test_auc_of_independent_columns() -> None:
    scores = np.array([[0.9, 0.1], [0.1, 0.2], [0.8, 0.3]])
    assert value("auc", scores, [[1, 0], [0, 1], [1, 1]]) == 1.0
    with pytest.raises(ConfigError, match="must be 0 or 1"):
        value("auc", scores, [[1, 0], [0, 2], [1, 1]])


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.integers(0, 2**32 - 1))
def test_auc_turns_round_with_the_scores(scores: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, len(scores))
    assume(0 < labels.sum() < len(labels))
    assert value("auc", scores, labels) + value("auc", [-s for s in scores], labels) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "scores", "labels", "message"),
    [
        ("top1", SCORES, [1, 0, 3, 0], "labels go from 0 to 3, the output has the classes 0 to 2; correct the labels"),
        ("top1", SCORES, [1, 0, -1, 0], "labels go from -1 to 1"),
        ("top1", SCORES, [1.0, 0.0, 2.0, 0.0], r"labels are float64 \(4,\), whole numbers \(N,\) are expected"),
        ("top1", SCORES, np.eye(4, 3, dtype=int), r"labels are int64 \(4, 3\), whole numbers \(N,\)"),
        ("top1", SCORES, [1, 0], r"output 'y' is \(4, 3\), the labels are \(2,\); the same number of samples"),
        ("top1", SCORES[:0], [], "at least one, is expected"),
        ("top1", np.zeros((2, 5, 3)), [0, 1], r"the output is \(2, 5, 3\), \(N, classes\) with at least 2 classes"),
        ("top1", [[1.0], [2.0]], [0, 0], "with at least 2 classes"),
        ("top5", SCORES, [1, 0, 0, 0], r"the output is \(4, 3\), \(N, classes\) with at least 5 classes"),
        ("cosine", SCORES, [1, 0, 0, 0], "the same shape is expected; store labels in the shape of the output"),
        ("auc", [0.1, 0.2], [1, 1], "every sample is of class 1, both kinds are needed"),
        ("auc", SCORES, [0, 1, 1, 0], "no sample is of class 2"),
        ("auc", [0.1, 0.2], [0, 2], "labels go from 0 to 2, the output has the classes 0 to 1"),
        ("auc", np.zeros((2, 3, 4)), [0, 1], r"the output is \(2, 3, 4\), \(N,\) or \(N, classes\)"),
    ],
)
def test_labels_that_do_not_fit(name: str, scores: Any, labels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^metric '{name}': .*{message}"):
        value(name, scores, labels)


def test_labels_that_are_missing() -> None:
    with pytest.raises(ConfigError, match="metric 'top1': needs labels, there are none; set labels"):
        metric("top1")({"y": SCORES}, None)


def test_the_output_is_named_where_there_are_several() -> None:
    outputs: dict[str, Array] = {"boxes": np.zeros((4, 9)), "scores": SCORES}
    labels = np.array([1, 0, 2, 0])
    assert metric("top1", "scores")(outputs, labels) == 1.0
    assert metric("top1", "scores").correct(outputs, labels).all()
    with pytest.raises(ConfigError, match=r"there are 2 outputs \(boxes, scores\), it reads one; set output"):
        metric("top1")(outputs, labels)
    with pytest.raises(ConfigError, match="there is no output 'score', the outputs are boxes, scores; correct output"):
        metric("top1", "score")(outputs, labels)


@pytest.mark.parametrize(
    ("name", "higher_is_better", "per_sample"),
    [("top1", True, True), ("top5", True, True), ("mae", False, False), ("cosine", True, False), ("auc", True, False)],
)
def test_what_a_metric_says_of_itself(name: str, higher_is_better: bool, per_sample: bool) -> None:
    ours = metric(name)
    assert (ours.name, ours.higher_is_better, ours.per_sample) == (name, higher_is_better, per_sample)
    assert ours.needs_labels
    if not per_sample:
        with pytest.raises(
            ConfigError,
            match=rf"metric '{name}': does not classify single samples .* use top1 or "
            r"top5",
        ):
            ours.correct({"y": SCORES}, np.zeros(4, int))


def test_an_unknown_metric_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"metric 'top-1': is not one of top1, top5, mae, .*; did you mean 'top1'\?"):
        metric("top-1")
    with pytest.raises(ConfigError, match="nor module:function; choose one"):
        metric("bleu")


def own(folder: Path, text: str) -> str:
    """A metric ``f`` of the user's own, in a module of its own."""
    name = f"own_metric_{next(NUMBER)}"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:f"


def test_a_users_function_gets_outputs_and_labels(tmp_path: Path) -> None:
    name = own(tmp_path, "def f(outputs, labels):\n    return outputs['y'].sum() - labels.sum()\n")
    ours = metric(name, folder=tmp_path)
    assert ours({"y": np.array([3, 4])}, np.array([1, 1])) == 5.0
    assert (ours.name, ours.higher_is_better, ours.needs_labels, ours.unit) == (name, True, True, "")
    assert not ours.per_sample


def test_a_users_functions_attributes_are_respected(tmp_path: Path) -> None:
    text = (
        "def f(outputs, labels):\n    return len(outputs)\n"
        "f.higher_is_better = False\nf.needs_labels = False\nf.unit = 'm'\n"
    )
    name = own(tmp_path, text)
    ours = metric(name, "", tmp_path)
    assert (ours.higher_is_better, ours.needs_labels, ours.unit) == (False, False, "m")
    assert ours({"a": SCORES, "b": SCORES}, None) == 2.0
    assert metric(name, "b", tmp_path)({"a": SCORES, "b": SCORES}, None) == 1.0
    with pytest.raises(ConfigError, match="there is no output 'c'"):
        metric(name, "c", tmp_path)({"a": SCORES}, None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", r"raised ZeroDivisionError \(division by zero\); fix it"),
        ("return None", "gave a NoneType, one number is expected"),
        ("return [1, 2]", "gave a list, one number is expected"),
    ],
)
def test_a_users_function_that_fails(tmp_path: Path, body: str, message: str) -> None:
    name = own(tmp_path, f"def f(outputs, labels):\n    {body}\n")
    with pytest.raises(ConfigError, match=rf"^metric '{name}': {message}") as caught:
        metric(name, folder=tmp_path)({"y": SCORES}, np.zeros(4))
    if "raised" in message:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_users_function_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no_such_metric:f: there is no module 'no_such_metric'"):
        metric("no_such_metric:f", folder=tmp_path)


def test_labels_of_any_integer_type() -> None:
    kinds: list[Array] = [np.array([1, 0, 2, 0], kind) for kind in (np.uint8, np.int32, np.int64, np.uint64)]
    assert {value("top1", SCORES, labels) for labels in kinds} == {1.0}


def test_text_is_for_a_users_own_function(tmp_path: Path) -> None:
    words = np.array(["cat", "dog"])
    with pytest.raises(ConfigError, match=r"metric 'top1': labels are text, such as 'cat', numbers are expected"):
        metric("top1").check_labels(words)
    with pytest.raises(ConfigError, match="metric 'mae': needs labels, there are none"):
        metric("mae").check_labels(None)
    name = f"own_{next(NUMBER)}"
    (tmp_path / f"{name}.py").write_text(
        "def right(outputs, labels):\n    return float((outputs['y'] == labels).mean())\n"
    )
    own = metric(f"{name}:right", "", tmp_path)
    own.check_labels(words)
    assert own({"y": np.array(["cat", "cow"])}, words) == 0.5


@pytest.mark.parametrize("name", ["top1", "mae", "cosine", "auc"])
def test_an_output_of_another_shape_for_each_sample_is_for_a_users_own_function(name: str) -> None:
    rows = np.empty(2, object)
    rows[0], rows[1] = np.zeros((3, 2)), np.zeros((1, 2))
    with pytest.raises(ConfigError, match="output 'y' has another shape for each sample, one for all is expected"):
        metric(name)({"y": rows}, np.array([0, 1]))
