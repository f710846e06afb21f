"""Where a long calibration goes on from if it is interrupted: ranges of the samples so far, kept once a minute.

A checkpoint is a folder. In it, named by the number of samples, are folders of ranges (``calibration.ranges``), each
with ``progress.json``: what was read on the way. They are written aside, brought to the disk and renamed, so that none
is ever half there. The folder is named by all that the result depends on; its lock says that somebody works there.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from calibration.errors import DataError
from calibration.histogram.histogram import Histogram
from calibration.ranges.convergence import ConvergenceTracker
from calibration.ranges.folder_lock import FolderLock
from calibration.ranges.ranges import Origin, ranges_from_histograms
from calibration.ranges.ranges_file import histograms_from_folder, write_ranges
from calibration.ranges.side_file import read_side_file, write_side_file
from calibration.ranges.stop import StopRule

SECONDS, TIMES_ITS_OWN = 60.0, 30
"""From one to the next, and to the first: what takes less is begun anew. At least so many times what the last took."""
PREFIX, PROGRESS_FILE = ".calibrate-", "progress.json"

logger = logging.getLogger(__name__)


class Checkpoint:
    """The folder of one calibration. It is made when the first ranges are kept, and not used while another has it."""

    def __init__(
        self, parent: Path, key: Callable[[], str], origin: Origin, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``key``: a word for all that the result depends on; ``origin``: of the calibration's ranges."""
        self._parent, self._key, self._origin, self._clock = parent, key, origin, clock
        self._next = clock() + SECONDS

    @cached_property
    def _folder(self) -> Path:
        return self._parent / f"{PREFIX}{self._key()}"

    @cached_property
    def _lock(self) -> FolderLock:
        return FolderLock(self._folder)

    def is_due(self) -> bool:
        """A minute after the last one."""
        return self._clock() >= self._next

    def load(self, resume: Callable[[Mapping[str, Any], Mapping[int, Mapping[str, Histogram]]], None]) -> int:
        """Give the latest progress that is whole, and the histograms by number of samples; the latest number, or 0."""
        if not any(self._parent.glob(f"{PREFIX}*")) or not self._folder.is_dir() or not self._lock.is_ours():
            return 0
        for path in self._folder.glob("work-*"):
            shutil.rmtree(path, ignore_errors=True)
        for num in reversed(numbers := self._numbers()):
            try:
                progress = read_side_file(self._folder / str(num) / PROGRESS_FILE, dict)
                needed = [num, *(progress or {}).get("needed", ())]
                parts = {end: histograms_from_folder(self._folder / str(end)) for end in numbers if end in needed}
                if progress is not None:
                    resume(progress, parts)
                    logger.info("%s: goes on after %d samples", self._folder, num)
                    return num
            except (DataError, KeyError, TypeError, ValueError) as error:
                logger.warning("%s: is left out, begun before it (%s)", self._folder / str(num), error)
        return 0

    def save(self, parts: Mapping[int, Mapping[str, Histogram]], progress: Mapping[str, Any]) -> None:
        """Keep histograms by number of samples, with what was read on the way to the last; others are removed."""
        begin = self._clock()
        try:
            self._folder.mkdir(exist_ok=True)
            if self._lock.is_ours():
                there = set(self._numbers())
                for num in sorted(parts):
                    if num not in there or num == max(parts):
                        self._write(num, parts[num], {**progress, "needed": sorted(parts)})
                for num in there - set(parts):
                    shutil.rmtree(self._folder / str(num), ignore_errors=True)
        except OSError as error:
            logger.warning("%s: the calibration so far cannot be kept (%s)", self._folder, error)
        end = self._clock()
        self._next = end + max(SECONDS, TIMES_ITS_OWN * (end - begin))

    def close(self, *, is_done: bool) -> None:
        """Let others have it; what is done needs it no more."""
        if "_lock" in vars(self):  # Else it was never asked for, and has no name yet.
            self._lock.close(is_done=is_done)

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def _write(self, num: int, histograms: Mapping[str, Histogram], progress: Mapping[str, Any]) -> None:
        target = self._folder / str(num)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="work-") as text:
            work = Path(text, "ranges")
            work.mkdir()
            origin = replace(self._origin, num_samples=num)
            write_ranges(ranges_from_histograms(histograms, "minmax", 100.0, origin), histograms, work)
            write_side_file(work / PROGRESS_FILE, progress)
            for path in (*work.iterdir(), work):
                _bring_to_disk(path)
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
        _bring_to_disk(self._folder)


class CalibrationObserver:
    """All that looks at a calibration while it goes on: for ``calibration.histogram.collect``."""

    def __init__(self, tracker: ConvergenceTracker, rule: StopRule | None, checkpoint: Checkpoint) -> None:
        """``rule``: None where all samples are wanted."""
        self.tracker, self.rule, self._checkpoint = tracker, rule, checkpoint
        self._parts: Mapping[int, Mapping[str, Histogram]] = {}

    def begun(self) -> tuple[int, Mapping[str, Histogram]]:
        """What was kept of an interrupted run."""
        num_samples = self._checkpoint.load(self._resume)
        histograms = self._parts[num_samples] if num_samples else {}
        self._parts = {}
        return num_samples, histograms

    def _resume(self, progress: Mapping[str, Any], parts: Mapping[int, Mapping[str, Histogram]]) -> None:
        tracker, rule = copy(self.tracker), copy(self.rule)
        tracker.resume(progress["convergence"])
        if rule is not None:
            rule.resume(progress["stop"], parts)
        self.tracker, self.rule, self._parts = tracker, rule, parts

    def close(self, *, is_done: bool) -> None:
        """Let others have the checkpoint; what is done needs it no more."""
        self._checkpoint.close(is_done=is_done)

    def is_due(self, num_samples: int) -> bool:
        """Where one of the three is."""
        return (
            self.tracker.is_due(num_samples)
            or (self.rule is not None and self.rule.is_due(num_samples))
            or (num_samples > 0 and self._checkpoint.is_due())
        )

    def on_part(self, num_samples: int, histograms: Mapping[str, Histogram]) -> bool:
        """Let those look that are due; whether more samples are wanted."""
        if self.tracker.is_due(num_samples):
            self.tracker.on_part(num_samples, histograms)
        if self.rule is not None and self.rule.is_due(num_samples) and not self.rule.on_part(num_samples, histograms):
            return False
        if self._checkpoint.is_due():
            seen = {} if self.rule is None else self.rule.seen
            progress = {"convergence": self.tracker.record(), "stop": self.rule and self.rule.record()}
            self._checkpoint.save({**seen, num_samples: dict(histograms)}, progress)
        return True


def _bring_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
