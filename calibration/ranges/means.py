"""Means of the channels that products sum over, on a few samples: what rounded weights shift, the bias takes back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

from calibration.arrays import AnyArray, Floats
from calibration.histogram.collect import RunModel

ChannelMeans: TypeAlias = dict[str, tuple[float, ...]]
"""Tensor -> (C,) means."""


def channel_rms(run: RunModel, samples: Iterable[Mapping[str, AnyArray]], axes: Mapping[str, int]) -> ChannelMeans:
    """The root mean square of each channel of some tensors; arguments and result as of ``channel_means``."""
    means = _means(run, samples, axes, squared=True)
    return {name: tuple(math.sqrt(mean) for mean in values) for name, values in means.items()}


def channel_means(run: RunModel, samples: Iterable[Mapping[str, AnyArray]], axes: Mapping[str, int]) -> ChannelMeans:
    """The mean of each channel of some tensors; a sample counts as much as another, whatever its size.

    Args:
        run: gives the tensors that are no inputs.
        samples: batches of one, in the order in which they are added up.
        axes: tensor -> the axis of its channels.

    Returns:
        (C,) float32 values by tensor, without the tensors that are no floating-point data, empty, not finite, or not of
        so many channels on every sample.
    """
    return _means(run, samples, axes, squared=False)


def _means(
    run: RunModel, samples: Iterable[Mapping[str, AnyArray]], axes: Mapping[str, int], *, squared: bool
) -> ChannelMeans:
    sums: dict[str, Floats] = {}
    num_samples = 0
    left = dict(axes)
    for sample in samples:
        num_samples += 1
        tensors = {**sample, **run(sample)}
        for name, axis in list(left.items()):
            means = _of_sample(tensors.get(name), axis, squared)
            if means is None or (name in sums and sums[name].shape != means.shape):
                del left[name]
            else:
                sums[name] = sums[name] + means if name in sums else means
    return {name: tuple(map(_short, sums[name] / num_samples)) for name in left if name in sums}


def _of_sample(values: AnyArray | None, axis: int, squared: bool) -> Floats | None:
    if values is None or values.dtype.kind != "f" or values.ndim < 2 or not values.size:
        return None
    values = np.square(values, dtype=np.float64) if squared else values
    rows = np.moveaxis(values, axis, 0)
    means = rows.reshape(len(rows), -1).mean(axis=1, dtype=np.float64)
    return means if np.abs(means).max() <= np.finfo(np.float32).max else None


def _short(mean: float) -> float:
    """To the digits that tell float32 numbers apart."""
    return float(str(np.float32(mean)))
