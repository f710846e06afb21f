"""Changes that labels prove to be better, and the many that they do not; at what cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from calibration.arrays import AnyArray
from calibration.lint.changes import Change, changes_for
from calibration.lint.label_check import FIRST_RUNS, RUNS_PER_SAMPLE, LabelCheck, LabelVerdict, at_most, sign_test

Picture = npt.NDArray[np.float32]
Pairs = Sequence[tuple[AnyArray, int]]


class Listed:
    """Samples in a list, as the check takes them."""

    def __init__(self, pairs: Pairs, right: Sequence[bool] = (), second: Collection[int] = ()) -> None:
        """``second``: the samples that are of a second set."""
        self.pairs, self.right, self.second = pairs, right, second

    def __len__(self) -> int:
        return len(self.pairs)

    def labels(self) -> list[int]:
        return [label for _, label in self.pairs]

    def members(self) -> list[tuple[int, ...]]:
        everything = range(len(self))
        return [tuple(at for at in everything if (at in self.second) == is_second) for is_second in (False, True)]

    def known(self) -> dict[int, bool]:
        return dict(enumerate(self.right))

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, AnyArray]]:
        yield from ((at, self.pairs[at][0]) for at in wanted)


def check(
    answer: Callable[[AnyArray], int], pool: Listed, changes: Sequence[Change], significance: float = 0.002
) -> LabelVerdict:
    return LabelCheck(answer, pool, changes).verdict(significance)


def pictures(num: int) -> list[tuple[AnyArray, int]]:
    """Pictures (6, 6, 3) of 0..255 in four classes: which corner is bright, in reds rather than blues."""
    random = np.random.default_rng(5)
    found: list[tuple[AnyArray, int]] = []
    for index in range(num):
        picture = random.uniform(0, 60, (6, 6, 3)).astype(np.float32)
        label = index % 4
        row, column = 3 * (label // 2), 3 * (label % 2)
        picture[row : row + 3, column : column + 3] += np.array([190, 90, 0], np.float32)
        found.append((picture, label))
    return found


def network(sample: AnyArray) -> int:
    """The brightest corner in red; where the red is off the scale of 0..255, whatever comes first."""
    red = np.asarray(sample, np.float32)[:, :, 0]
    corners = [float(red[r : r + 3, c : c + 3].mean()) for r in (0, 3) for c in (0, 3)]
    return int(np.argmax(corners)) if max(corners) > 100 else 0


def seen_as(change: Callable[[Picture], AnyArray], num: int = 128) -> tuple[list[tuple[AnyArray, int]], list[Change]]:
    """The pictures as somebody stored them, and what would be tried."""
    data = [(np.ascontiguousarray(change(np.asarray(picture, np.float32))), label) for picture, label in pictures(num)]
    low, high = (float(f([f(picture) for picture, _ in data])) for f in (np.min, np.max))
    return data, changes_for(data[0][0], low, high)


MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


@pytest.mark.parametrize(
    ("stored", "code", "words"),
    [
        (lambda x: x / np.float32(255), "range", "× 255"),
        (lambda x: x / np.float32(127.5) - 1, "range", "(x + 1) × 127.5"),
        (lambda x: (x / np.float32(255) - MEAN) / STD, "range", "(× std + mean) × 255"),
        (lambda x: x[:, :, ::-1], "channels", "the channels in reverse order (BGR and RGB)"),
        (lambda x: np.swapaxes(x, 0, 1), "layout", "rows and columns exchanged"),
    ],
)
def test_what_went_wrong_is_named(stored: Callable[[Picture], AnyArray], code: str, words: str) -> None:
    data, changes = seen_as(stored)
    better = check(network, Listed(data), changes).better
    assert better is not None
    assert (better.change.code, better.change.words) == (code, words)
    assert better.num_right == better.num_samples < 128, "some samples are enough"
    assert better.num_right_as_given < better.num_right
    right = [network(sample) == label for sample, label in data]
    assert check(network, Listed(data, right), changes).better == better, "also where its answers are known"


class Doubtful:
    """Samples of one number, and a network that is right on a share of them as it is said here, by sample."""

    def __init__(self, num: int, shares: Sequence[tuple[str, float, float]], accuracy: float, seed: int) -> None:
        """``shares``: by change, of the wrong answers that it mends and of the right ones that it spoils."""
        random = np.random.default_rng(seed)
        labels = random.integers(1, 1000, num)
        self.pairs: Pairs = [(np.array([at, 0.0]), int(label)) for at, label in enumerate(labels)]
        as_stored = random.random(num) < accuracy
        answers = [as_stored]
        for _, mended, spoilt in shares:
            answers.append(np.where(as_stored, random.random(num) >= spoilt, random.random(num) < mended))
        self.answers = np.stack(answers)
        self.changes = [self._change(number, words) for number, (words, *_) in enumerate(shares, 1)]

    @staticmethod
    def _change(number: int, words: str) -> Change:
        return Change("channels" if words == "BGR" else "range", words, lambda x: np.array([x[0], number]))

    def __call__(self, sample: AnyArray) -> int:
        at, change = int(sample[0]), int(sample[1])
        return self.pairs[at][1] if self.answers[change, at] else 0


HARMLESS = [("unit", 0.08, 0.07), ("bytes", 0.0, 0.97), ("torch", 0.05, 0.1), ("caffe", 0.02, 0.7)]
BGR = ("BGR", 0.6, 0.02)
"""The right order of channels where the network is right on 0.8 as stored: nine to ten points, as on ImageNet."""


@pytest.mark.parametrize("known", [False, True])
def test_ten_points_are_found_with_250_samples(known: bool) -> None:
    """As BGR costs on a network of ImageNet, where one in 16 answers right would have been looked at before."""
    num_found = 0
    for seed in range(20):
        doubtful = Doubtful(250, [*HARMLESS, BGR], 0.8, seed)
        right = doubtful.answers[0].tolist() if known else ()
        verdict = check(doubtful, Listed(doubtful.pairs, right), doubtful.changes)
        num_found += verdict.better is not None
        assert verdict.better is None or verdict.better.change.words == "BGR"
        assert verdict.num_runs <= FIRST_RUNS + RUNS_PER_SAMPLE * 250
    assert num_found >= 16


def test_data_as_it_should_be_is_settled_by_few_samples_and_runs() -> None:
    nums, runs = [], []
    for seed in range(20):
        doubtful = Doubtful(1000, [*HARMLESS, ("BGR", 0.12, 0.1)], 0.85, seed)
        verdict = check(doubtful, Listed(doubtful.pairs), doubtful.changes)
        assert (verdict.better, verdict.undecided) == (None, ())
        assert verdict.refuted == ("range", "channels")
        assert verdict.is_beyond_one_class
        nums.append(verdict.num_samples)
        runs.append(verdict.num_runs)
    assert np.median(nums) <= 128
    assert np.median(runs) <= 250
    assert max(runs) < 1000


def test_a_network_that_is_always_right_is_asked_64_times_and_of_what_is_known_not_once() -> None:
    data, changes = seen_as(lambda x: x)
    verdict = check(network, Listed(data), changes)
    assert (verdict.num_samples, verdict.num_right, verdict.num_runs, verdict.undecided) == (64, 64, 64, ())
    verdict = check(network, Listed(data, [True] * 128), changes)
    assert (verdict.num_samples, verdict.num_runs) == (64, 0)


def test_a_hard_task_stays_within_its_runs() -> None:
    for seed in range(5):
        doubtful = Doubtful(500, [("unit", 0.2, 0.2), *HARMLESS], 0.5, seed)
        verdict = check(doubtful, Listed(doubtful.pairs), doubtful.changes)
        assert verdict.better is None
        assert verdict.num_runs <= FIRST_RUNS + RUNS_PER_SAMPLE * 500


def test_runs_end_where_they_were_promised_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.lint.label_check.FIRST_RUNS", 10)
    monkeypatch.setattr("calibration.lint.label_check.RUNS_PER_SAMPLE", 0)
    data, changes = seen_as(lambda x: x / np.float32(255))
    verdict = check(network, Listed(data), changes)
    assert (verdict.better, verdict.num_runs, verdict.refuted) == (None, 10, ())
    assert set(verdict.undecided) == {"range", "channels", "layout"}


def test_a_set_that_alone_is_wrong_is_named() -> None:
    """40 of 400 samples are stored otherwise: all together say no, theirs say yes."""
    data, changes = seen_as(lambda x: x, 400)
    flipped = [(np.ascontiguousarray(x[:, :, ::-1]) if i % 10 == 0 else x, label) for i, (x, label) in enumerate(data)]
    better = check(network, Listed(flipped, second=range(0, 400, 10)), changes).better
    assert better is not None
    assert (better.change.code, better.sets) == ("channels", (1,))
    everywhere, changes = seen_as(lambda x: x[:, :, ::-1], 400)
    better = check(network, Listed(everywhere, second=range(0, 400, 10)), changes).better
    assert better is not None
    assert (better.change.code, better.sets) == ("channels", (0, 1))


def test_labels_of_another_model_prove_nothing() -> None:
    data, changes = seen_as(lambda x: x)
    random = np.random.default_rng(1)
    shuffled = [(sample, int(random.integers(4))) for sample, _ in data]
    verdict = check(network, Listed(shuffled), changes)
    assert verdict.better is None
    assert not verdict.is_beyond_one_class


@pytest.mark.parametrize("share", [1.0, 0.9, 0.6])
def test_a_change_that_spoils_all_samples_into_a_frequent_class_is_no_help(share: float) -> None:
    """The network calls spoilt samples 0, and so are most labels called, by somebody who numbers classes otherwise."""
    data, changes = seen_as(lambda x: x)
    num = int(share * 128)
    named_otherwise = [(sample, 0 if i < num else 1 + label % 3) for i, (sample, label) in enumerate(data)]
    assert check(network, Listed(named_otherwise), changes).better is None


def test_repeated_looks_keep_the_error_rate() -> None:
    """Changes that mend as many as they spoil, the worst case: of 400 trials at 1 in 20, no more than 20."""
    num_wrong = 0
    for seed in range(400):
        doubtful = Doubtful(200, [("unit", 0.4, 0.4), ("torch", 0.4, 0.4)], 0.5, seed)
        num_wrong += check(doubtful, Listed(doubtful.pairs), doubtful.changes, 0.05).better is not None
    assert num_wrong <= 20


def test_too_few_samples_prove_nothing_and_that_is_known() -> None:
    data, changes = seen_as(lambda x: x / np.float32(255))
    verdict = check(network, Listed(data[:12]), changes)
    assert verdict.better is None
    assert "range" in verdict.undecided
    assert check(network, Listed([]), changes).better is None


def test_the_sign_test_is_the_binomials_upper_tail() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(3, 0) == 1 / 8
    assert sign_test(3, 1) == 5 / 16
    assert sign_test(0, 7) == 1


def test_the_binomials_lower_tail() -> None:
    assert at_most(0, 64, 0.05) == pytest.approx(0.95**64)
    assert at_most(1, 3, 0.5) == pytest.approx(0.5)
    assert at_most(9, 9, 0.3) == pytest.approx(1)
    assert (at_most(3, 4, 1.0), at_most(4, 4, 1.0)) == (0, 1)
    assert at_most(4000, 10000, 0.5) < 1e-80
