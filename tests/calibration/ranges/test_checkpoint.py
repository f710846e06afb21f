"""Checkpoints: the state of a calibration comes back as it was, and nothing that is half there is ever read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.histogram.histogram import Histogram, histogram_from_values
from calibration.ranges import checkpoint as checkpoint_module
from calibration.ranges.checkpoint import CalibrationObserver, Checkpoint
from calibration.ranges.convergence import ConvergenceTracker
from calibration.ranges.ranges import Origin
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder
from calibration.ranges.stop import StopRule

ORIGIN = Origin("model", "data", 500)
FOLDER = ".calibrate-key"


class Clock:
    """Told what time it is."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def at(folder: Path, clock: Clock) -> Checkpoint:
    return Checkpoint(folder, lambda: "key", ORIGIN, clock)


def histograms(num: int) -> dict[str, Histogram]:
    """Of a tensor and a mask after so many samples."""
    values = np.random.default_rng(0).normal(size=(num, 9)).astype(np.float32)
    mask = np.where(values < 0, -np.inf, values)
    return {"y": histogram_from_values(values, ""), "a": histogram_from_values(mask, "")}


def same(first: Mapping[str, Histogram], second: Mapping[str, Histogram]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(one.counts, second[name].counts)
        and (one.exponent, one.min, one.max, one.num_zeros, one.num_infinite)
        == (
            second[name].exponent,
            second[name].min,
            second[name].max,
            second[name].num_zeros,
            second[name].num_infinite,
        )
        for name, one in first.items()
    )


def loaded(checkpoint: Checkpoint) -> tuple[int, dict[str, Any], dict[int, Any]]:
    progress: dict[str, Any] = {}
    parts: dict[int, Mapping[str, Histogram]] = {}

    def resume(record: Mapping[str, Any], there: Mapping[int, Mapping[str, Histogram]]) -> None:
        progress.update(record)
        parts.update(there)

    num = checkpoint.load(resume)
    checkpoint.close(is_done=False)
    return num, progress, parts


def test_nothing_is_written_in_the_first_minute_nor_more_often(tmp_path: Path) -> None:
    clock = Clock()
    checkpoint = at(tmp_path, clock)
    assert loaded(checkpoint) == (0, {}, {})
    for now, is_due in ((0, False), (59, False), (60, True)):
        clock.now = now
        assert checkpoint.is_due() == is_due
    checkpoint.save({3: histograms(3)}, {"a": 1})
    assert not checkpoint.is_due()
    checkpoint.close(is_done=True)
    assert not list(tmp_path.iterdir())


def test_what_was_saved_comes_back_and_is_a_folder_of_ranges(tmp_path: Path) -> None:
    checkpoint = at(tmp_path, Clock())
    checkpoint.save({8: histograms(8), 16: histograms(16)}, {"a": [0.1, 2**-30]})
    checkpoint.save({16: histograms(16), 21: histograms(21)}, {"a": 2})
    checkpoint.close(is_done=False)
    num, progress, parts = loaded(at(tmp_path, Clock()))
    assert (num, progress["a"], sorted(parts)) == (21, 2, [16, 21])
    assert all(same(parts[each], histograms(each)) for each in parts)
    assert ranges_from_folder(tmp_path / FOLDER / "21").origin.num_samples == 21
    assert same(histograms_from_folder(tmp_path / FOLDER / "21"), histograms(21))


@pytest.mark.parametrize("name", ["ranges.json", "histograms.npz", "progress.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_one_is_left_out_for_the_one_before(
    tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = at(tmp_path, Clock())
    checkpoint.save({8: histograms(8)}, {"a": 1})
    checkpoint._write(16, histograms(16), {"a": 2, "needed": [16]})
    checkpoint.close(is_done=False)
    file = tmp_path / FOLDER / "16" / name
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-20])
    assert loaded(at(tmp_path, Clock()))[:2] == (8, {"a": 1, "needed": [8]})
    (tmp_path / FOLDER / "8" / "ranges.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert loaded(at(tmp_path, Clock())) == (0, {}, {})
    assert "8: is left out" in caplog.text


def test_one_that_was_being_written_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_path: Path) -> None:
        raise KeyboardInterrupt

    checkpoint = at(tmp_path, Clock())
    checkpoint.save({8: histograms(8)}, {"a": 1})
    monkeypatch.setattr(checkpoint_module, "_bring_to_disk", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({16: histograms(16)}, {"a": 2})
    checkpoint.close(is_done=False)
    (tmp_path / FOLDER / "work-left").mkdir()  # As kill -9 leaves it.
    assert loaded(at(tmp_path, Clock()))[0] == 8
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"8", "lock"}


def test_two_at_once_do_not_share_it(tmp_path: Path) -> None:
    first, second = at(tmp_path, Clock()), at(tmp_path, Clock())
    first.save({8: histograms(8)}, {"a": 1})
    assert loaded(second) == (0, {}, {})
    second.save({9: histograms(9)}, {"a": 2})
    second.close(is_done=True)
    assert (tmp_path / FOLDER / "8").is_dir()
    first.close(is_done=False)
    assert loaded(second)[0] == 8


def test_a_full_disk_is_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER).write_text("a file is in the way, as is no space")
    with caplog.at_level(logging.WARNING):
        at(tmp_path, Clock()).save({8: histograms(8)}, {})
    assert "the calibration so far cannot be kept" in caplog.text


def test_progress_that_does_not_fit_leaves_the_observer_as_it_was(tmp_path: Path) -> None:
    def observer() -> CalibrationObserver:
        rule = StopRule(0.1, (500, 1), 99.99, lambda _found: {})
        return CalibrationObserver(ConvergenceTracker("mse", 99.99), rule, at(tmp_path, Clock()))

    checkpoint = at(tmp_path, Clock())
    checkpoint.save({8: histograms(8)}, {"convergence": {"tensors": ["y"], "ranges": [[8, 0.5]]}})
    checkpoint.close(is_done=False)
    ours = observer()
    assert ours.begun() == (0, {})
    ours.close(is_done=False)
    assert ours.is_due(1), "the curve begins at the first sample"
