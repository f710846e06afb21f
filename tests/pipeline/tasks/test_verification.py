"""TAR at FAR and the equal error rate: scikit-learn's ROC curve as the judge, resamples, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.arrays import Floats
from calibration.data.labels.pairs import pair_table
from engines.contract import Array
from pipeline.accuracy.metric_intervals import Sampling, metric_drop
from pipeline.accuracy.metrics import metric
from pipeline.errors import ConfigError

SEEDS = st.integers(0, 2**32 - 1)


def value(name: str, scores: Any, labels: Any) -> float:
    """One metric of one output."""
    return metric(name)({"y": np.asarray(scores)}, np.asarray(labels))


def by_sklearn(name: str, is_same: Array, likeness: Array) -> float:
    """From scikit-learn's curve; the equal error rate where the straight line to (1, 0) crosses it."""
    metrics, optimize = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.optimize")
    far, tar, _ = metrics.roc_curve(is_same, likeness, drop_intermediate=False)
    if name == "eer":
        return float(optimize.brentq(lambda x: 1 - x - np.interp(x, far, tar), 0, 1))
    return float(tar[far <= float(name.partition("@")[2])].max())


def faces(num_people: int, num_each: int, noise: float, seed: int = 0) -> tuple[Floats, Array]:
    """Embeddings, and who they are of."""
    random = np.random.default_rng(seed)
    who = np.repeat(np.arange(num_people), num_each)
    people = random.normal(size=(num_people, 8))
    return people[who] + noise * random.normal(size=(len(who), 8)), who


@pytest.mark.parametrize("name", ["tar@0.05", "tar@0.3", "eer"])
@given(SEEDS, st.sampled_from([1, 8]))
def test_of_scores_of_pairs_it_is_scikit_learns(name: str, seed: int, steps: int) -> None:
    """With steps, many are equal."""
    random = np.random.default_rng(seed)
    is_same = np.append(random.integers(2, size=78), (0, 1))
    scores = is_same * 0.5 + random.random(80)
    scores = np.round(scores * steps) / steps if steps > 1 else scores
    if (1 - is_same).sum() * 0.05 < 1:
        return
    assert value(name, scores, is_same) == pytest.approx(by_sklearn(name, is_same, scores), abs=1e-9)
    picks = np.append(random.integers(80, size=90), (78, 79))
    drawn = metric(name).of_samples({"y": scores}, is_same)(picks)
    assert drawn == pytest.approx(by_sklearn(name, is_same[picks], scores[picks]), abs=1e-9)


@pytest.mark.parametrize("name", ["tar@0.02", "eer"])
def test_of_embeddings_all_pairs_by_cosine(name: str) -> None:
    embeddings, who = faces(12, 4, 0.8)
    judge = pytest.importorskip("sklearn.metrics.pairwise").cosine_similarity
    i, j = np.triu_indices(len(who), 1)
    expected = by_sklearn(name, who[i] == who[j], judge(embeddings)[i, j])
    assert 0 < expected < 1
    assert value(name, embeddings, who) == pytest.approx(expected)
    assert value(name, embeddings[:, :, None, None], who) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["tar@0.02", "eer"])
def test_a_list_of_pairs_is_judged_whatever_part_of_the_samples_is_there(name: str) -> None:
    embeddings, who = faces(12, 4, 0.8, seed=1)
    i, j = np.triu_indices(len(who), 1)
    pairs = [(int(b), int(a), bool(who[a] == who[b])) for a, b in zip(i, j)]
    table = pair_table(pairs, len(who))
    assert value(name, embeddings, table) == pytest.approx(value(name, embeddings, who))
    part = np.random.default_rng(2).permutation(len(who))[:30]
    assert value(name, embeddings[part], table[part]) == pytest.approx(value(name, embeddings[part], who[part]))


def test_a_resample_of_samples_has_a_pair_as_often_as_both_are_drawn() -> None:
    embeddings, who = faces(6, 3, 0.9, seed=3)
    counts = np.random.default_rng(4).integers(0, 3, len(who))
    picks = np.repeat(np.arange(len(who)), counts)
    i, j = np.triu_indices(len(who), 1)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    times = counts[i] * counts[j]
    is_same, likeness = np.repeat(who[i] == who[j], times), np.repeat((unit[i] * unit[j]).sum(axis=1), times)
    drawn = metric("eer").of_samples({"y": embeddings}, who)(picks)
    assert drawn == pytest.approx(by_sklearn("eer", is_same, likeness))


def test_perfect_and_worthless_answers() -> None:
    who = np.repeat(np.arange(5), 4)
    assert value("tar@0.01", np.eye(5)[who], who) == 1
    assert value("eer", np.eye(5)[who], who) == 0
    assert value("eer", np.ones((20, 5)), who) == pytest.approx(0.5)
    assert value("tar@0.01", np.ones((20, 5)), who) == 0
    assert metric("tar").name == "tar"
    assert not metric("eer").higher_is_better


@pytest.mark.parametrize(
    ("name", "scores", "labels", "sentence"),
    [
        ("tar", np.eye(6), [0, 0, 1, 1, 2, 2], "0.001 cannot be told from 0 with 12 pairs of others; .* least 1,000"),
        ("eer", np.eye(3), [0, 1, 2], "there is no pair of the same, both kinds are needed"),
        ("eer", np.eye(3), [1, 1, 1], "there is no pair of others, both kinds are needed"),
        ("eer", np.eye(3), [0.5, 1.0, 1.0], "a list of pairs, or who each sample is as a whole number"),
        ("eer", np.zeros(3), [0, 1, 2], "taken as a pair: 1 .the same. or 0 is expected"),
        ("eer", np.zeros((3, 2, 2)), [0, 1, 2], r"embeddings \(N, D\) or scores \(N,\) are expected"),
    ],
)
def test_what_does_not_fit_is_a_sentence(name: str, scores: Array, labels: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        value(name, scores, labels)


def test_nan_is_no_answer() -> None:
    assert np.isnan(value("eer", np.array([[0.0, 1], [np.nan, 1], [1, 0], [1, 0]]), [0, 0, 1, 1]))


def test_the_drop_has_a_paired_interval_over_samples_not_pairs() -> None:
    """An interval over pairs as if they were drawn one by one would be far too narrow: 120 faces make 7,140."""
    embeddings, who = faces(40, 3, 0.7, seed=5)
    worse = embeddings + np.random.default_rng(6).normal(size=embeddings.shape)
    drop = metric_drop(metric("eer"), {"y": worse}, {"y": embeddings}, who, Sampling(0.95, 300)).interval
    assert drop.estimate == pytest.approx(value("eer", worse, who) - value("eer", embeddings, who))
    assert 0 < drop.low < drop.estimate < drop.high
    assert drop.high - drop.low > 0.01
