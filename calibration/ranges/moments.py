"""First and second moments of what products multiply their weights by, on a few samples: how errors of weights add up.

A product's row is what one of its sums is over: of a matrix product a row of the data, of a convolution the window at
one position, zeros of the padding included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.arrays import AnyArray, Floats
from calibration.histogram.collect import RunModel

MOST_POSITIONS = 2048
"""Windows that are taken of a convolution's data of one sample, evenly spread: neighbours say little anew."""


@dataclass(frozen=True)
class SumWindow:
    """What of a tensor a product reads for one sum; the numbers of a convolution are by axis."""

    tensor: str
    kernel: tuple[int, ...] = ()
    """Empty for a matrix product, which sums over the last axis."""
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    """At the beginnings, then at the ends; empty: as many as ``SAME`` says, or none."""
    same: str = ""
    """``SAME_UPPER`` or ``SAME_LOWER``, where it pads so."""
    num_groups: int = 1

    def rows(self, data: AnyArray) -> npt.NDArray[np.float32]:
        """(G, R, K) of data (N, C, …) of a convolution, or (…, K) of a matrix product.

        The K of a group are in the order of the weight: input channel, then position of the kernel.
        """
        if not self.kernel:
            return np.asarray(data.reshape(1, -1, data.shape[-1]), np.float32)
        num_axes, pads = len(self.kernel), self._pads(data.shape[2:])
        padded = np.pad(data, [(0, 0), (0, 0), *zip(pads[:num_axes], pads[num_axes:], strict=True)])
        spans = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, num_axes + 2)))
        taken = (*(slice(None, None, step) for step in (*self.strides, *self.dilations)),)
        windows = np.moveaxis(windows[(slice(None), slice(None), *taken)], 1, num_axes + 1)  # (N, …, C, kernel…)
        num_positions = math.prod(windows.shape[: num_axes + 1])
        rows = windows.reshape(num_positions, self.num_groups, -1)[:: -(-num_positions // MOST_POSITIONS) or 1]
        return np.moveaxis(rows, 1, 0).astype(np.float32)

    def fits(self, data: AnyArray) -> bool:
        """Whether there are rows in this tensor."""
        has_axes = data.ndim == len(self.kernel) + 2 if self.kernel else data.ndim > 1
        return has_axes and data.dtype.kind == "f" and data.size > 0

    def _pads(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not self.same:
            return self.pads or (0,) * (2 * len(self.kernel))
        each = zip(sizes, self.kernel, self.strides, self.dilations, strict=True)
        sums = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in each]
        halves = [total // 2 for total in sums]
        others = [total - half for total, half in zip(sums, halves, strict=True)]
        return (*halves, *others) if self.same == "SAME_UPPER" else (*others, *halves)


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a product's rows, by group."""

    mean: Floats
    """(G, K)"""
    second: Floats
    """(G, K, K): the mean of the products of any two."""

    def covariance(self) -> Floats:
        """(G, K, K)"""
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]


def moments_of(
    run: RunModel, samples: Iterable[Mapping[str, AnyArray]], windows: Iterable[SumWindow]
) -> dict[SumWindow, Moments]:
    """The moments of each window's rows; a row counts as much as another.

    Args:
        run: gives the tensors that are no inputs.
        samples: batches of one, in the order in which they are added up.
        windows: which; (G, K, K) float64 numbers of each are held at once.

    Returns:
        Those whose rows were finite throughout, and not none.
    """
    sums: dict[SumWindow, tuple[int, Floats, Floats]] = {}
    left = list(dict.fromkeys(windows))
    for sample in samples:
        tensors = {**sample, **run(sample)}
        left = [window for window in left if window.fits(tensors[window.tensor])]
        for window in left:
            rows = window.rows(tensors[window.tensor])
            num, first, second = sums.get(window, (0, np.zeros(()), np.zeros(())))
            with np.errstate(all="ignore"):
                second = second + (np.swapaxes(rows, 1, 2) @ rows).astype(np.float64)
            sums[window] = num + rows.shape[1], first + rows.sum(axis=1, dtype=np.float64), second
    return {
        window: Moments(first / num, second / num)
        for window, (num, first, second) in sums.items()
        if window in left and num and np.isfinite(second).all()
    }


class PairedMoments:
    """Of a product's rows in a changed network, and their products with the same rows in the network as it was."""

    def __init__(self, window: SumWindow) -> None:
        """``window``: what of a tensor the product reads."""
        self._window, self._num = window, 0
        self._first: Floats | float = 0.0
        self._first_before: Floats | float = 0.0
        self._second: Floats | float = 0.0
        self._cross: Floats | float = 0.0
        self._is_whole = True

    def add(self, before: AnyArray, now: AnyArray) -> None:
        """One sample: the tensor as it was, and as it is."""
        self._is_whole = self._is_whole and self._window.fits(before) and self._window.fits(now)
        if not self._is_whole:
            return
        rows, rows_before = self._window.rows(now), self._window.rows(before)
        with np.errstate(all="ignore"):
            self._second = self._second + (np.swapaxes(rows, 1, 2) @ rows).astype(np.float64)
            self._cross = self._cross + (np.swapaxes(rows_before, 1, 2) @ rows).astype(np.float64)
        self._first = self._first + rows.sum(axis=1, dtype=np.float64)
        self._first_before = self._first_before + rows_before.sum(axis=1, dtype=np.float64)
        self._num += rows.shape[1]

    def made(self, *, centred: bool) -> RowPairs | None:
        """What was added up, with the means taken out where ``centred``; None where rows were not finite, or none."""
        if not self._is_whole or not self._num:
            return None
        first, before = (np.asarray(each) / self._num for each in (self._first, self._first_before))
        second, cross = (np.asarray(each) / self._num for each in (self._second, self._cross))
        if not (np.isfinite(second).all() and np.isfinite(cross).all()):
            return None
        if centred:
            second = second - first[:, :, None] * first[:, None, :]
            cross = cross - before[:, :, None] * first[:, None, :]
        return RowPairs(first, before, second, cross)


@dataclass(frozen=True, eq=False)
class RowPairs:
    """Rows x of a changed network beside the same rows y of the network as it was, by group."""

    mean: Floats
    """(G, K): of x."""
    mean_before: Floats
    """(G, K): of y."""
    second: Floats
    """(G, K, K): of x x', or their covariance."""
    cross: Floats
    """(G, K, K): of y x', or their covariance."""
