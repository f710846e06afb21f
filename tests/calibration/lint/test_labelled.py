"""Labelled samples in one order: spread, each once, read from memory or in a pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from calibration.arrays import AnyArray
from calibration.data.batches import DataSource, InputSpec, Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.lint import survey as survey_module
from calibration.lint.labelled import LabelledPool, LabelledSet, lengths
from calibration.lint.survey import survey

SPEC = (InputSpec("x", "float32", (-1, 2)),)


def labelled(path: Path, numbers: range, right: tuple[bool, ...] = ()) -> LabelledSet:
    """Samples (number, number), with their number as label."""
    np.savez(path, x=np.array([[n, n] for n in numbers], np.float32), y=np.array(numbers))
    samples = open_samples(DataSource(str(path), labels="y"), SPEC, Preprocess())
    return LabelledSet(samples, survey(samples, 1000), right)


def test_two_sets_take_turns_in_proportion_and_evenly(tmp_path: Path) -> None:
    pool = LabelledPool([labelled(tmp_path / "c.npz", range(100)), labelled(tmp_path / "e.npz", range(100, 400))], 1000)
    assert sorted(pool.labels()) == list(range(400))
    first, second = pool.members()
    for end in (16, 64, 256):
        assert sum(at < end for at in first) == end // 4
        labels = sorted(pool.labels()[at] for at in second if at < end)
        assert max(np.diff(labels)) <= 300 / (end * 3 / 4) * 2.1, "no part of a sorted data set is left out"
    assert len(LabelledPool(pool.sets, 50)) == 50


def test_copies_count_once_for_the_last_set(tmp_path: Path) -> None:
    twice = [labelled(tmp_path / "c.npz", range(20)), labelled(tmp_path / "e.npz", range(10, 40), (True,) * 30)]
    pool = LabelledPool(twice, 1000)
    assert sorted(pool.labels()) == list(range(40))
    first, second = pool.members()
    assert {pool.labels()[at] for at in first} == set(range(10))
    assert pool.known() == dict.fromkeys(second, True), "what is not known is left out"


def test_samples_beyond_the_memory_are_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "PROBE_BYTES", 8 * 40)
    data = labelled(tmp_path / "c.npz", range(200))
    assert len(data.survey.probed) == 40
    pool = LabelledPool([data], 1000)
    passes = []
    pieces = Samples.pieces

    def counted(samples: Samples, num_max: int) -> Iterator[dict[str, AnyArray]]:
        passes.append(1)
        return pieces(samples, num_max)

    monkeypatch.setattr(Samples, "pieces", counted)
    assert {at: float(sample[0]) for at, sample in pool.read(range(40))} == dict(
        enumerate(map(float, pool.labels()[:40]))
    )
    assert passes == [], "the first ones are in memory"
    assert {at: int(sample[1]) for at, sample in pool.read(range(20, 200))} == {
        at: label for at, label in enumerate(pool.labels()) if at >= 20
    }
    assert passes == [1]


def test_looks_double_and_the_last_is_no_copy_of_the_one_before() -> None:
    assert [lengths(num) for num in (0, 5, 16, 24, 64, 100, 250, 528)] == [
        [], [5], [16], [24], [16, 32, 64], [16, 32, 64, 100], [16, 32, 64, 128, 250], [16, 32, 64, 128, 256, 528]
    ]  # fmt: skip
