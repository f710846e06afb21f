"""Labelled samples of several data sets in one order: each once, evenly spread at every length, read as needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from calibration.arrays import AnyArray
from calibration.data.batches import Samples
from calibration.data.source import spread_order
from calibration.lint.survey import NUM_AT_A_TIME, Survey

FIRST = 16
"""After so many samples the answers are looked at first, and again after each doubling."""


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """A data set with class labels, of one input."""

    samples: Samples
    survey: Survey
    right: Sequence[bool] = ()
    """Whether the model is right on each sample, where it has answered already; else empty."""

    def distinct(self, seen: set[bytes]) -> list[int]:
        """Each sample that is no copy of one in ``seen``, in an order in which the first ones are spread evenly.

        Those that the survey keeps in memory come first.
        """
        in_memory = set(self.survey.probed)
        others = [index for index in range(self.survey.num_samples) if index not in in_memory]
        order: list[int] = []
        for part in (list(self.survey.probed), others):
            for at in spread_order(len(part), lengths(len(part))):
                if self.survey.hashes[part[at]] not in seen:
                    seen.add(self.survey.hashes[part[at]])
                    order.append(part[at])
        return order


class LabelledPool:
    """The samples that a question is put to, numbered in the order in which they are asked.

    A copy of a sample counts for none: an exact test takes answers as independent.
    """

    def __init__(self, sets: Sequence[LabelledSet], limit: int) -> None:
        """Of all sets in proportion, ``limit`` samples at most. Copies count for the last of the sets."""
        self.sets = sets
        seen: set[bytes] = set()
        placed = []
        for number in reversed(range(len(sets))):
            order = sets[number].distinct(seen)
            placed += [((rank + 0.5) / len(order), number, index) for rank, index in enumerate(order)]
        self._places = [(number, index) for _, number, index in sorted(placed)[:limit]]

    def __len__(self) -> int:
        """All samples."""
        return len(self._places)

    def labels(self) -> list[int]:
        """Of every sample."""
        return [int((self.sets[number].survey.labels)[index]) for number, index in self._places]  # type: ignore[index]

    def members(self) -> list[tuple[int, ...]]:
        """The samples of each set."""
        return [
            tuple(at for at, (place, _) in enumerate(self._places) if place == number)
            for number in range(len(self.sets))
        ]

    def known(self) -> dict[int, bool]:
        """Whether the model is right on a sample, for those on which it has answered."""
        places = enumerate(self._places)
        return {at: self.sets[each].right[index] for at, (each, index) in places if self.sets[each].right}

    def read(self, wanted: Iterable[int]) -> Iterator[tuple[int, AnyArray]]:
        """Samples without the batch axis, by number; in any order. A pass over a set that is not all in memory."""
        by_set: dict[int, dict[int, int]] = {}
        for at in wanted:
            number, index = self._places[at]
            by_set.setdefault(number, {})[index] = at
        for number, remaining in by_set.items():
            yield from self._kept(number, remaining)
            if remaining:
                yield from self._passed(number, remaining)

    def _kept(self, number: int, remaining: dict[int, int]) -> Iterator[tuple[int, AnyArray]]:
        survey = self.sets[number].survey
        (values,) = survey.inputs.values()
        for index, sample in zip(survey.probed, values.probe):
            if index in remaining:
                yield remaining.pop(index), sample

    def _passed(self, number: int, remaining: dict[int, int]) -> Iterator[tuple[int, AnyArray]]:
        start = 0
        for piece in self.sets[number].samples.pieces(NUM_AT_A_TIME):
            (array,) = piece.values()
            for row in range(len(array)):
                if start + row in remaining:
                    yield remaining.pop(start + row), array[row]
            if not remaining:
                return
            start += len(array)


def lengths(num: int) -> list[int]:
    """How many samples are asked before each look: 16, 32, 64, … and all."""
    ends = []
    end = FIRST
    while 3 * end < 2 * num:  # Two looks that are nearly one would cost significance for nothing.
        ends.append(end)
        end *= 2
    return [*ends, num] if num else []
