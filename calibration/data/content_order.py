"""Samples in an order that follows from their content alone, so that how they were listed does not matter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from calibration.arrays import AnyArray
from calibration.data.array_files import NPY_KEY, ArrayFiles
from calibration.data.batches import Samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import Block, SampleReader, digests_of_rows


@dataclass(frozen=True)
class ContentOrder:
    """The samples of another reader in the order of their SHA-256, which says nothing of what is in them.

    So the first of them are a random sample of all, drawn without replacement. Samples with equal digests are equal.
    """

    reader: SampleReader
    order: tuple[int, ...]
    """Their numbers in the other reader."""
    sorted_digests: tuple[bytes, ...]
    """Of the samples, in this order."""

    @property
    def num_samples(self) -> int:
        """Those that are left."""
        return len(self.order)

    @property
    def selection(self) -> str:
        """How ``limit`` chose."""
        return self.reader.selection

    def blocks(self, num_max: int) -> Iterator[Block]:
        """One sample in a block, whatever ``num_max``."""
        return self.reader.samples_at(self.order)

    def samples_at(self, indices: Sequence[int]) -> Iterator[Block]:
        """As the other reader does."""
        return self.reader.samples_at([self.order[index] for index in indices])

    def labels(self) -> AnyArray | None:
        """(num_samples, ...) or None."""
        labels = self.reader.labels()
        return None if labels is None else labels[list(self.order)]

    def classes(self) -> tuple[str, ...]:
        """Those of the other reader."""
        return self.reader.classes()

    def update(self, digest: hashlib._Hash) -> None:
        """Feed the samples' digests into a hash; not labels, which calibration does not look at."""
        for each in self.sorted_digests:
            digest.update(each)

    def digests(self) -> list[bytes]:
        """Rising."""
        return list(self.sorted_digests)


_MET: list[tuple[SampleReader, list[bytes]]] = []
"""The reader whose samples were hashed last, and their digests."""


def meet_digests(samples: Samples, digests: Sequence[bytes]) -> None:
    """Take over what somebody who read all samples, preprocessed, has found, if it is of the rows as they are stored.

    So it is where nothing is done to them, and the first one's digest, of its bytes with their dtype and shape, is that
    of the row: all rows of a file have one dtype. Of a file that is not mapped it is not worth finding out.
    """
    reader = samples.reader
    if samples.preprocess != Preprocess() or not isinstance(reader, ArrayFiles) or len(reader.files) != 1:
        return
    if digests and NPY_KEY in reader.keys.values() and digests_of_rows(reader.samples_at([0])) == [digests[0]]:
        _MET[:] = [(reader, list(digests))]


def in_content_order(samples: Samples) -> Samples:
    """The same samples in the order of their digests.

    Raises:
        DataError: they cannot be read.
    """
    met = [digests for reader, digests in _MET if reader is samples.reader]
    digests = met[0] if met else samples.reader.digests()
    order = sorted(range(len(digests)), key=digests.__getitem__)
    ordered = ContentOrder(samples.reader, tuple(order), tuple(digests[index] for index in order))
    return replace(samples, reader=ordered)


def first_of(samples: Samples, num: int) -> Samples:
    """The first of samples that are in that order."""
    reader = samples.reader
    if not isinstance(reader, ContentOrder):
        raise TypeError("the samples are not in the order of their content")
    return replace(
        samples, reader=replace(reader, order=reader.order[:num], sorted_digests=reader.sorted_digests[:num])
    )
