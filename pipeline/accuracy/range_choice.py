"""Choose each tensor's range by what the network answers: the race of ``calibration.analysis.range_choice``, run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx

from calibration.analysis.adjustable import AdjustableNetwork
from calibration.analysis.range_choice import (
    ROUNDS,
    CandidateResult,
    PlacementChoice,
    RangeCandidate,
    RangeChoice,
    SampleRatios,
    candidates,
    race,
    sample_sqnr_db,
)
from calibration.arrays import AnyArray, Floats
from calibration.data.source import spread_order
from calibration.graph.answers import answer_tensors
from calibration.graph.watched_outputs import watch_tensors
from calibration.histogram.methods import Method
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.ranges.ranges import AUTO, RangesRecord, spans_from_ranges
from pipeline.engine_runner import SampleRunner, Sessions
from pipeline.machine.progress import counting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnsweredSamples:
    """Calibration samples, and what FP32 answers to some of them."""

    rows: Sequence[Mapping[str, AnyArray]]
    """Batches of one."""
    answers: Mapping[int, Mapping[str, AnyArray]]
    """Index of a row -> its ``calibration.graph.answers.answer_tensors``; of the others, FP32 is run again."""


def chosen_ranges(
    ranges: RangesRecord,
    model: onnx.ModelProto,
    samples: AnsweredSamples,
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
    spans = [spans_from_ranges(ranges.read_by(AUTO, candidate.methods)) for candidate in racing]
    judge = _Judge(sessions, watched, samples, answers)
    methods: dict[str, Mapping[str, Method]] = {}
    placements = []
    for target in targets:
        options = PlacementOptions(target, arithmetic="u8s8")
        network = AdjustableNetwork(watched, options, by_entropy, inputs="integers")
        if network.num_tensors:
            feeds = [network.feed(each) for each in spans]
            what = f"choice of the reading for {target}, samples"
            with sessions.apart() as apart, counting(what, len(samples.rows)) as on_sample:
                run = apart.simulated(network.model)
                del network  # Its weights are in the session.
                end = race(len(racing), len(samples.rows), judge.ratios_of(run, feeds, on_sample))
            winner = racing[end.winner]
            methods[target] = winner.methods
            placements.append(PlacementChoice(target, winner.name, results_of(racing, end.ratios)))
    if not placements:
        return ranges.read_by(AUTO, {}), None
    choice = RangeChoice(tuple(answers), tuple(placements))
    log.info("%s", choice.sentence())
    return ranges.read_by(AUTO, methods[placements[0].target], methods), choice


def results_of(racing: Sequence[RangeCandidate], ratios: Sequence[Floats]) -> tuple[CandidateResult, ...]:
    """How each candidate ended; ``ratios``: of each, those of the samples that it was run on."""
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
    """FP32's answers, for which it is opened only where they are not known."""

    def __init__(
        self, sessions: Sessions, model: onnx.ModelProto, samples: AnsweredSamples, answers: Sequence[str]
    ) -> None:
        order = spread_order(len(samples.rows), ROUNDS)
        self._samples, self._answers = [samples.rows[index] for index in order], answers
        self._expected = {
            place: samples.answers[index] for place, index in enumerate(order) if index in samples.answers
        }
        self._open = partial(sessions.opened, model)

    @cached_property
    def _exact(self) -> SampleRunner:
        return self._open()

    def ratios_of(
        self, run: SampleRunner, feeds: Sequence[Mapping[str, AnyArray]], on_sample: Callable[[int], object]
    ) -> SampleRatios:
        """The SQNR of a network's answers with these inputs, dB; 0 for a sample that has none."""

        def ratios(index: int, which: range) -> Floats:
            on_sample(which.stop)
            return np.array([self._ratio(run, sample, feeds[index]) or 0.0 for sample in which])

        return ratios

    def _ratio(self, run: SampleRunner, sample: int, feed: Mapping[str, AnyArray]) -> float | None:
        if sample not in self._expected:
            self._expected[sample] = self._answer(self._exact, sample, {})
        return sample_sqnr_db(self._expected[sample], self._answer(run, sample, feed))

    def _answer(self, run: SampleRunner, sample: int, feed: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        outputs = run({**self._samples[sample], **feed})
        return {name: outputs[name] for name in self._answers}
