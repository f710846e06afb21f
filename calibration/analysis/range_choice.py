"""Which reading of its histogram each tensor gets: sets of ranges race by the answers of the network they make.

How much a range loses of its own tensor says little of what the network loses: of two networks of a benchmark, one
answers best where entropy clips what the others keep, and one answers nothing at all there. So candidates are whole
sets of ranges, and the judge is the SQNR of the network's outputs against FP32's, sample by sample. Each placement that
the ranges are for has a race of its own.

Candidates are entropy, TensorRT's own; entropy but for the tensors that another method holds better by 6 or 1 dB; and
mse, percentile and minmax for all. Each round of the race runs more samples, and leaves out the candidates that are
worse than the leader, or, but for entropy, cannot be better by a quarter of a decibel than the one that would win now:
by Student's interval of 95 percent about the mean of their paired differences. It ends once none is left but the one
that would win. Entropy wins unless another is better by as much, beyond the error. Where the samples run out before
that is settled, it wins unless as much is to be expected of another, by what was seen and what readings differ by
anyway.

Tried beside it on networks of 66 and 74 quantized tensors: every tensor by itself, the others in FP32, and of each the
reading with the least noise at the outputs. It took 30 times the runs and was no better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from calibration.analysis.sqnr import sqnr_db_of
from calibration.arrays import AnyArray, Floats
from calibration.histogram.methods import Method
from calibration.ranges.ranges import METHODS, TensorRange
from calibration.ranges.side_file import read_side_file, write_side_file

MARGINS_DB = (6.0, 1.0)
"""6 dB is one of the eight bits."""
ROUNDS = (4, 8, 12, 16, 24, 32, 48, 64)
"""Samples after each round."""
LEAST_SAMPLES, SHARE_OF_SAMPLES = 16, 1 / 8
"""A race takes at most that many, or that share of the calibration samples where it is more: so it costs no more, for
one sample of the calibration, than with few of them."""
LEAST_GAIN_DB = 0.25
"""What is less does not count."""
STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
"""Of 2 to 16 samples: standard errors of a mean difference that may be chance; one in twenty is larger."""
STUDENT_T_OF_MORE = {24: 2.07, 32: 2.04, 48: 2.01, 64: 2.00}
"""Of that many samples, and of more up to the next."""
PRIOR_DEVIATION_DB = 1.0
"""Of what two readings of a network differ by, before a sample is run: those that do not fail, by 0 to 2 dB."""
ERROR_OF_ONE_DB = 2.0
"""Of a difference that one sample shows: samples of real networks differ by a standard deviation of 0.5 to 2 dB."""
MOST_DB = 200.0
"""Of outputs that are equal: beyond what float32 can tell apart."""
CHOICE_FILE = "choice.json"
TARGET = re.compile("[a-z0-9_]{1,32}")
"""What a target's name may be."""

SampleRatios: TypeAlias = Callable[[int, range], Floats]
"""From the index of a candidate and of samples to the SQNR of each sample, dB: (n,)."""


@dataclass(frozen=True)
class RangeCandidate:
    """A reading for each tensor."""

    name: str
    methods: Mapping[str, Method]


@dataclass(frozen=True)
class CandidateResult:
    """How a candidate ended."""

    name: str
    sqnr_db: float
    """Of the outputs, mean over the samples that it was run on."""
    num_samples: int
    num_changed: int
    """Tensors that it reads otherwise than by entropy."""


@dataclass(frozen=True)
class PlacementChoice:
    """Who won the race of a placement, and against whom."""

    target: str
    """A placement of Q/DQ nodes, or a backend that has none."""
    winner: str
    results: tuple[CandidateResult, ...]
    """Entropy's first."""

    def sentence(self) -> str:
        """For a person."""
        won = next(result for result in self.results if result.name == self.winner)
        first = self.results[0]
        if won is first:
            return f"ranges by entropy: no other reading is better by {LEAST_GAIN_DB:g} dB at the outputs"
        return (
            f"ranges by {won.name}: the outputs have {won.sqnr_db:.1f} dB on {won.num_samples} calibration samples, "
            f"by entropy they would have {first.sqnr_db:.1f} dB"
        )


@dataclass(frozen=True)
class RangeChoice:
    """What was chosen for each placement."""

    outputs: tuple[str, ...]
    """The tensors whose SQNR was measured."""
    placements: tuple[PlacementChoice, ...]

    def sentence(self) -> str:
        """For a person."""
        sentences = [each.sentence() for each in self.placements]
        if len(set(sentences)) == 1:
            return sentences[0]
        return "; ".join(f"for {each.target}, {text}" for each, text in zip(self.placements, sentences))


def candidates(tensors: Mapping[str, TensorRange]) -> tuple[RangeCandidate, ...]:
    """Entropy first, and no two with the same ranges."""
    mixed = [
        RangeCandidate(f"entropy, but where another holds the tensor better by {margin:g} dB", _mixed(tensors, margin))
        for margin in MARGINS_DB
    ]
    others: tuple[Method, ...] = ("entropy", "mse", "percentile", "minmax")
    pure = [RangeCandidate(method, dict.fromkeys(tensors, method)) for method in others]
    distinct: dict[tuple[float, ...], RangeCandidate] = {}
    for candidate in (pure[0], *mixed, *pure[1:]):
        amaxes = tuple(tensor.amax_by_method[candidate.methods[name]] for name, tensor in tensors.items())
        distinct.setdefault(amaxes, candidate)
    return tuple(distinct.values())


