"""Sums of a tensor's channels in double precision: the same bits in compiled code and with numpy, in any layout."""

from __future__ import annotations

import numpy as np

from calibration.arrays import AnyArray, Floats
from calibration.histogram.accumulate import compiled_module

NUM_PARTS = 8
"""In row-major order of all other axes, the value at position p of a channel goes to accumulator p % 8."""


def channel_sums(values: AnyArray, axis: int, block: int = 1) -> Floats:
    """The sum over all axes but one: (C,).

    Args:
        values: floating-point numbers, not none.
        axis: that of the channels, in the shape.
        block: so many channels lie side by side in memory, (N, C / block, …, block), though the shape says (N, C, …).
    """
    shape, axis = values.shape, axis % values.ndim
    if block > 1:
        if axis != 1 or len(values) != 1:
            return channel_sums(in_order(values, block), axis)
        groups, lanes = shape[1] // block, block
    elif values.size == int(np.prod(shape[axis:])):  # Nothing but ones before it.
        groups, lanes = shape[axis], 1
    elif axis == values.ndim - 1:
        groups, lanes = 1, shape[axis]
    else:
        values = np.ascontiguousarray(np.moveaxis(values, axis, 0))
        groups, lanes = shape[axis], 1
    positions = values.size // (groups * lanes)
    add = getattr(compiled_module(), "channel_sums", None)  # None too where it was built before there was this.
    if add is None or values.dtype != np.float32:
        return _by_numpy(np.ascontiguousarray(values).reshape(groups, positions, lanes))
    sums = np.empty(groups * lanes)
    add(np.ascontiguousarray(values), sums, groups, positions, lanes)
    return sums


def in_order(values: AnyArray, block: int) -> AnyArray:
    """(N, C, …) in the order of its shape, of what lies in memory as (N, C / block, …, block)."""
    num, channels, *others = values.shape
    return np.moveaxis(values.reshape(num, channels // block, *others, block), -1, 2).reshape(values.shape)


def _by_numpy(values: AnyArray) -> Floats:
    """Of (groups, positions, lanes): the reference."""
    groups, positions, lanes = values.shape
    padded = np.zeros((groups, -(-positions // NUM_PARTS) * NUM_PARTS, lanes))
    padded[:, :positions] = values
    parts = np.zeros((groups, NUM_PARTS, lanes))
    for row in np.moveaxis(padded.reshape(groups, -1, NUM_PARTS, lanes), 1, 0):
        parts += row
    sums = np.zeros((groups, lanes))
    for each in range(NUM_PARTS):
        sums += parts[:, each]
    return sums.reshape(-1)
