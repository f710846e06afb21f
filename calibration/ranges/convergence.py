"""How ranges converge as samples are added: are there enough of them?

After 1, 2, 4, ... samples, and after all, a range is read from the histograms so far of up to 16 tensors, evenly spaced
among all; it is compared to the tensor's range after all samples. Reading by ``entropy`` or ``mse`` at every point
would cost a tenth of a calibration, so for these the 99.99th percentile of |x| is read instead, which follows the same
tail; ``minmax`` and ``percentile`` are read as they are.

The curve depends on the order of the samples, as ranges do not; so it is a file of its own beside them,
``settling.json``, that merging leaves out and no digest covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from calibration.histogram.histogram import Histogram
from calibration.histogram.methods import amax_percentile
from calibration.histogram.quantiles import median, quantile_above
from calibration.ranges.ranges import RangeMethod
from calibration.ranges.side_file import read_side_file, write_side_file
from calibration.ranges.span import CONVERGENCE_FILE

NUM_TENSORS = 16
PROXY_PERCENTILE = 99.99
TOLERANCE = 0.1
"""A range within a tenth of the last one has converged: a step wider by a tenth costs 0.8 dB, a seventh of a bit."""
SHARE = 0.9
"""So many of the tensors have to."""
MOST_OF = Fraction(2, 3)
"""The samples after that, a third at least, confirm it."""
LEAST_SAMPLES = 16
"""With fewer, the others are too few to confirm anything."""


@dataclass(frozen=True)
class Point:
    """The ranges after some samples, against those after all."""

    num_samples: int
    median_change: float
    """Median over the tensors of |range - last range| / last range."""
    most_change: float
    """What nine of ten tensors are within."""


@dataclass(frozen=True)
class Convergence:
    """The curve, and what follows from it."""

    reading: str
    """How the ranges were read: ``minmax``, or ``percentile`` with its number."""
    tensors: tuple[str, ...]
    points: tuple[Point, ...]
    """In order of samples; the last is after all, with no change."""
    settled_at: int | None
    """The fewest samples from which on nine of ten tensors stay within a tenth; None where these are more than two
    thirds of all, so that too few are left to confirm it."""

    @property
    def num_samples(self) -> int:
        """All samples."""
        return self.points[-1].num_samples

    def sentence(self) -> str:
        """For a person."""
        if self.settled_at is not None:
            return (
                f"ranges converged after {self.settled_at} of {self.num_samples} samples (nine of ten tensors "
                f"stay within {TOLERANCE:.0%})"
            )
        late = [point for point in self.points if point.num_samples <= MOST_OF * self.num_samples]
        if self.num_samples < LEAST_SAMPLES or not late:
            return f"{self.num_samples} samples are too few to tell whether ranges converged; add samples"
        return (
            f"ranges had not converged at {self.num_samples} samples: those of a tenth of the tensors were off by "
            f"{late[-1].most_change:.0%} or more at {late[-1].num_samples}; add samples"
        )


class ConvergenceTracker:
    """Keeps the ranges after 1, 2, 4, ... samples: an observer of ``calibration.histogram.collect``."""

    def __init__(self, method: RangeMethod, percentile: float) -> None:
        """``percentile`` counts for the method of that name, percent."""
        self._percentile = {"minmax": 100.0, "percentile": percentile}.get(method, PROXY_PERCENTILE)
        self._tensors: tuple[str, ...] = ()
        self._ranges: list[tuple[int, list[float]]] = []

    def begun(self) -> tuple[int, Mapping[str, Histogram]]:
        """With nothing."""
        return 0, {}

    def is_due(self, num_samples: int) -> bool:
        """At the next power of two, or with larger batches where it is first passed."""
        return num_samples >= (1 << self._ranges[-1][0].bit_length() if self._ranges else 1)

    def on_part(self, num_samples: int, histograms: Mapping[str, Histogram]) -> bool:
        """Read the ranges after so many samples."""
        if not self._tensors:
            names = list(histograms)
            num = min(NUM_TENSORS, len(names))
            self._tensors = tuple(names[i * len(names) // num] for i in range(num))
        self._ranges.append((num_samples, [self._read(histograms[name]) for name in self._tensors]))
        return True

    def record(self) -> dict[str, Any]:
        """What ``resume`` goes on from, as JSON takes it."""
        return {"tensors": list(self._tensors), "ranges": [[num, *row] for num, row in self._ranges]}

    def resume(self, record: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            KeyError, TypeError, ValueError: it is no such record.
        """
        self._tensors = tuple(map(str, record["tensors"]))
        self._ranges = [(int(num), [float(value) for value in row]) for num, *row in record["ranges"]]

    def _read(self, histogram: Histogram) -> float:
        if self._percentile == 100 or not histogram.num_values:
            return histogram.amax
        return amax_percentile(histogram, self._percentile)

    def convergence(self, num_samples: int, histograms: Mapping[str, Histogram]) -> Convergence:
        """The whole curve, given the histograms of all samples."""
        if not self._ranges or self._ranges[-1][0] != num_samples:
            self.on_part(num_samples, histograms)
        ranges = np.array([row for _, row in self._ranges])
        last = ranges[-1]
        moving = last > 0
        changes = (
            np.abs(ranges[:, moving] - last[moving]) / last[moving] if moving.any() else np.zeros((len(ranges), 1))
        )
        points = tuple(
            Point(num, median(row), quantile_above(row, SHARE)) for (num, _), row in zip(self._ranges, changes)
        )
        reading = "minmax" if self._percentile == 100 else f"percentile {self._percentile:g}"
        return Convergence(reading, self._tensors, points, _settled_at(points))


def _settled_at(points: tuple[Point, ...]) -> int | None:
    num_samples = points[-1].num_samples
    settled = num_samples
    for point in reversed(points):
        if point.most_change > TOLERANCE:
            break
        settled = point.num_samples
    return settled if num_samples >= LEAST_SAMPLES and settled <= MOST_OF * num_samples else None


def write_convergence(convergence: Convergence, folder: Path) -> None:
    """Write its file into a folder of ranges."""
    write_side_file(folder / CONVERGENCE_FILE, asdict(convergence))


def convergence_from_folder(folder: Path) -> Convergence | None:
    """Read it; None where there is none, as beside merged or imported ranges.

    Raises:
        DataError: the file is damaged.
    """
    return read_side_file(folder / CONVERGENCE_FILE, _convergence)


def _convergence(record: dict[str, Any]) -> Convergence:
    points = tuple(
        Point(int(row["num_samples"]), float(row["median_change"]), float(row["most_change"]))
        for row in record["points"]
    )
    values = {row.name: record[row.name] for row in fields(Convergence)}
    convergence = Convergence(**{**values, "tensors": tuple(map(str, record["tensors"])), "points": points})
    if not points or not (convergence.settled_at is None or isinstance(convergence.settled_at, int)):
        raise ValueError("no points, or no number of samples")
    return convergence
