"""Means of the channels that products sum over, on a few samples: what rounded weights shift, the bias takes back."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from calibration.arrays import AnyArray, Floats
from calibration.histogram.channel_sums import channel_sums
from calibration.histogram.collect import RunModel

ChannelMeans: TypeAlias = dict[str, tuple[float, ...]]
"""Tensor -> (C,) means."""


@dataclass(frozen=True)
class ChannelSource:
    """Where the channels of a tensor are read: in itself, or in another that has the same values."""

    tensor: str
    axis: int
    times_larger: Fraction = Fraction(1)
    """Values of the tensor for each of that one's, the others being zeros."""


def channel_rms(run: RunModel, samples: Iterable[Mapping[str, AnyArray]], axes: Mapping[str, int]) -> ChannelMeans:
    """The root mean square of each channel of some tensors; arguments and result as of ``channel_means``."""
    means = _means(run, samples, axes, squared=True)
    return {name: tuple(math.sqrt(mean) for mean in values) for name, values in means.items()}


def channel_means(
    run: RunModel,
    samples: Iterable[Mapping[str, AnyArray]],
    axes: Mapping[str, int],
    blocks: Mapping[str, int] | None = None,
) -> ChannelMeans:
    """The mean of each channel of some tensors; a sample counts as much as another, whatever its size.

    Args:
        run: gives the tensors that are no inputs.
        samples: batches of one, in the order in which they are added up.
        axes: tensor -> the axis of its channels.
        blocks: tensor -> how many channels lie side by side in memory, of those that ``run`` gives so.

    Returns:
        (C,) float32 values by tensor, without the tensors that are no floating-point data, empty, not finite, or not of
        so many channels on every sample.
    """
    return _means(run, samples, axes, blocks, squared=False)


class SampleMeans:
    """Means of channels that are found while samples are run, in whatever order, and by whichever thread."""

    def __init__(self, sources: Mapping[str, ChannelSource], *, squared: bool = False) -> None:
        """``sources``: of each tensor whose means are wanted; ``squared``: of the squares."""
        self._sources, self._squared = sources, squared
        self._by_sample: dict[int, dict[str, Floats | None]] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._by_sample

    def add(self, index: int, tensors: Mapping[str, AnyArray], blocks: Mapping[str, int] | None = None) -> None:
        """Of the sample of that number, with inputs and outputs of its run; ``blocks`` as of ``channel_means``."""
        by_tensor: dict[str, Floats | None] = {}
        for name, source in self._sources.items():
            values, block = tensors.get(source.tensor), (blocks or {}).get(source.tensor, 1)
            means = _of_sample(values, source.axis, block, self._squared)
            by_tensor[name] = means if means is None or source.times_larger == 1 else means / float(source.times_larger)
        self._by_sample[index] = by_tensor

    def means(self, indices: Collection[int]) -> ChannelMeans:
        """Of these samples, which were all run, added up in their order."""
        sums: dict[str, Floats] = {}
        left = list(self._sources)
        for index in indices:
            for name in list(left):
                means = self._by_sample[index][name]
                if means is None or (name in sums and sums[name].shape != means.shape):
                    left.remove(name)
                else:
                    sums[name] = sums[name] + means if name in sums else means
        return {name: tuple(map(_short, sums[name] / len(indices))) for name in left if name in sums}


def _means(
    run: RunModel,
    samples: Iterable[Mapping[str, AnyArray]],
    axes: Mapping[str, int],
    blocks: Mapping[str, int] | None = None,
    *,
    squared: bool,
) -> ChannelMeans:
    sources = {name: ChannelSource(name, axis) for name, axis in axes.items()}
    averaged, num_samples = SampleMeans(sources, squared=squared), 0
    for sample in samples:
        averaged.add(num_samples, {**sample, **run(sample)}, blocks)
        num_samples += 1
    return averaged.means(range(num_samples))


def _of_sample(values: AnyArray | None, axis: int, block: int, squared: bool) -> Floats | None:
    if values is None or values.dtype.kind != "f" or values.ndim < 2 or not values.size:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.square(values, dtype=np.float64) if squared else values
        means = channel_sums(values, axis, block) / (values.size // values.shape[axis])
    return means if np.abs(means).max() <= np.finfo(np.float32).max else None


def _short(mean: float) -> float:
    """To the digits that tell float32 numbers apart."""
    return float(str(np.float32(mean)))
