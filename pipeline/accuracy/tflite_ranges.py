"""Choose the readings of a `.tflite` file's ranges by what its INT8 answers: the race, run with real INT8 files.

The ONNX models' race (``pipeline.accuracy.range_choice``) rounds in floating point, where a placement says so. Here
each candidate's file is written and run: it takes a moment, and what runs is what will run.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from calibration.analysis.range_choice import (
    LEAST_SAMPLES,
    ROUNDS,
    PlacementChoice,
    RangeChoice,
    candidates,
    race,
    sample_sqnr_db,
)
from calibration.arrays import AnyArray, Floats
from calibration.data.source import spread, spread_order
from calibration.histogram.histogram import Histogram
from calibration.histogram.methods import Method
from calibration.precision.scale import limits
from calibration.ranges.means import ChannelMeans, channel_means
from calibration.ranges.ranges import (
    AUTO,
    Origin,
    RangeMethod,
    RangesRecord,
    methods_in,
    ranges_from_histograms,
    spans_from_ranges,
)
from engines.backends import litert
from engines.litert.quantizer import TfliteFormat, quantized
from engines.precision import INT8
from pipeline.accuracy.range_choice import results_of
from pipeline.engine_runner import SampleFeeds, SampleRunner, load_model
from pipeline.machine.progress import counting

log = logging.getLogger(__name__)


@dataclass(eq=False)
class TfliteReader:
    """Reads the ranges of a `.tflite` file from its histograms, and where no reading was named chooses among them."""

    how: tuple[RangeMethod, float]
    """The method, and the percentile."""
    model: Path
    samples: Sequence[Mapping[str, AnyArray]]
    """Those that the choice is made on: they may still be added to."""
    num_threads: int
    _last: tuple[dict[str, int], RangesRecord, RangeChoice | None] | None = None

    def __post_init__(self) -> None:
        """Raise EngineError if it is not FP32: there is nothing to calibrate then."""
        litert.check_float(self.model)

    def methods_of(self, histograms: Mapping[str, Histogram]) -> dict[str, list[Method]]:
        """Of each tensor how it is read: the range of each becomes a scale of INT8."""
        ranges, _ = self.read(histograms, Origin("", "", 0))
        return {name: methods_in(ranges.tensors[name]) for name in histograms}

    def read(self, histograms: Mapping[str, Histogram], origin: Origin) -> tuple[RangesRecord, RangeChoice | None]:
        """The ranges, and how they were chosen; of the histograms that it had last, without doing it again."""
        sizes = {name: histogram.num_values for name, histogram in histograms.items()}
        if self._last is None or self._last[0] != sizes:
            ranges, choice = ranges_from_histograms(histograms, *self.how, origin).with_means(self._means), None
            if self.how[0] == AUTO:
                ranges, choice = chosen_tflite_ranges(ranges, self.model, self.samples, self.num_threads)
            self._last = sizes, ranges, choice
        _, ranges, choice = self._last
        return replace(ranges, origin=origin), choice

    @cached_property
    def _means(self) -> ChannelMeans:
        """Of the channels, which stand last, of what convolutions and dense layers read, on a few of the samples."""
        axes = {each.data.name: -1 for each in litert.tflite_facts(self.model).products if each.data is not None}
        few = [self.samples[index] for index in spread(len(self.samples), LEAST_SAMPLES)]
        with SampleFeeds(litert.load_values(self.model, num_threads=self.num_threads)) as runner:
            return channel_means(SampleRunner(runner), few, axes)


def chosen_tflite_ranges(
    ranges: RangesRecord, model: Path, samples: Sequence[Mapping[str, AnyArray]], num_threads: int
) -> tuple[RangesRecord, RangeChoice | None]:
    """The ranges by the reading with which INT8's outputs are nearest to FP32's, and how it was chosen.

    None where all readings are alike.

    Raises:
        Unavailable: ai-edge-quantizer is not installed.
        EngineError: INT8 cannot be written, or not run.
    """
    racing = candidates(ranges.tensors)
    if len(racing) == 1:
        return ranges.read_by(AUTO, {}), None
    ordered = [samples[index] for index in spread_order(len(samples), ROUNDS)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtforge-")))
        files = [model]
        for number, candidate in enumerate(racing):
            spans = spans_from_ranges(ranges.read_by(AUTO, candidate.methods))
            bounds = {name: limits(span) for name, span in spans.items()}
            files.append(folder / f"{number}{litert.SUFFIX}")
            files[-1].write_bytes(quantized(model, TfliteFormat(INT8), bounds))
        runs = [SampleRunner(stack.enter_context(load_model(file, litert.NAME, num_threads))) for file in files]
        on_sample = stack.enter_context(counting(f"choice of the reading for {litert.NAME}, samples", len(ordered)))
        expected = [runs[0](sample) for sample in ordered]

        def ratios_of(index: int, which: range) -> Floats:
            on_sample(which.stop)
            ratios = (sample_sqnr_db(expected[n], runs[index + 1](ordered[n])) for n in which)
            return np.array([ratio or 0.0 for ratio in ratios])

        end = race(len(racing), len(ordered), ratios_of)
    winner = racing[end.winner]
    placement = PlacementChoice(litert.NAME, winner.name, results_of(racing, end.ratios))
    choice = RangeChoice(tuple(expected[0]), (placement,))
    log.info("%s", choice.sentence())
    return ranges.read_by(AUTO, winner.methods), choice
