"""The ranges of a calibration with those that the user set in their place, by ``[[quantize.override]]``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from calibration.graph.weightless import skeleton_from_file
from calibration.ranges.override import Override, overridden
from calibration.ranges.ranges import IMPORTED
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, rewrite_ranges
from pipeline.artifact import OnnxModel, Ranges, copy_files
from pipeline.machine.packages import distribution_versions


@dataclass(frozen=True)
class OverrideRanges:
    """Ranges with exceptions; the store can keep them. The calibration need not run again."""

    overrides: tuple[Override, ...]

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("numpy", "onnx")

    def __call__(self, out: Path, model: OnnxModel, ranges: Ranges) -> Ranges:
        """Write ``out/overridden``, a folder of ranges, and ``out/notes.json``, a sentence on each exception.

        Raises:
            DataError: a pattern matches nothing; or a method is set, and the ranges were imported.
        """
        record = ranges_from_folder(ranges.path)
        sets_ranges = any(override.range for override in self.overrides)
        histograms = histograms_from_folder(ranges.path) if sets_ranges and record.method != IMPORTED else {}
        changed, notes = overridden(record, self.overrides, skeleton_from_file(model.path), histograms)
        folder = out / "overridden"
        copy_files(ranges.path, folder)
        rewrite_ranges(changed, folder)
        (out / "notes.json").write_text(json.dumps(notes))
        return Ranges(folder)
