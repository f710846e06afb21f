"""When a calibration may stop: what is still to come could move no range by more than a stated share.

Samples come in the order of their SHA-256 (``calibration.data.content_order``), so that those seen are a random sample
of all. After an eighth, a quarter and a half of them, those seen are cut into eight equal sections, each range is read
from the histogram of each section as from that of all seen, and calibration ends if no section's range of any tensor is
further from that of all seen than the stated share.

Why that says what it says: a section is at most an eighth of what was seen, and what was seen is at least an eighth of
all. So the step from what was seen to all is no larger than the eight steps, from a section to what was seen, that were
all within the share. Of a reading whose error is nearly normal, as those of many values are, it is also quieter, by the
root of eight (sections of a run: Schmeiser, "Batch Size Effects in the Analysis of Simulation Output", 1982; Asmussen
and Glynn, "Stochastic Simulation", 2007, III.5): whatever its spread, eight sections are within the share and all
samples' range is not with a probability of at most 0.0003 at the first look, 0.0002 at the second and 0.00005 at the
third. By Bonferroni that is 5 percent for 98 tensors, each with the spread that is worst for it. Readings that can jump
are not normal: entropy's threshold goes from one of two nearly equal minima to the other, and the largest of all
samples is as likely in any of them. So their sections have to be within half of the share.

What it rests on: SHA-256 says nothing of a range; and the samples that are there are what is asked about, not others.
It can miss what a single sample in a thousand brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from calibration.histogram.histogram import Histogram, widened
from calibration.histogram.methods import READINGS, Method, amax_percentile
from calibration.ranges.side_file import read_side_file, write_side_file

NUM_SECTIONS = 8
LOOKS = (8, 4, 2)
"""A look is taken after one in so many samples."""
LEAST_OF_SECTION = 8
"""Samples; a look at smaller sections is left out."""
CONFIDENCE = 0.95
JUMPING: frozenset[Method] = frozenset({"entropy", "minmax"})
"""Readings that can jump: their sections have to be within half of the share. Measured: of a keyword spotter's orders
whose sections were within 0.4 by entropy, all samples' range was off by 0.5 in each seventh."""
STOP_FILE = "stop.json"

MethodsOf: TypeAlias = Callable[[Mapping[str, Histogram]], Mapping[str, Sequence[Method]]]
"""From the histograms so far to the readings of each tensor that are to be steady."""


@dataclass(frozen=True)
class SectionsLook:
    """What was seen of the sections."""

    num_samples: int
    tensor: str
    """Whose range differed most; of one that ended the look, the first that differed by more than the share."""
    change: float
    """|range of a section - range of all seen| / range of all seen."""
    allowed: float
    """For its reading: the share, or half of it."""

    @property
    def is_passed(self) -> bool:
        """Whether no section's range of any tensor differed by more."""
        return self.change <= self.allowed


@dataclass(frozen=True)
class Stop:
    """Where a calibration with a stop ended, and why."""

    share: float
    """Within which the ranges of all samples are."""
    confidence: float
    num_samples: int
    """That were given."""
    num_used: int
    looks: tuple[SectionsLook, ...]

    def sentence(self) -> str:
        """For a person."""
        if self.num_used < self.num_samples:
            return (
                f"calibration stopped after {self.num_used} of {self.num_samples} samples: in each eighth of them "
                f"every range is within {self.looks[-1].change:.1%} of its value; those of all samples are within "
                f"{self.share:.1%}, with a confidence of {self.confidence:.0%}"
            )
        used = f"calibration used all {self.num_samples} samples"
        if not self.looks:
            return f"{used}: they are too few to stop before the end"
        last = self.looks[-1]
        return (
            f"{used}: after {last.num_samples} of them the range of '{last.tensor}' differed by {last.change:.1%} in "
            f"an eighth of them, {last.allowed:.1%} was allowed"
        )


