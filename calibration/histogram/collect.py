"""Stream batches through a runner and keep one histogram per tensor; memory does not grow with the samples."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import TypeAlias

from calibration.arrays import AnyArray
from calibration.errors import DataError
from calibration.histogram.accumulate import Accumulator, accumulator
from calibration.histogram.histogram import Histogram

RunModel: TypeAlias = Callable[[Mapping[str, AnyArray]], Mapping[str, AnyArray]]
"""From a batch, input name -> (N, ...), to the values of the watched tensors."""
OnPart: TypeAlias = Callable[[int, Mapping[str, Histogram]], object]

logger = logging.getLogger(__name__)


def collect(
    run: RunModel,
    batches: Iterable[Mapping[str, AnyArray]],
    *,
    on_batch: Callable[[int], object] = lambda _num: None,
    on_part: OnPart | None = None,
    num_workers: int = 1,
) -> dict[str, Histogram]:
    """Run all batches and return the histogram of every floating-point input and watched tensor, inputs first.

    The result does not depend on the batch size, on the order of the samples, or on the number of workers, as far as
    the runner's values do not. A tensor that is empty on a batch adds nothing; one that is empty on all has a
    histogram of nothing. Infinities, such as those of a mask, are counted apart. ``on_batch`` is told the number of
    samples done. ``on_part`` is called when that reaches 1, 2, 4, ... (or with larger batches, first passes it), with
    the histograms so far, which are made as they are read; the workers wait for each other there, so that these are of
    the first samples whatever the number of workers.

    Each worker is a thread with histograms of its own, which are merged in the end; so ``run`` is called by several
    threads at once. Memory is that of one batch and its tensors for each worker.

    Raises:
        DataError: there are no samples, or a tensor has a NaN.
    """
    queue = _Queue(batches, on_batch, on_part)
    parts: list[dict[str, Accumulator]] = [{} for _ in range(num_workers)]
    queue.parts = parts
    if num_workers == 1:
        _work(run, queue, parts[0])
    else:
        with ThreadPoolExecutor(num_workers) as pool:
            try:
                list(pool.map(_work, [run] * num_workers, [queue] * num_workers, parts))
            except BaseException as error:  # Ctrl-C: without it the workers go on to the last sample.
                queue.failed(queue.num_samples, error)
                raise
    if queue.failures:
        raise queue.failures[min(queue.failures)]
    if not queue.num_samples:
        raise DataError(
            "calibration: there are no calibration samples, at least one is expected, as ranges are never made up; "
            "give representative data"
        )
    histograms = dict(_Merged(parts))
    for name, histogram in histograms.items():
        if not histogram.num_values and not histogram.num_infinite:
            logger.warning("tensor '%s' is empty on every sample, so it has no range", name)
    infinite = {name: histogram for name, histogram in histograms.items() if histogram.num_infinite}
    for name, histogram in list(infinite.items())[:1]:
        logger.warning(
            "infinite values, such as masks have, are left out of ranges: in %d of %d tensors; of the first of them, "
            "'%s', %d of %d values",
            *(len(infinite), len(histograms), name, histogram.num_infinite),
            histogram.num_infinite + histogram.num_values,
        )
    return histograms


class _Merged(Mapping[str, Histogram]):
    """The workers' histograms by tensor, merged when they are requested."""

    def __init__(self, parts: Sequence[Mapping[str, Accumulator]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> Histogram:
        return reduce(Histogram.merged, [part[name].histogram() for part in self._parts if name in part])

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for part in self._parts for name in part))

    def __len__(self) -> int:
        return len(list(iter(self)))


class _Queue:
    """Hands out the batches, one at a time, to whoever asks; after a failure none."""

    def __init__(
        self, batches: Iterable[Mapping[str, AnyArray]], on_batch: Callable[[int], object], on_part: OnPart | None
    ) -> None:
        self._batches = iter(batches)
        self._on_batch, self._on_part = on_batch, on_part
        self._changed = threading.Condition()
        self._next_part: float = 1 if on_part else math.inf
        """Beyond so many samples no batch is handed out before ``on_part`` was called."""
        self.parts: Sequence[Mapping[str, Accumulator]] = ()
        self.num_samples = self._num_done = 0
        self.failures: dict[int, BaseException] = {}
        """The number of the sample at which a worker failed -> why; the first counts, whichever thread was quicker."""

    def next(self) -> tuple[Mapping[str, AnyArray], int] | None:
        """The next batch, and the number of its first sample."""
        with self._changed:
            self._changed.wait_for(lambda: self.failures or self.num_samples < self._next_part)
            try:
                batch = None if self.failures else next(self._batches, None)
            except BaseException as error:  # noqa: BLE001  # Raised again by ``collect``.
                self.failures[self.num_samples] = error
                return None
            if batch is None:
                return None
            begin = self.num_samples
            self.num_samples += num_in(batch)
            return batch, begin

    def done(self, num_samples: int) -> None:
        """Note that so many samples more are counted."""
        with self._changed:
            self._num_done += num_samples
            self._on_batch(self._num_done)
            if self._on_part and self._num_done == self.num_samples >= self._next_part:
                self._on_part(self._num_done, _Merged(self.parts))
                self._next_part = 1 << self._num_done.bit_length()
                self._changed.notify_all()

    def failed(self, begin: int, error: BaseException) -> None:
        """Note why the batch that begins there was not counted."""
        with self._changed:
            self.failures[begin] = error
            self._changed.notify_all()


def num_in(batch: Mapping[str, AnyArray]) -> int:
    """The number of samples in a batch."""
    return len(next(iter(batch.values()), ()))


def _work(run: RunModel, queue: _Queue, adding: dict[str, Accumulator]) -> None:
    """Run batches until there are no more."""
    while (taken := queue.next()) is not None:
        batch, begin = taken
        num_samples = num_in(batch)
        try:
            _add({**batch, **run(batch)}, adding, f"samples {begin} to {begin + num_samples - 1}")
            queue.done(num_samples)
        except BaseException as error:  # noqa: BLE001  # Raised again by ``collect``.
            queue.failed(begin, error)
        del batch, taken  # Before the next one is made, so that a worker never has two in memory.


def _add(tensors: Mapping[str, AnyArray], adding: dict[str, Accumulator], which: str) -> None:
    """Add the values of a batch's floating-point tensors to the histograms found so far."""
    for name, values in tensors.items():
        if values.dtype.kind == "f":
            if name not in adding:
                adding[name] = accumulator()
            adding[name].add(values, f"tensor '{name}' on {which}")
