"""How fast each set of layers in float is, of those that mixed precision judged: in turns, on this CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calibration.data.batches import Samples
from calibration.data.source import spread
from calibration.graph.external_data import model_from_file
from calibration.precision.placement import PlacementOptions
from calibration.ranges.ranges import spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from engines import module_of
from pipeline.artifact import FrontierTimes, Mixture, OnnxModel, Ranges
from pipeline.engine_runner import SIMULATOR, few, fixed_batch, padded
from pipeline.latency.placement_times import TimedModels, race
from pipeline.machine.packages import cpu_versions, distribution_versions

FILE = "frontier.json"
MOST_TIMED = 16
"""Sets of layers, evenly spread; FP32 beside them."""


@dataclass(frozen=True)
class MeasuredFrontier:
    """CPU times of one sample, on one thread."""

    made_on: dict[str, str]
    """The CPU with its instructions, and ONNX Runtime's version."""
    fp32_ms: float
    ms: tuple[float | None, ...]
    """Of each set that was judged, in the order of the mixture's points; None where it was not timed."""


@dataclass(frozen=True)
class TimeFrontier:
    """Time the judged sets in ONNX Runtime, as it optimizes them; a measurement of this machine."""

    options: PlacementOptions
    """Where INT8 is placed."""

    def versions(self, *_inputs: object) -> dict[str, str]:
        """What the result depends on: also the CPU."""
        return {**distribution_versions("numpy", "onnx", "onnx-ir"), **cpu_versions()}

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(SIMULATOR),)

    def __call__(
        self, out: Path, model: OnnxModel, ranges: Ranges, samples: Samples, mixture: Mixture
    ) -> FrontierTimes:
        """Write ``out/frontier.json``, a ``MeasuredFrontier``.

        Raises:
            DataError: a tensor that is placed has no range.
            ModelError, EngineError: the model cannot be quantized, or not run.
        """
        spans = spans_from_ranges(ranges_from_folder(ranges.path).read_for(self.options.target))
        sets = mixture.read()["sets"]
        chosen = _timed(sets)
        with tempfile.TemporaryDirectory(prefix="trtforge-") as folder, ExitStack() as stack:
            models = TimedModels(Path(folder), model_from_file(model.path), spans, self.options)
            placed = (models.placed(frozenset(sets[index]), stack) for index in chosen)
            runners = [models.fp32(stack), *placed]
            times = race(runners, padded(next(few(samples, 1)), fixed_batch(runners[0])))
        fp32, *others = (round(float(np.median(row)) * 1e3, 5) for row in times)
        by_index = dict(zip(chosen, others, strict=True))
        measured = MeasuredFrontier(cpu_versions(), fp32, tuple(by_index.get(index) for index in range(len(sets))))
        (out / FILE).write_text(json.dumps(asdict(measured), indent=1))
        return FrontierTimes(out / FILE)


def _timed(sets: Sequence[Sequence[str]]) -> list[int]:
    """Which are timed: each number of nodes once, evenly spread where there are too many."""
    by_size = {len(each): index for index, each in enumerate(sets)}
    indices = [by_size[size] for size in sorted(by_size)]
    return [indices[row] for row in spread(len(indices), min(len(indices), MOST_TIMED))]