def _mixed(tensors: Mapping[str, TensorRange], margin: float) -> dict[str, Method]:
    """Of each tensor the reading that holds it best, if it does so by more than the margin, dB; else entropy."""
    methods: dict[str, Method] = {}
    for name, tensor in tensors.items():
        ratios = {method: ratio for method in METHODS if (ratio := tensor.sqnr_db[method]) is not None}
        best = max(METHODS, key=lambda method: ratios.get(method, -math.inf))
        methods[name] = best if ratios and ratios[best] - ratios["entropy"] > margin else "entropy"
    return methods


@dataclass(frozen=True)
class RaceEnd:
    """How a race ended: by candidate, its ratios on the samples that it was run on; the first is the one to beat."""

    winner: int
    ratios: tuple[Floats, ...]


def race(num_candidates: int, num_samples: int, ratios_of: SampleRatios) -> RaceEnd:
    """Run candidates on more and more samples, until the leader is known well enough."""
    left, winner = list(range(num_candidates)), 0
    ratios: list[Floats] = [np.zeros(0)] * num_candidates
    begin, most = 0, min(num_samples, ROUNDS[-1])
    for end in [*(num for num in ROUNDS if num < most), most]:
        for index in left:
            ratios[index] = np.append(ratios[index], ratios_of(index, range(begin, end)))
        begin = end
        leader = max(left, key=lambda index: float(ratios[index].mean()))
        behind = {index: _difference(ratios[leader], ratios[index]) for index in left}
        left = [i for i in left if behind[i].mean - behind[i].error <= (LEAST_GAIN_DB if i == 0 else 0.0)]
        leads = left[0] != 0 or (behind[0].is_clear() if begin < most else behind[0].is_likely())
        winner = leader if leads else 0
        ahead = {index: _difference(ratios[index], ratios[winner]) for index in left if index != winner}
        rivals = [index for index, each in ahead.items() if each.mean + each.error > LEAST_GAIN_DB]
        if not rivals:
            break
        left = [index for index in left if index in (0, winner, *rivals)]
    return RaceEnd(winner, tuple(ratios))


@dataclass(frozen=True)
class _Difference:
    """Of paired samples, in dB: the mean, and what may be chance of it."""

    mean: float
    standard_error: float
    error: float
    """Half the interval of 95 percent."""

    def is_clear(self) -> bool:
        """Whether it counts, and is no chance."""
        return self.mean > max(LEAST_GAIN_DB, self.error)

    def is_likely(self) -> bool:
        """Whether what is to be expected of it counts: the mean of the posterior, with normal errors and prior."""
        prior = PRIOR_DEVIATION_DB**2
        return self.mean * prior / (prior + self.standard_error**2) > LEAST_GAIN_DB


def _difference(first: Floats, second: Floats) -> _Difference:
    values = first - second
    if len(values) == 1:
        return _Difference(float(values[0]), ERROR_OF_ONE_DB, ERROR_OF_ONE_DB)
    standard_error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return _Difference(float(values.mean()), standard_error, student_t(len(values)) * standard_error)


def student_t(num_samples: int) -> float:
    """Standard errors of a mean that may be chance; of a number between two of the tables, that of the smaller."""
    more = [factor for num, factor in STUDENT_T_OF_MORE.items() if num <= num_samples]
    return more[-1] if more else STUDENT_T[min(num_samples - 2, len(STUDENT_T) - 1)]


def most_samples(num_calibration: int) -> int:
    """How many samples a race takes at most."""
    return min(max(LEAST_SAMPLES, int(num_calibration * SHARE_OF_SAMPLES)), ROUNDS[-1])


def sample_sqnr_db(expected: Mapping[str, AnyArray], answered: Mapping[str, AnyArray]) -> float | None:
    """SQNR of a sample's outputs, dB, mean over those that have a signal and the same shape in both; None without."""
    ratios = []
    for name, want in expected.items():
        have = answered[name]
        if want.shape != have.shape:
            continue
        if np.isfinite(want).all() and want.any():
            ratios.append(max(min(sqnr_db_of(want, have), MOST_DB), -MOST_DB))
    return float(np.mean(ratios)) if ratios else None


def write_choice(choice: RangeChoice, folder: Path) -> None:
    """Write ``choice.json`` into a folder of ranges."""
    write_side_file(folder / CHOICE_FILE, asdict(choice))


def choice_from_folder(folder: Path) -> RangeChoice | None:
    """Read ``choice.json``; None where there is none, as beside ranges by a method that was named.

    Raises:
        DataError: the file is damaged.
    """
    return read_side_file(folder / CHOICE_FILE, _choice)


def _choice(record: dict[str, Any]) -> RangeChoice:
    return RangeChoice(tuple(map(str, record["outputs"])), tuple(map(_placement, record["placements"])))


def _placement(row: dict[str, Any]) -> PlacementChoice:
    if not TARGET.fullmatch(row["target"]):
        raise ValueError(f"target is {row['target']!r:.40}")
    results = tuple(CandidateResult(**result) for result in row["results"])
    if row["winner"] not in {result.name for result in results}:
        raise ValueError(f"winner is {row['winner']!r:.40}, none of the results")
    return PlacementChoice(row["target"], row["winner"], results)
