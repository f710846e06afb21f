"""How far the numbers of one output are from the reference's, element by element."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.analysis.sqnr import sqnr_db
from calibration.arrays import AnyArray, Floats

WEAK = 0.01
"""Of the mean power of an output: a batch with less, as of pictures in which nothing is detected, is all but zero, and
rounding alone would decide its direction."""
BLOCK = 1 << 16
"""Elements that are looked at together: twice 64 bits of each stay in a core's cache."""


@dataclass(frozen=True)
class Element:
    """One element of an output."""

    index: tuple[int, ...]
    """Of the sample, then within it."""
    reference: float
    candidate: float

    def words(self) -> str:
        """Where it is, and both values."""
        at = ", ".join(map(str, self.index))
        return f"at [{at}] it is {self.candidate:.6g}, and {self.reference:.6g} of the reference"


@dataclass
class Difference:
    """Of one output over all samples; of each batch, how many samples it has and its sums of squares."""

    atol: float
    rtol: float
    num_samples: list[int] = field(default_factory=list)
    signals: list[float] = field(default_factory=list)
    noises: list[float] = field(default_factory=list)
    is_within: bool = True
    """Every element is within ``atol``, or within ``rtol`` of the reference's, as Polygraphy's elementwise check."""
    max_abs: float = -math.inf
    """Largest absolute difference; inf where something is no number."""
    worst: Element = Element((), math.nan, math.nan)
    """The first with that difference."""
    _absolutes: float = 0.0
    _num_elements: int = 0

    def add(self, want: AnyArray, have: AnyArray) -> None:
        """A batch of both, of the same shape (samples, ...)."""
        begin, signal, noise = sum(self.num_samples), 0.0, 0.0
        for start, expected, actual in _blocks(want, have):
            distance = np.abs(np.subtract(actual, expected))
            signal += _power(expected)
            most = float(distance.max(initial=-math.inf))
            if not math.isfinite(most) and distance.size:
                distance[~np.isfinite(distance)] = most = math.inf
            noise += _power(distance)
            if most > self.max_abs:
                self.max_abs = most
                at = np.unravel_index(start + int(distance.argmax()), want.shape)
                row, *others = map(int, at)
                self.worst = Element((begin + row, *others), float(want[at]), float(have[at]))
            if most > self.atol and self.is_within:
                self.is_within = bool(((distance <= self.atol) | (distance <= self.rtol * np.abs(expected))).all())
            self._absolutes += float(distance.sum())
            self._num_elements += distance.size
        self.num_samples.append(len(want))
        self.signals.append(signal)
        self.noises.append(noise)

    def mean_abs(self) -> float:
        """Mean absolute difference; inf where something is no number."""
        return self._absolutes / max(self._num_elements, 1)

    def sqnr_db(self) -> float:
        """Power of the reference to that of the difference, over all samples, dB."""
        return sqnr_db(sum(self.signals), sum(self.noises))

    def cosines(self, of_batches: Sequence[float]) -> list[float]:
        """Those of the batches; of weak ones at least what their noise would be beside a signal of ``WEAK``.

        Noise that is orthogonal to it and of so many times its power leaves a cosine of 1 / sqrt(1 + times).
        """
        least = [num * WEAK * sum(self.signals) / sum(self.num_samples) for num in self.num_samples]
        return [
            cosine if signal >= weak else max(cosine, 1 / math.sqrt(1 + noise / weak))
            for cosine, signal, noise, weak in zip(of_batches, self.signals, self.noises, least, strict=True)
        ]


def _power(values: Floats) -> float:
    """Sum of squares; not by BLAS, whose threads cost more to start than a block takes."""
    return float(np.einsum("i,i->", values, values))


def _blocks(want: AnyArray, have: AnyArray) -> Iterator[tuple[int, Floats, Floats]]:
    """Parts of both, flat and in 64 bits, and where each begins."""
    expected, actual = np.ravel(want), np.ravel(have)
    for start in range(0, expected.size, BLOCK):
        end = start + BLOCK
        yield start, expected[start:end].astype(np.float64), actual[start:end].astype(np.float64)
