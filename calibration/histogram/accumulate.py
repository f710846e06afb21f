"""Count a tensor's values batch by batch: in compiled code where it was built, else with numpy, to the same result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from calibration.histogram.histogram import LEAST_EXPONENT, NUM_BINS, Histogram, histogram_from_values, nothing

NUM_RESULTS = 5
"""Of the compiled code's ``add``."""
LARGEST_COUNT = 2**32 - 1
"""What a counter in the compiled code's table holds."""

logger = logging.getLogger(__name__)


class Accumulator(Protocol):
    """The histogram of all values added so far."""

    def add(self, values: npt.NDArray[np.generic], where: str) -> None:
        """Add a floating-point array of any shape, rounded to float32 if it is wider; infinities are counted apart.

        Raises:
            DataError: a value is NaN; ``where`` says which tensor this is, on which samples.
        """
        ...

    def histogram(self) -> Histogram:
        """What has been added."""
        ...


def accumulator() -> Accumulator:
    """An empty one: compiled if this installation has the compiled module."""
    compiled = compiled_module()
    return NumpyAccumulator() if compiled is None else CompiledAccumulator(compiled)


@cache
def compiled_module() -> ModuleType | None:
    """``calibration.histogram._histogram``, or None where it was not built."""
    try:
        from calibration.histogram import _histogram
    except ImportError as error:
        logger.info("counting with numpy, about 5 times slower: %s; to build it, install with a C compiler", error)
        return None
    if (getattr(_histogram, "NUM_COUNTERS", 0), getattr(_histogram, "NUM_RESULTS", 0)) != (NUM_BINS, NUM_RESULTS):
        logger.warning("counting with numpy, about 5 times slower: %s is of another version; install again", _histogram)
        return None
    return _histogram


class NumpyAccumulator:
    """The reference: a histogram of each array, merged."""

    def __init__(self) -> None:
        self._found = nothing()

    def add(self, values: npt.NDArray[np.generic], where: str) -> None:
        """See ``Accumulator``."""
        self._found = self._found.merged(histogram_from_values(values, where))

    def histogram(self) -> Histogram:
        """See ``Accumulator``."""
        return self._found


class CompiledAccumulator:
    """A table of 32-bit counters that compiled code counts in, emptied into 64 bits before one can overflow."""

    def __init__(self, compiled: ModuleType, capacity: int = LARGEST_COUNT) -> None:
        """``capacity`` is the number of values after which the table is emptied."""
        self._add: Callable[..., tuple[int, float, float, int, int]] = compiled.add
        self._capacity = capacity
        self._emptied = nothing()
        self._table = np.zeros(NUM_BINS, np.uint32)
        self._begin()

    def _begin(self) -> None:
        self._table[...] = 0
        self._exponent = LEAST_EXPONENT
        self._min, self._max = np.inf, -np.inf
        self._num_values = self._num_zeros = self._num_infinite = 0

    def add(self, values: npt.NDArray[np.generic], where: str) -> None:
        """See ``Accumulator``."""
        if values.dtype != np.float32:
            with np.errstate(over="ignore", invalid="ignore"):
                values = values.astype(np.float32)
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        for begin in range(0, flat.size, self._capacity):
            self._add_part(flat[begin : begin + self._capacity], where, flat)

    def _add_part(self, part: npt.NDArray[np.float32], where: str, flat: npt.NDArray[np.float32]) -> None:
        if self._num_values + part.size > self._capacity:
            self._emptied = self.histogram()
            self._begin()
        try:
            exponent, low, high, num_zeros, num_infinite = self._add(part, self._table, self._exponent)
        except ArithmeticError:
            histogram_from_values(flat, where)  # Says what is wrong.
            raise
        self._num_infinite += num_infinite
        if part.size > num_infinite:
            self._exponent = exponent
            self._min, self._max = min(self._min, low), max(self._max, high)
        self._num_values += part.size - num_infinite
        self._num_zeros += num_zeros

    def histogram(self) -> Histogram:
        """See ``Accumulator``."""
        if not self._num_values:
            return self._emptied.merged(nothing(self._num_infinite))
        counts = self._table.astype(np.int64)
        low, high = self._min + 0.0, self._max + 0.0  # + 0.0: one zero, without a sign.
        added = Histogram(counts, self._exponent, low, high, self._num_zeros, self._num_infinite)
        return self._emptied.merged(added)
