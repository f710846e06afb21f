"""RMSE and R²: scikit-learn as the judge, on made-up values and on its diabetes data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.contract import Array
from pipeline.accuracy.metric_intervals import Sampling, metric_drop
from pipeline.accuracy.metrics import metric
from pipeline.errors import ConfigError

JUDGES = {"rmse": "root_mean_squared_error", "r2": "r2_score"}


def value(name: str, scores: Any, labels: Any) -> float:
    """One metric of one output."""
    return metric(name)({"y": np.asarray(scores)}, np.asarray(labels))


def by_sklearn(name: str, truth: Array, answers: Array) -> float:
    return float(getattr(pytest.importorskip("sklearn.metrics"), JUDGES[name])(truth, answers))


@pytest.mark.parametrize("name", JUDGES)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.floats(-1e4, 1e4))
def test_it_is_scikit_learns_also_on_a_resample(name: str, seed: int, num_values: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    labels = random.normal(size=(30, num_values)) + shift
    scores = labels + 0.5 * random.normal(size=labels.shape)
    judge, picks = metric(name).of_samples({"y": scores}, labels), random.integers(30, size=30)
    assert value(name, scores, labels) == pytest.approx(by_sklearn(name, labels, scores))
    assert judge(picks) == pytest.approx(by_sklearn(name, labels[picks], scores[picks]), rel=1e-6)


def test_on_published_data() -> None:
    """The example of scikit-learn's manual: R² of one feature on the last 20 patients is 0.47."""
    datasets = pytest.importorskip("sklearn.datasets")
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = datasets.load_diabetes(return_X_y=True)
    features = features[:, 2:3]
    answers = linear.LinearRegression().fit(features[:-20], labels[:-20]).predict(features[-20:])
    assert value("r2", answers, labels[-20:]) == pytest.approx(0.47, abs=0.005)
    assert value("rmse", answers, labels[-20:]) ** 2 == pytest.approx(2548.07, abs=0.01)


def test_what_cannot_be_explained() -> None:
    with pytest.raises(ConfigError, match="the labels are the same for all samples"):
        value("r2", [1.0, 2.0], [3.0, 3.0])
    with pytest.raises(ConfigError, match="value 1 of the labels is the same for all samples"):
        value("r2", np.zeros((2, 2)), [[1.0, 3.0], [2.0, 3.0]])
    with pytest.raises(ConfigError, match="there is 1 sample, at least 2 are expected"):
        value("r2", [1.0], [3.0])
    with pytest.raises(ConfigError, match="the same shape is expected"):
        value("rmse", np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="has no values"):
        value("rmse", np.zeros((2, 0)), np.zeros((2, 0)))
    assert np.isnan(value("rmse", [1.0, np.nan], [1.0, 2.0]))


def test_the_drop_has_a_paired_interval() -> None:
    """Both engines err on the same samples, so that the drop is known better than either error."""
    random = np.random.default_rng(2)
    labels = random.normal(size=300)
    near = labels + random.normal(size=300)
    drop = metric_drop(metric("rmse"), {"y": near * 1.1}, {"y": near}, labels, Sampling(0.95)).interval
    expected = value("rmse", near * 1.1, labels) - value("rmse", near, labels)
    assert drop.estimate == pytest.approx(expected)
    assert 0 < drop.low < expected < drop.high < 3 * expected
