"""Samples that a pass keeps while it reads them, each with its number among those that are kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from calibration.arrays import AnyArray
from calibration.histogram.collect import num_in


class RecordedSample(dict[str, AnyArray]):
    """A batch of one that is kept, in a pass that runs samples one by one."""

    def __init__(self, arrays: Mapping[str, AnyArray], number: int) -> None:
        """``number``: among those that are kept, from 0."""
        super().__init__(arrays)
        self.number = number


class SampleRecorder:
    """Samples of a pass that are kept, as a batch of one each."""

    def __init__(self, indices: Collection[int]) -> None:
        """``indices``: which, counted from the first sample of the pass."""
        self._indices = frozenset(indices)
        self.rows: list[dict[str, AnyArray]] = []

    @property
    def num_kept(self) -> int:
        """So many, if there are as many samples."""
        return len(self._indices)

    def seen(self, batches: Iterable[Mapping[str, AnyArray]]) -> Iterator[Mapping[str, AnyArray]]:
        """The batches, while they are read; those that are one kept sample, as ``RecordedSample``."""
        begin = 0
        for batch in batches:
            size, recorded = num_in(batch), batch
            for row in range(size):
                if begin + row in self._indices:
                    recorded = RecordedSample(
                        {name: array[row : row + 1].copy() for name, array in batch.items()}, len(self.rows)
                    )
                    self.rows.append(recorded)
            begin += size
            yield recorded if size == 1 else batch


def runnable(batches: Iterable[Mapping[str, AnyArray]], batch_size: int) -> Iterator[Mapping[str, AnyArray]]:
    """Each batch of that size as it is, and each sample of the others as a batch of one."""
    for batch in batches:
        if num_in(batch) == batch_size:
            yield batch
            continue
        for row in range(num_in(batch)):
            yield {name: array[row : row + 1] for name, array in batch.items()}
