"""Stream batches through a runner and keep one histogram per tensor; memory does not grow with the samples."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, TypeAlias

from calibration.arrays import AnyArray
from calibration.errors import DataError
from calibration.histogram.accumulate import Accumulator, accumulator
from calibration.histogram.histogram import Histogram

RunModel: TypeAlias = Callable[[Mapping[str, AnyArray]], Mapping[str, AnyArray]]
"""From a batch, input name -> (N, ...), to the values of the watched tensors."""


class Observer(Protocol):
    """What looks at the histograms while they grow, and may end it; or what begins with some that are there."""

    def begun(self) -> tuple[int, Mapping[str, Histogram]]:
        """How many samples were counted before the first batch, and their histograms."""
        ...

    def is_due(self, num_samples: int) -> bool:
        """Whether it wants to look after so many samples."""
        ...

    def on_part(self, num_samples: int, histograms: Mapping[str, Histogram]) -> bool:
        """Look at the histograms so far, which are made as they are read; whether more samples are wanted."""
        ...


logger = logging.getLogger(__name__)


def collect(
    run: RunModel,
    batches: Iterable[Mapping[str, AnyArray]],
    *,
    on_batch: Callable[[int], object] = lambda _num: None,
    observer: Observer | None = None,
    num_workers: int = 1,
) -> dict[str, Histogram]:
    """Run all batches and return the histogram of every floating-point input and watched tensor, inputs first.

    The result does not depend on the batch size, on the order of the samples, or on the number of workers, as far as
    the runner's values do not. A tensor that is empty on a batch adds nothing; one that is empty on all has a
    histogram of nothing. Infinities, such as those of a mask, are counted apart. ``on_batch`` is told the number of
    samples done. ``observer`` is asked before each batch; where it is due the workers wait for each other, so that what
    it sees is of the first samples whatever the number of workers.

    Each worker is a thread with histograms of its own, which are merged in the end; so ``run`` is called by several
    threads at once. Memory is that of one batch and its tensors for each worker.

    Raises:
        DataError: there are no samples, or a tensor has a NaN.
    """
    parts: list[dict[str, Accumulator]] = [{} for _ in range(num_workers)]
    num_before, before = observer.begun() if observer else (0, {})
    counted = {name: _Counted(histogram) for name, histogram in before.items()}
    queue = _Queue(_after(batches, num_before), on_batch, observer, [*parts, counted])
    queue.num_samples = queue.num_done = num_before
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
    histograms = dict(_Merged(queue.parts))
    for name, histogram in histograms.items():
        if not histogram.num_values and not histogram.num_infinite:
            logger.warning("tensor '%s' is empty on every sample, so it has no range", name)
    infinite = {name: histogram for name, histogram in histograms.items() if histogram.num_infinite}
    for name, histogram in list(infinite.items())[:1]:
        logger.warning(
            "infinite values, as masks have, and NaN that the model replaces are left out of ranges: in %d of %d "
            "tensors; of the first of them, '%s', %d of %d values",
            *(len(infinite), len(histograms), name, histogram.num_infinite),
            histogram.num_infinite + histogram.num_values,
        )
    return histograms


def _after(batches: Iterable[Mapping[str, AnyArray]], num_samples: int) -> Iterator[Mapping[str, AnyArray]]:
    """Without those that were counted before."""
    left, begin = iter(batches), 0
    while begin < num_samples and (batch := next(left, None)) is not None:
        begin += num_in(batch)
    return left


@dataclass(frozen=True)
class _Counted:
    """Of values that were counted before."""

    counted: Histogram

    def histogram(self) -> Histogram:
        return self.counted


_Parts: TypeAlias = Sequence[Mapping[str, Accumulator] | Mapping[str, _Counted]]


class _Merged(Mapping[str, Histogram]):
    """The workers' histograms by tensor, merged when they are requested."""

    def __init__(self, parts: _Parts) -> None:
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
        self,
        batches: Iterable[Mapping[str, AnyArray]],
        on_batch: Callable[[int], object],
        observer: Observer | None,
        parts: _Parts,
    ) -> None:
        self._batches = iter(batches)
        self._on_batch, self._observer = on_batch, observer
        self._changed = threading.Condition()
        self._is_due = self._is_enough = False
        """No batch is handed out before the observer has looked, or none any more."""
        self.parts = parts
        self.num_samples = self.num_done = 0
        self.failures: dict[int, BaseException] = {}
        """The number of the sample at which a worker failed -> why; the first counts, whichever thread was quicker."""

    def next(self) -> tuple[Mapping[str, AnyArray], int] | None:
        """The next batch, and the number of its first sample."""
        with self._changed:
            try:
                self._changed.wait_for(lambda: self.failures or not self._must_wait())
                batch = None if self.failures or self._is_enough else next(self._batches, None)
            except BaseException as error:  # noqa: BLE001  # Raised again by ``collect``.
                self.failures[self.num_samples] = error
                self._changed.notify_all()
                return None
            if batch is None:
                return None
            begin = self.num_samples
            self.num_samples += num_in(batch)
            return batch, begin

    def done(self, num_samples: int) -> None:
        """Note that so many samples more are counted."""
        with self._changed:
            self.num_done += num_samples
            self._on_batch(self.num_done)
            self._observe()

    def _must_wait(self) -> bool:
        """Whether the observer has to look before another batch is handed out; if all is counted, it does."""
        if self._observer and not self._is_due:
            self._is_due = self._observer.is_due(self.num_samples)
        self._observe()
        return self._is_due

    def _observe(self) -> None:
        """Let the observer look, if it wants to and all that was handed out is counted."""
        if self._observer and self._is_due and self.num_done == self.num_samples:
            self._is_enough |= not self._observer.on_part(self.num_done, _Merged(self.parts))
            self._is_due = False
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
