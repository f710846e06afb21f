"""Choose each tensor's range by what the network answers: the race of ``calibration.analysis.range_choice``, run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx

from calibration.analysis.adjustable import AdjustableNetwork
from calibration.analysis.range_choice import (
    ROUNDS,
    CandidateResult,
    RangeCandidate,
    RangeChoice,
    candidates,
    race,
    sample_sqnr_db,
)
from calibration.analysis.rounding import steps_feed
from calibration.arrays import AnyArray, Floats
from calibration.data.source import spread_order
from calibration.graph.answers import answer_tensors
from calibration.graph.watched_outputs import watch_tensors
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.ranges.ranges import AUTO, RangesRecord, spans_from_ranges
from engines.contract import Runner
from pipeline.engine_runner import SampleRunner
from pipeline.machine.progress import Bar

SessionOpener: TypeAlias = Callable[[Path], Runner]
"""Opens a session of an ONNX file, to be entered."""

log = logging.getLogger(__name__)


def chosen_ranges(
    ranges: RangesRecord,
    model: onnx.ModelProto,
    samples: Sequence[Mapping[str, AnyArray]],
    targets: Sequence[PlacementTarget],
    load: SessionOpener,
) -> tuple[RangesRecord, RangeChoice | None]:
    """The ranges by the reading that the outputs are nearest to FP32's with, and how it was chosen.

    None where there is nothing to choose: no float output, nothing in INT8, or all readings alike.

    Raises:
        EngineError: the model with rounding in it cannot be run.
    """
    racing, answers = candidates(ranges.tensors), answer_tensors(model)
    with ExitStack() as stack:
        judge = _Judge(stack, watch_tensors(model, answers), answers, targets, load)
        if len(racing) == 1 or not answers or not judge.load(ranges):
            return ranges.read_by(AUTO, {}), None
        spans = [spans_from_ranges(ranges.read_by(AUTO, candidate.methods)) for candidate in racing]
        feeds = [[steps_feed(network.steps(each), None) for network in judge.networks] for each in spans]
        judge.samples = [samples[index] for index in spread_order(len(samples), ROUNDS)]
        bar = Bar("choose ranges", len(samples))
        stack.callback(bar.close)

        def ratios_of(index: int, which: range) -> Floats:
            bar.to(which.stop)
            return np.array([judge.ratio(sample, feeds[index]) for sample in which])

        end = race(len(racing), len(samples), ratios_of)
    winner = racing[end.winner]
    choice = RangeChoice(winner.name, tuple(targets), tuple(answers), _results(racing, end.ratios))
    log.info("%s", choice.sentence())
    return ranges.read_by(AUTO, winner.methods), choice


def _results(racing: Sequence[RangeCandidate], ratios: Sequence[Floats]) -> tuple[CandidateResult, ...]:
    return tuple(
        CandidateResult(
            candidate.name,
            float(each.mean()),
            len(each),
            sum(method != "entropy" for method in candidate.methods.values()),
        )
        for candidate, each in zip(racing, ratios)
    )


class _Judge:
    """FP32 and the adjustable networks, each in a session."""

    def __init__(
        self,
        stack: ExitStack,
        model: onnx.ModelProto,
        answers: Sequence[str],
        targets: Sequence[PlacementTarget],
        load: SessionOpener,
    ) -> None:
        self._stack, self._model, self._answers, self._targets = stack, model, answers, targets
        self._load = load
        self.samples: list[Mapping[str, AnyArray]] = []
        self.networks: list[AdjustableNetwork] = []
        self._expected: dict[int, dict[str, AnyArray]] = {}

    def load(self, ranges: RangesRecord) -> bool:
        """Open all sessions; whether there is anything in INT8."""
        spans = spans_from_ranges(ranges)
        options = [PlacementOptions(target, arithmetic="u8s8") for target in self._targets]
        self.networks = [AdjustableNetwork(self._model, each, spans) for each in options]
        self.networks = [network for network in self.networks if network.num_tensors]
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="trtforge-")))
        self._runs = []
        for index, proto in enumerate([self._model, *(network.model for network in self.networks)]):
            path = folder / f"{index}.onnx"
            onnx.save(proto, path)
            self._runs.append(SampleRunner(self._stack.enter_context(self._load(path))))
        return bool(self.networks)

    def ratio(self, sample: int, feeds: Sequence[Mapping[str, AnyArray]]) -> float:
        """Mean over the placements of a sample's SQNR, dB; 0 where it has none."""
        if sample not in self._expected:
            self._expected[sample] = self._answer(0, sample, {})
        ratios = [
            sample_sqnr_db(self._expected[sample], self._answer(index, sample, feed))
            for index, feed in enumerate(feeds, start=1)
        ]
        return float(np.mean([ratio or 0.0 for ratio in ratios]))

    def _answer(self, index: int, sample: int, feed: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        outputs = self._runs[index]({**self.samples[sample], **feed})
        return {name: outputs[name] for name in self._answers}
