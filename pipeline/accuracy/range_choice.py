"""Choose each tensor's range by what the network answers: the race of ``calibration.analysis.range_choice``, run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

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
from pipeline.engine_runner import Sessions
from pipeline.machine.progress import counting

log = logging.getLogger(__name__)


def chosen_ranges(
    ranges: RangesRecord,
    model: onnx.ModelProto,
    samples: Sequence[Mapping[str, AnyArray]],
    targets: Sequence[PlacementTarget],
    sessions: Sessions,
) -> tuple[RangesRecord, RangeChoice | None]:
    """The ranges by the reading that the outputs are nearest to FP32's with, and how it was chosen.

    None where there is nothing to choose: no float output, nothing in INT8, or all readings alike.

    Raises:
        EngineError: the model with rounding in it cannot be run.
    """
    racing, answers = candidates(ranges.tensors), answer_tensors(model)
    if len(racing) == 1 or not answers:
        return ranges.read_by(AUTO, {}), None
    watched, by_entropy = watch_tensors(model, answers), spans_from_ranges(ranges)
    options = [PlacementOptions(target, arithmetic="u8s8") for target in targets]
    networks = [n for each in options if (n := AdjustableNetwork(watched, each, by_entropy)).num_tensors]
    if not networks:
        return ranges.read_by(AUTO, {}), None
    spans = [spans_from_ranges(ranges.read_by(AUTO, candidate.methods)) for candidate in racing]
    feeds = [[steps_feed(network.steps(each), None) for network in networks] for each in spans]
    ordered = [samples[index] for index in spread_order(len(samples), ROUNDS)]
    judge = _Judge(sessions, [watched, *(network.model for network in networks)], ordered, answers)
    with counting("choice of the reading, samples", len(samples)) as on_sample:

        def ratios_of(index: int, which: range) -> Floats:
            on_sample(which.stop)
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
        sessions: Sessions,
        models: Sequence[onnx.ModelProto],
        samples: Sequence[Mapping[str, AnyArray]],
        answers: Sequence[str],
    ) -> None:
        self._runs = [sessions.opened(model) for model in models]
        self._samples, self._answers = samples, answers
        self._expected: dict[int, dict[str, AnyArray]] = {}

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
        outputs = self._runs[index]({**self._samples[sample], **feed})
        return {name: outputs[name] for name in self._answers}
