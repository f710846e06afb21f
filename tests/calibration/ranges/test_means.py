"""Means of channels: of a few samples, whatever their size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calibration.arrays import AnyArray
from calibration.ranges.means import channel_means


def run(feed: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """A network's tensors."""
    x = feed["x"]
    channels = len(x.reshape(-1)) % 3 + 1
    return {
        "rows": x.reshape(1, -1, 2),
        "whole": np.ones((1, 2), np.int64),
        "empty": np.zeros((1, 4, 0), np.float32),
        "changing": np.ones((1, channels), np.float32),
        "infinite": np.full((1, 2), np.inf, np.float32),
        "flat": np.ones(3, np.float32),
    }


def test_each_sample_counts_as_much() -> None:
    samples = [
        {"x": np.array([[[[1.0, 3.0]], [[10.0, 10.0]]]], np.float32)},
        {"x": np.array([[[[4.0, 4.0, 4.0, 4.0]], [[0.0, 0.0, 0.0, 20.0]]]], np.float32)},
    ]
    axes = {"x": 1, "rows": -1} | dict.fromkeys(["whole", "empty", "changing", "infinite", "flat", "lost"], 1)
    means = channel_means(run, samples, axes)
    assert means == {"x": (3.0, 7.5), "rows": (3.75, 6.75)}


def test_without_samples_there_are_none() -> None:
    assert channel_means(run, [], {"x": 1}) == {}
