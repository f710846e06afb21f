"""Run engines that are drawn at random, on more and more samples, until the bounds are known well enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from calibration.analysis.rounding import FloatFeed
from calibration.arrays import AnyArray
from calibration.data.batches import Samples
from calibration.data.source import spread, spread_order
from pipeline.accuracy.drawn_noise import Bound, DrawnNoise
from pipeline.engine_runner import SampleRunner, Sessions, few, num_values_of_sample
from pipeline.machine.progress import Bar


@dataclass(frozen=True)
class Round:
    """Draws and samples after a round; every draw is run on every sample."""

    num_draws: int
    num_samples: int


ROUNDS = (Round(4, 4), Round(8, 8), Round(16, 16), Round(64, 64))
MOST_ERROR_DB = 0.5
"""A bound whose standard error is smaller is known well enough: bounds are some 5 dB below the mean."""
MOST_VALUES = 2e9
"""Values that all draws together compute, unless the first round takes more: some 3 CPU seconds. A network of ImageNet
size has two rounds; the more of them a network is small enough for, the tighter is its bound."""


@dataclass(frozen=True)
class Drawn:
    """A model, and how its further inputs are drawn."""

    run: SampleRunner
    draw: Callable[[np.random.Generator], FloatFeed]


Lot: TypeAlias = Sequence[Drawn]
"""The draws take turns with these."""


@dataclass(frozen=True)
class Draws:
    """The bounds by output, the number of draws that they are from, and the indices of their samples."""

    bounds: Mapping[str, Bound | None]
    num_draws: int
    indices: tuple[int, ...]


class Reference:
    """FP32 on samples, each answered once: for all kinds of engines of a model."""

    def __init__(self, path: Path, samples: Samples) -> None:
        """``path``: the FP32 model."""
        self._path, self._samples = path, samples
        self.num_values = num_values_of_sample(path, samples)
        self.feeds: list[dict[str, AnyArray]] = []
        self._answers: dict[int, Answers] = {}

    def read(self, num: int) -> tuple[int, ...]:
        """Read so many samples, evenly spread; their indices."""
        if len(self.feeds) != num:
            self.feeds, self._answers = list(few(self._samples, num)), {}
        return tuple(spread(self._samples.num_samples, num))

    def answer(self, sample: int, sessions: Sessions) -> Answers:
        """The outputs in floating point for a sample, by its place among those read, of two FP32 runs."""
        if sample not in self._answers:
            first, second = (run(self.feeds[sample]) for run in sessions.of_file_twice(self._path))
            self._answers[sample] = (
                {name: array for name, array in first.items() if array.dtype.kind == "f"},
                second,
            )
        return self._answers[sample]


Answers: TypeAlias = tuple[Mapping[str, AnyArray], Mapping[str, AnyArray]]


class Drawing:
    """Runs FP32 and draws on samples, each pair once."""

    def __init__(self, reference: Reference, sessions: Sessions, seed: int) -> None:
        """A draw depends on the seed and its number alone, not on how many there are."""
        self._reference, self._sessions, self._seed = reference, sessions, seed
        self.num_values, self.read = reference.num_values, reference.read

    def run(self, lot: Lot, noises: dict[str, DrawnNoise], chosen: Sequence[int], draw: int) -> None:
        """Add what is not there yet of these samples, by their place among those read, with this draw."""
        feed = lot[draw % len(lot)].draw(np.random.default_rng([self._seed, draw]))
        for sample in chosen:
            expected = self._reference_of(sample, noises)
            if all((draw, sample) in noise.noise for noise in noises.values()):
                continue
            answered = lot[draw % len(lot)].run({**self._reference.feeds[sample], **feed})
            for name, noise in noises.items():
                noise.add(draw, sample, expected[name], answered[name])

    def _reference_of(self, sample: int, noises: dict[str, DrawnNoise]) -> Mapping[str, AnyArray]:
        """FP32's outputs in floating point; those of another FP32 run are noted with them."""
        expected, again = self._reference.answer(sample, self._sessions)
        for name in expected:
            if sample not in noises.setdefault(name, DrawnNoise()).signal:
                noises[name].add_reference(sample, expected[name], again[name])
        return expected


def affordable(most: Round, num_values: float) -> list[Round]:
    """The rounds that stay within ``MOST_VALUES``, the first in any case, with so many draws and samples at most.

    ``num_values`` are those that one draw computes on one sample.
    """
    rounds = [Round(min(each.num_draws, most.num_draws), min(each.num_samples, most.num_samples)) for each in ROUNDS]
    return [
        each
        for index, each in enumerate(rounds)
        if not index or each.num_draws * each.num_samples * num_values <= MOST_VALUES
    ]


def draw_lots(drawing: Drawing, lots: Sequence[Lot], most: Round, num_deviations: float, *, clips: bool) -> Draws:
    """The bounds of the outputs, from the lot with the most noise.

    Args:
        drawing: runs them.
        lots: each a way in which a correct engine may be made.
        most: draws and samples at most.
        num_deviations: standard deviations that a bound is below the mean of the draws, in dB.
        clips: whether the format clips, as INT8 does.
    """
    rounds = affordable(most, drawing.num_values * len(lots))
    num = rounds[-1].num_samples
    indices = drawing.read(num)
    order = spread_order(num, [each.num_samples for each in ROUNDS])
    noises: list[dict[str, DrawnNoise]] = [{} for _ in lots]
    left = list(range(len(lots)))
    bar, num_before = Bar("draws", rounds[-1].num_draws * num), 0
    try:
        for planned in rounds:
            chosen, num_draws = order[: planned.num_samples], planned.num_draws
            num_more = len(chosen) * num_draws - num_before
            for at, index in enumerate(left):
                for draw in range(num_draws):
                    drawing.run(lots[index], noises[index], chosen, draw)
                    bar.to(num_before + num_more * (at * num_draws + draw + 1) // (len(left) * num_draws))
            num_before += num_more
            bounds = {
                i: {name: noise.bound(num_deviations, clips=clips) for name, noise in noises[i].items()} for i in left
            }
            left = [min(left, key=lambda index: _least_db(bounds[index].values()))]
            if all(each is None or each.error_db <= MOST_ERROR_DB for each in bounds[left[0]].values()):
                break
    finally:
        bar.close()
    return Draws(bounds[left[0]], num_draws, tuple(sorted(indices[index] for index in chosen)))


def _least_db(bounds: Iterable[Bound | None]) -> float:
    return min((bound.mean_db for bound in bounds if bound is not None), default=-math.inf)
