"""Labels tell whether samples look as the model expects them: does a simple change make it right more often?

The model answers for labelled samples as given, and for the same samples changed in ways in which data goes wrong
(``calibration.lint.changes``). A change is better if an exact sign test over the samples on which the two disagree
(McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", Psychometrika
1947, with the exact binomial distribution) says so. It must also be so beside an answer that is always the most
frequent class: samples that a change has spoilt are often all taken for one class.

The answers are looked at after 16, 32, 64, … and all samples. So that they may be, each look has a share of the
significance (Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 1983): half for the
last, which has the most power, a quarter for the one before, and so on. A look's share is divided by the number of
tests in it (Bonferroni): each change, on all samples and, where there are two data sets, on each.

Between the looks, changes are given up (which costs power alone, as giving up can name nothing): a change can only mend
wrong answers, so only those are asked again, until so few are mended that a gain worth the name is refuted. What the
model is right on is asked only of a change that has mended enough, or where that is cheaper than more samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from calibration.arrays import AnyArray
from calibration.lint.changes import Change, ChangeCode
from calibration.lint.labelled import lengths

PredictClass: TypeAlias = Callable[[AnyArray], int]
"""From one sample, without the batch axis, to the class that the model says."""

LEAST_GAIN = 0.05
"""A change that could make the model right on less than so many samples more is given up; the classics, on networks of
ImageNet, cost 6 to 10 points."""
LEAST_MENDED = 0.2
"""Or on less than so many of those on which it is wrong: what the model was trained on mends more."""
LEAST_DECIDING = 64
"""So many samples can refute a gain of ``LEAST_GAIN``."""
REFUTED = 0.05
"""How unlikely what was seen must be, of a change that gains so much, before it is given up."""
FIRST_RUNS, RUNS_PER_SAMPLE = 256, 3
"""The model is run so often at most, all in all: for a network of ImageNet's size and 25 ms, 7.5 s for 100 samples."""


@dataclass(frozen=True)
class Better:
    """A change that makes the model right clearly more often."""

    change: Change
    num_samples: int
    num_right: int
    """With the change."""
    num_right_as_given: int
    p_value: float
    """Of the sign tests, one-sided, the larger; not yet times the number of tests."""
    sets: tuple[int, ...]
    """The data sets in which it does so."""


@dataclass(frozen=True)
class LabelVerdict:
    """What the labels told."""

    better: Better | None
    num_samples: int
    num_right: int
    """As given."""
    num_runs: int
    """Of the model."""
    refuted: tuple[ChangeCode, ...]
    """Kinds of change of which none helps."""
    undecided: tuple[ChangeCode, ...]
    is_beyond_one_class: bool
    """Whether the model is right more often than an answer that is always the most frequent class."""


class LabelledSamples(Protocol):
    """What the check is put to, numbered in the order in which it is asked; see ``calibration.lint.labelled``."""

    def __len__(self) -> int:
        """All samples."""
        ...

    def labels(self) -> list[int]:
        """Of every sample."""
        ...

    def members(self) -> list[tuple[int, ...]]:
        """The samples of each data set."""
        ...

    def known(self) -> dict[int, bool]:
        """Whether the model is right on a sample, for those on which it has answered."""
        ...

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, AnyArray]]:
        """These samples without the batch axis, with their numbers, in any order."""
        ...


class _OutOfRunsError(Exception):
    """The model was run as often as it may be."""


@dataclass(eq=False)
class _Trial:
    """What the model said of changed samples."""

    change: Change
    right: dict[int, bool] = field(default_factory=dict)
    """By the sample's number."""