class StopRule:
    """Says when it is enough: part of an observer of ``calibration.histogram.collect``."""

    def __init__(self, share: float, samples: tuple[int, int], percentile: float, methods_of: MethodsOf) -> None:
        """``samples``: how many there are, and how many are run together; ``percentile``: of that method."""
        self._share, self._percentile, self._methods_of = share, percentile, methods_of
        self.num_samples = samples[0]
        self._ends = section_ends(*samples)
        self.seen: dict[int, Mapping[str, Histogram]] = {}
        """After so many samples the histograms of all of them, as far as they are still needed."""
        self._looks: list[SectionsLook] = []
        self._at = 0

    def is_due(self, num_samples: int) -> bool:
        """At the end of a section."""
        return num_samples in self._ends and num_samples > self._at

    def on_part(self, num_samples: int, histograms: Mapping[str, Histogram]) -> bool:
        """Keep the histograms, and where it is time take a look; whether more samples are wanted."""
        self._at, size = num_samples, self._ends[num_samples]
        self.seen[num_samples] = dict(histograms)
        if not size:
            return True
        look = self._look(num_samples, [self.seen[end] for end in range(size, num_samples + 1, size)])
        self._looks.append(look)
        is_last = num_samples == max(self._ends)
        self.seen = {end: seen for end, seen in self.seen.items() if not end % (2 * size) and not is_last}
        return not look.is_passed

    def stop(self) -> Stop:
        """How it ended."""
        is_enough = bool(self._looks) and self._looks[-1].is_passed
        num_used = self._looks[-1].num_samples if is_enough else self.num_samples
        return Stop(self._share, CONFIDENCE, self.num_samples, num_used, tuple(self._looks))

    def record(self) -> dict[str, Any]:
        """What ``resume`` goes on from beside the histograms, as JSON takes it."""
        return {"at": self._at, "ends": sorted(self.seen), "looks": [asdict(look) for look in self._looks]}

    def resume(self, record: Mapping[str, Any], seen: Mapping[int, Mapping[str, Histogram]]) -> None:
        """Go on from there.

        Raises:
            KeyError, TypeError, ValueError: it is no such record.
        """
        looks = [SectionsLook(**look) for look in record["looks"]]
        self._at, self._looks, self.seen = int(record["at"]), looks, {int(end): seen[end] for end in record["ends"]}

    def _look(self, num_samples: int, seen: Sequence[Mapping[str, Histogram]]) -> SectionsLook:
        """The largest change, or the first that is too large: most often of a late tensor, which has few values."""
        largest = SectionsLook(num_samples, "", 0.0, self._share)
        for name, methods in reversed(list(self._methods_of(seen[-1]).items())):
            histograms = [each[name] for each in seen if name in each]
            for method in methods:
                allowed = self._share / 2 if method in JUMPING else self._share
                for change in self._changes(histograms, method):
                    if change / allowed > largest.change / largest.allowed:
                        largest = SectionsLook(num_samples, name, change, allowed)
                    if not largest.is_passed:
                        return largest
        return largest

    def _changes(self, seen: Sequence[Histogram], method: Method) -> Iterator[float]:
        """Of a tensor's range in each section; of one that is 0 throughout, none."""
        if (whole := self._read(seen[-1], method)) > 0:
            for index, histogram in enumerate(seen):
                section = difference(histogram, seen[index - 1]) if index else histogram
                yield abs(self._read(section, method) - whole) / whole

    def _read(self, histogram: Histogram, method: Method) -> float:
        if not histogram.num_values:
            return 0.0
        return amax_percentile(histogram, self._percentile) if method == "percentile" else READINGS[method](histogram)


def section_ends(num_samples: int, batch_size: int) -> dict[int, int]:
    """Samples after which the histograms are needed -> size of the sections of the look that is taken then, or 0."""
    unit = -(-num_samples // (LOOKS[0] * NUM_SECTIONS * batch_size)) * batch_size
    ends: dict[int, int] = {}
    for look in LOOKS:
        size = unit * LOOKS[0] // look
        if size >= LEAST_OF_SECTION and NUM_SECTIONS * size < num_samples:
            ends |= {end: 0 for end in range(size, NUM_SECTIONS * size, size) if end not in ends}
            ends[NUM_SECTIONS * size] = size
    return ends


def difference(later: Histogram, earlier: Histogram) -> Histogram:
    """The histogram of the values that the later one has beside the earlier one's, its extremes to a bin."""
    counts = later.counts - widened(earlier, later.exponent)
    filled = np.flatnonzero(counts)
    amax = min((int(filled[-1]) + 1) * later.bin_width, later.amax) if filled.size else 0.0
    return Histogram(
        counts=counts,
        exponent=later.exponent,
        min=max(later.min, -amax),
        max=min(later.max, amax),
        num_zeros=later.num_zeros - earlier.num_zeros,
        num_infinite=later.num_infinite - earlier.num_infinite,
    )


def write_stop(stop: Stop, folder: Path) -> None:
    """Write ``stop.json`` into a folder of ranges."""
    write_side_file(folder / STOP_FILE, asdict(stop))


def stop_from_folder(folder: Path) -> Stop | None:
    """Read ``stop.json``; None where there is none, as beside ranges of a calibration that had none.

    Raises:
        DataError: the file is damaged.
    """
    return read_side_file(folder / STOP_FILE, _stop)


def _stop(record: dict[str, Any]) -> Stop:
    stop = Stop(**{**record, "looks": tuple(SectionsLook(**look) for look in record["looks"])})
    if not 0 < stop.num_used <= stop.num_samples or not (stop.looks or stop.num_used == stop.num_samples):
        raise ValueError(f"{stop.num_used} of {stop.num_samples} samples, {len(stop.looks)} looks")
    return stop
