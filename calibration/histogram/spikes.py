"""Spikes in a histogram: single values that are repeated, as a constant background gives behind a convolution.

Quantizing such a value loses at most half a step. But Kullback and Leibler's divergence, when the value's bin is spread
over its level, counts it as information lost in proportion to the value's share; so narrow levels look good, and with
them clipping. Migacz's method sets the first bin, where the zeros are, to the second; this does so with all spikes.

Measured: the first Relu6 of a small MobileNetV2 on Fashion-MNIST, half of whose pixels are black, was clipped at 0.43
of its range, at 18 dB instead of 38.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

TIMES_USUAL, LEAST_SHARE, NUM_NEIGHBOURS = 8, Fraction(1, 1000), 4
"""A spike: a bin with more than 8 times what is usual around it (the median of itself and its 4 nearest non-empty bins
on each side), and at least a thousandth of all values."""


def without_spikes(bins: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], int]:
    """The (n,) bins with each spike set to what is usual around it, and the index of the last spike, or 0.

    Not the first bin, nor the last, onto which Migacz's method folds the tail.
    """
    index = np.flatnonzero(bins)
    counts = bins[index]
    least = math.ceil(LEAST_SHARE * int(bins.sum()))
    large = np.flatnonzero((counts >= least) & (index > 0) & (index < len(bins) - 1))
    edges = np.arange(-NUM_NEIGHBOURS, NUM_NEIGHBOURS + 1)
    windows = counts[np.clip(large[:, None] + edges, 0, len(counts) - 1)]
    usual = np.partition(windows, NUM_NEIGHBOURS, axis=1)[:, NUM_NEIGHBOURS]
    is_spike = counts[large] > TIMES_USUAL * usual
    smoothed, spikes = bins.copy(), index[large[is_spike]]
    smoothed[spikes] = usual[is_spike]
    return smoothed, int(spikes.max(initial=0))
