"""Mean average precision: pycocotools itself as the judge, on all pictures and on any resample of them."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from calibration.data.labels.boxes import LabelledBox
from pipeline.accuracy.metric_intervals import Sampling, metric_drop, metric_interval
from pipeline.accuracy.metrics import metric
from pipeline.errors import ConfigError, Unavailable
from tests.pipeline.tasks.boxes_made import answers, by_pycocotools, labelled, padded, table_of

pytest.importorskip("pycocotools")
NUMBERS = {"map": 0, "map50": 1, "map75": 2, "map_small": 3, "map_medium": 4}
"""Each metric's place among pycocotools' numbers; no made-up box is large."""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_is_pycocotools_on_all_pictures_and_on_a_resample(seed: int) -> None:
    pictures = labelled(30, seed)
    rows, labels = answers(pictures, seed + 10), table_of(pictures)
    picks = np.random.default_rng(seed).integers(30, size=30)
    whole = by_pycocotools(pictures, rows)
    drawn = by_pycocotools([pictures[i] for i in picks], [rows[i] for i in picks])
    assert 0.1 < whole[0] < 0.9
    for name, place in NUMBERS.items():
        judge = metric(name).of_samples({"y": padded(rows)}, labels)
        assert judge(np.arange(30)) == pytest.approx(whole[place], abs=1e-12), name
        assert judge(picks) == pytest.approx(drawn[place], abs=1e-12), name
        assert metric(name)({"y": padded(rows)}, labels) == judge(np.arange(30))


def test_the_example_by_hand() -> None:
    """Two objects, one box right and one not: precision 1 until half of the recall, 51 of 101 places."""
    pictures = [[LabelledBox(0, 0, 10, 10, 20, 20, 400.0), LabelledBox(0, 0, 60, 60, 20, 20, 400.0)]]
    rows = [np.array([[10, 10, 30, 30, 0.9, 0], [100, 10, 120, 30, 0.8, 0]])]
    assert metric("map")({"y": padded(rows)}, table_of(pictures)) == pytest.approx(51 / 101)
    assert metric("map_small")({"y": padded(rows)}, table_of(pictures)) == pytest.approx(51 / 101)
    lower = [np.array([[10, 10, 30, 24.5, 0.9, 0.0]])]  # IoU 0.725: right at five of ten overlaps.
    assert metric("map")({"y": padded(lower)}, table_of(pictures)) == pytest.approx(5 / 10 * 51 / 101)
    with pytest.raises(ConfigError, match="the labels have no object of the size of map_large in these pictures"):
        metric("map_large")({"y": padded(rows)}, table_of(pictures))


def test_more_than_100_boxes_of_a_class_are_cut_and_no_box_is_0() -> None:
    pictures = labelled(3, 5)
    random = np.random.default_rng(7)
    many = np.concatenate([random.uniform(0, 60, (150, 2)), random.uniform(60, 110, (150, 2))], axis=1)
    rows = [np.column_stack([many, random.random(150), np.zeros(150)]) for _ in pictures]
    value = metric("map")({"y": padded(rows, 200)}, table_of(pictures))
    assert value == pytest.approx(by_pycocotools(pictures, rows)[0], abs=1e-12)
    assert metric("map")({"y": np.zeros((3, 20, 6))}, table_of(pictures)) == 0


def test_the_drop_has_a_paired_interval_over_pictures() -> None:
    pictures = labelled(60, 8)
    labels, near = table_of(pictures), answers(pictures, 9, noise=2.0)
    random = np.random.default_rng(10)
    far = [row + np.pad(3 * random.normal(size=(len(row), 4)), ((0, 0), (0, 2))) for row in near]
    reference, candidate = {"y": padded(near)}, {"y": padded(far)}
    sampling = Sampling(0.95, 200)
    drop = metric_drop(metric("map"), candidate, reference, labels, sampling)
    expected = metric("map")(reference, labels) - metric("map")(candidate, labels)
    assert drop.interval.estimate == pytest.approx(expected)
    assert 0 < drop.interval.low < expected < drop.interval.high
    alone = metric_interval(metric("map"), candidate, labels, sampling)
    assert alone.low < alone.estimate < alone.high
    assert drop.method == "paired bootstrap over samples, 200 resamples"


def test_nan_is_no_box() -> None:
    pictures = labelled(5, 11)
    broken = padded(answers(pictures, 12))
    broken[0, 0] = (1, 2, 3, np.nan, 0.5, 0)
    assert np.isnan(metric("map")({"y": broken}, table_of(pictures)))
    assert np.isnan(metric("count_mae")({"y": broken}, table_of(pictures)))


def test_objects_are_counted_from_a_score_on() -> None:
    pictures = [[LabelledBox(0, 0, 0, 0, 9, 9, 81.0)] * 3, [LabelledBox(1, 1, 0, 0, 9, 9, 81.0, True)]]
    rows = [np.array([[0, 0, 9, 9, s, 0] for s in (0.9, 0.6, 0.4)]), np.array([[0, 0, 9, 9, 0.45, 0.0]])]
    outputs, labels = {"y": padded(rows)}, table_of(pictures)
    assert metric("count_mae")(outputs, labels) == (1 + 0) / 2
    assert metric("count_mae@0.4")(outputs, labels) == (0 + 1) / 2
    assert not metric("count_mae").higher_is_better


def test_classes_that_do_not_meet_are_named() -> None:
    """A value of 0 of a network that may be right."""
    pictures = labelled(6, 13, ids=(11, 12, 13))
    rows = [np.array([[5, 5, 40, 40, 0.9, 30.0]])] * 6
    value, notes = metric("map").with_notes({"y": padded(rows)}, table_of(pictures))
    assert value == 0
    assert notes == [
        "map: the network names classes 30, the labels have 0 to 2 (ids 11 to 13), and none is the same; set numbers "
        "or first_class in [data.detector]"
    ]
    logits = [np.array([[5, 5, 40, 40, 7.5, 0.0]])] * 6
    _, notes = metric("map").with_notes({"y": padded(logits)}, table_of(pictures))
    assert "scores go up to 7.5, probabilities are expected" in notes[0]


def test_labels_of_another_kind_are_refused() -> None:
    for labels in (np.arange(3), np.zeros((3, 4, 8)), np.zeros((3, 2, 7))):
        with pytest.raises(
            ConfigError, match=r"metric 'map50': labels are .*, boxes are expected; set labels to a COCO"
        ):
            metric("map50")({"y": np.zeros((3, 20, 6))}, labels)
    with pytest.raises(ConfigError, match="there are labels of 3 pictures; the same number of pictures"):
        metric("map")({"y": np.zeros((2, 20, 6))}, table_of(labelled(3, 1)))


def test_without_pycocotools_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def absent(name: str) -> Any:
        return None if name == "pycocotools" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(Unavailable, match=r"metric 'map': needs pycocotools, .*; pip install 'trtforge\[metrics\]'"):
        metric("map")
    assert metric("count_mae").name == "count_mae"


def test_the_example_of_torchmetrics_manual() -> None:
    """One box with an IoU of 304 / 392, right at six of ten overlaps: map 0.6, map_50 and map_75 1, map_large 0.6."""
    pictures = [[LabelledBox(0, 0, 214.0, 41.0, 348.0, 244.0, 348.0 * 244)]]
    labels = table_of(pictures)
    labels[:, 0, :4] = (640, 480, 640, 480)
    outputs = {"y": padded([np.array([[258.0, 41.0, 606.0, 285.0, 0.536, 0.0]])])}
    values = {name: metric(name)(outputs, labels) for name in ("map", "map50", "map75", "map_large")}
    assert values == pytest.approx({"map": 0.6, "map50": 1, "map75": 1, "map_large": 0.6})