class LabelCheck:
    """One run of the check."""

    def __init__(self, answer: PredictClass, pool: LabelledSamples, changes: Sequence[Change]) -> None:
        """``answer`` is the FP32 model; ``changes`` is what is tried."""
        self._answer, self._pool = answer, pool
        self._labels = pool.labels()
        self._given = pool.known()
        self._changes = changes
        self._active = [_Trial(change) for change in changes]
        self._views = _views(pool.members())
        self._left = FIRST_RUNS + RUNS_PER_SAMPLE * len(pool)
        self.num_runs = 0

    def verdict(self, significance: float) -> LabelVerdict:
        """Look until no change is undecided, the samples are at an end, or the model was run often enough.

        Args:
            significance: how likely it may be that a change is named that is no better, over all looks and changes.
        """
        ends, end, better = lengths(len(self._pool)), 0, None
        try:
            for look, end in enumerate(ends):
                self._ask_wrong(ends[look - 1] if look else 0, end)
                level = significance / 2 ** (len(ends) - look) / (len(self._changes) * len(self._views))
                better = self._better(end, level)
                self._give_up(end)
                if not better and self._is_asking_on_dearer(end, ends[look + 1 : look + 2]):
                    self._ask_right(range(end), lambda trial: self._is_refuted(trial, end))  # noqa: B023
                    self._give_up(end)
                if better or not self._active:
                    break
        except _OutOfRunsError:
            pass
        undecided = {trial.change.code for trial in self._active}
        codes = dict.fromkeys(change.code for change in self._changes)
        seen = [at for at in range(end) if at in self._given]
        return LabelVerdict(
            better=better,
            num_samples=len(seen),
            num_right=sum(self._given[at] for at in seen),
            num_runs=self.num_runs,
            refuted=tuple(code for code in codes if code not in undecided),
            undecided=tuple(code for code in codes if code in undecided),
            is_beyond_one_class=self._against_one_class(seen, self._given) < REFUTED,
        )

    def _ask_wrong(self, start: int, end: int) -> None:
        """The next samples as given, and changed where the model is wrong."""
        for at, sample in self._pool.read([at for at in range(start, end) if not self._given.get(at, False)]):
            if at not in self._given:
                self._given[at] = self._is_right(at, sample)
            if not self._given[at]:
                for trial in self._active:
                    trial.right[at] = self._is_right(at, trial.change.apply(sample))

    def _better(self, end: int, level: float) -> Better | None:
        """The change that makes the model right most often, of those that are better by a test of this look."""
        improvements: list[Better] = []
        for sets, members in self._views:
            view = [at for at in members if at < end]
            with suppress(_OutOfRunsError):
                self._ask_right(view, lambda trial: self._p_value(trial, view) >= level)  # noqa: B023
            for trial in self._active:
                p_value = self._p_value(trial, view)
                if p_value < level and all(at in trial.right for at in view):
                    num_right = sum(trial.right[at] for at in view)
                    as_given = sum(self._given[at] for at in view)
                    improvements.append(Better(trial.change, len(view), num_right, as_given, p_value, sets))
        most = min((better.p_value for better in improvements), default=1.0)
        sets = next((better.sets for better in improvements if better.p_value == most), ())
        return max((b for b in improvements if b.sets == sets), key=lambda better: better.num_right, default=None)

    def _ask_right(self, view: Sequence[int], is_settled: Callable[[_Trial], bool]) -> None:
        """Samples on which the model is right, of every change until that settles it."""
        trials = [trial for trial in self._active if not is_settled(trial)]
        missing = {at for at in view if any(at not in trial.right for trial in trials)}
        for at, sample in self._pool.read(sorted(missing)) if trials else ():
            for trial in [trial for trial in trials if at not in trial.right]:
                trial.right[at] = self._is_right(at, trial.change.apply(sample))
                if not trial.right[at] and is_settled(trial):
                    trials.remove(trial)
            if not trials:
                return

    def _p_value(self, trial: _Trial, view: Sequence[int]) -> float:
        """Of the two sign tests the larger, as if what was not asked were right."""
        right = {at: trial.right.get(at, True) for at in view}
        wins, losses = self._counts(right)
        return max(sign_test(wins, losses), self._against_one_class(view, right))

    def _counts(self, right: dict[int, bool]) -> tuple[int, int]:
        wins = sum(is_right and not self._given[at] for at, is_right in right.items())
        return wins, sum(not is_right and self._given[at] for at, is_right in right.items())

    def _give_up(self, end: int) -> None:
        self._active = [trial for trial in self._active if not self._is_refuted(trial, end)]

    def _is_refuted(self, trial: _Trial, end: int) -> bool:
        """Whether a gain worth the name would have shown: in what was mended, or in that less what was spoilt."""
        wins, losses = self._counts(trial.right)
        num_wrong = sum(not self._given[at] for at in range(end))
        gain = max(LEAST_GAIN, LEAST_MENDED * num_wrong / end)
        if at_most(wins, end, gain) < REFUTED:
            return True
        differing = wins + losses
        share = 0.5 + gain * end / (2 * differing) if differing else 1
        return share < 1 and at_most(wins, differing, share) < REFUTED

    def _is_asking_on_dearer(self, end: int, following: Sequence[int]) -> bool:
        """Whether the next look, if there is one, needs more runs than to ask of this one's samples what is left."""
        if end < LEAST_DECIDING or not following:
            return end >= LEAST_DECIDING
        wrong = sum(not self._given[at] for at in range(end)) * (following[0] - end) / end
        unknown = sum(at not in self._given for at in range(end, following[0]))
        return sum(end - len(trial.right) for trial in self._active) <= unknown + wrong * len(self._active)

    def _against_one_class(self, view: Sequence[int], right: dict[int, bool]) -> float:
        """The sign test against whoever says the most frequent class of all, which wrong data often comes to."""
        counts = Counter(self._labels[at] for at in view).most_common(1)
        top = counts[0][0] if counts else -1
        wins = sum(right[at] for at in view if self._labels[at] != top)
        return sign_test(wins, sum(not right[at] for at in view if self._labels[at] == top))

    def _is_right(self, at: int, sample: AnyArray) -> bool:
        if not self._left:
            raise _OutOfRunsError
        self._left -= 1
        self.num_runs += 1
        return self._answer(sample) == self._labels[at]


def sign_test(wins: int, losses: int) -> float:
    """How likely so many wins or more are among wins + losses fair coins."""
    num = wins + losses
    return float(sum(math.comb(num, k) for k in range(wins, num + 1)) / 2**num)


def at_most(count: int, num: int, share: float) -> float:
    """How likely ``count`` or less are among ``num`` of which each comes with probability ``share``."""
    if share >= 1:
        return float(count >= num)
    logs = (
        math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1)
        + k * math.log(share) + (num - k) * math.log1p(-share)
        for k in range(min(count, num) + 1)
    )  # fmt: skip
    return sum(map(math.exp, logs))


def _views(members: Iterable[tuple[int, ...]]) -> list[tuple[tuple[int, ...], list[int]]]:
    """The samples that are tested together, with the sets that they are of: all, and each of several sets."""
    single: list[tuple[tuple[int, ...], list[int]]] = [
        ((number,), list(indices)) for number, indices in enumerate(members) if indices
    ]
    if len(single) < 2:
        return single
    return [(tuple(n for (n,), _ in single), sorted(at for _, indices in single for at in indices)), *single]
