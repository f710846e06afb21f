"""Means of channels: of a few samples, whatever their size."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from calibration.arrays import AnyArray
from calibration.ranges.means import ChannelSource, SampleMeans, channel_means


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


def test_means_that_are_met_in_any_order_are_those_of_the_order() -> None:
    samples = [{"x": np.random.default_rng(seed).standard_normal((1, 3, 5, 5)).astype(np.float32)} for seed in range(4)]
    sources = {"x": ChannelSource("x", 1), "y": ChannelSource("x", 1, Fraction(4, 1))}
    met = SampleMeans(sources)
    for number in (2, 0, 3, 1):
        met.add(number, samples[number])
    means = met.means(range(4))
    assert means["x"] == channel_means(lambda _feed: {}, samples, {"x": 1})["x"]
    assert np.allclose(means["y"], np.array(means["x"]) / 4, rtol=1e-6), "y is x among three times as many zeros"
    assert 3 in met
    assert 4 not in met


def test_channels_side_by_side_in_memory_are_found() -> None:
    x = np.arange(64, dtype=np.float32).reshape(1, 16, 2, 2)
    blocked = np.ascontiguousarray(np.moveaxis(x.reshape(1, 2, 8, 2, 2), 2, -1)).reshape(x.shape)
    expected = channel_means(lambda _feed: {}, [{"x": x}], {"x": 1})
    assert channel_means(lambda _feed: {}, [{"x": blocked}], {"x": 1}, {"x": 8}) == expected
