"""The curve of ranges as samples are added, its file, and when it says that there are enough."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from calibration.arrays import AnyArray
from calibration.errors import DataError
from calibration.histogram.collect import collect
from calibration.histogram.histogram import Histogram, histogram_from_values
from calibration.histogram.methods import Method, amax_percentile
from calibration.ranges.convergence import (
    NUM_TENSORS,
    Convergence,
    ConvergenceTracker,
    Point,
    convergence_from_folder,
    write_convergence,
)


def curve(samples: AnyArray, method: Method = "minmax", percentile: float = 99.0, num_workers: int = 1) -> Convergence:
    """The settling of a network that hands its input on: (num_samples, ...) in."""
    settler = ConvergenceTracker(method, percentile)

    def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        return {"y": np.asarray(batch["x"], np.float32) * 2}

    feeds = [{"x": samples[i : i + 1]} for i in range(len(samples))]
    found = collect(run, feeds, observer=settler, num_workers=num_workers)
    return settler.convergence(len(samples), found)


def growing(*largest: float) -> AnyArray:
    """A sample of two values for each number; only the first counts."""
    return np.array([[value, 0] for value in largest], np.float32)


def test_points_stand_at_powers_of_two_and_at_the_end() -> None:
    found = curve(growing(1, 2, 2, 2, 2, 4))
    assert [point.num_samples for point in found.points] == [1, 2, 4, 6]
    assert [point.most_change for point in found.points] == [0.75, 0.5, 0.5, 0]
    assert (found.tensors, found.reading, found.num_samples) == (("x", "y"), "minmax", 6)
    assert [point.num_samples for point in curve(growing(1, 2, 3, 4)).points] == [1, 2, 4]


@pytest.mark.parametrize(
    ("largest", "settled_at", "words"),
    [
        ([9] * 16, 1, "ranges converged after 1 of 16 samples (nine of ten tensors stay within 10%)"),
        ([5] * 3 + [9] * 17, 4, "ranges converged after 4 of 20 samples"),
        ([8.2] * 15 + [9] * 17, 1, "ranges converged after 1 of 32 samples"),
        ([5] * 15 + [9] * 5, None, "ranges had not converged at 20 samples: those of a tenth of the tensors were off "),
        ([5] * 31 + [9] * 17, 32, "ranges converged after 32 of 48 samples"),
        ([5] * 31 + [9] * 16, None, "ranges had not converged at 47 samples"),
        ([9] * 15, None, "15 samples are too few to tell whether ranges converged; add samples"),
        ([0] * 20, 1, "ranges converged after 1 of 20 samples"),
    ],
)  # fmt: skip
def test_where_the_ranges_stop_moving(largest: list[float], settled_at: int | None, words: str) -> None:
    found = curve(growing(*largest))
    assert found.settled_at == settled_at
    assert found.sentence().startswith(words)


def test_a_range_that_shrinks_moves_as_well() -> None:
    """A percentile goes down when small values come."""
    values = np.array([[9.0]] * 4 + [[1.0]] * 60, np.float32)
    found = curve(values, "percentile", 90.0)
    assert found.reading == "percentile 90"
    assert found.points[2].most_change == pytest.approx(8, abs=0.01)
    assert found.settled_at is None or found.settled_at > 4


@pytest.mark.parametrize(
    ("method", "reading"),
    [
        ("entropy", "percentile 99.99"),
        ("mse", "percentile 99.99"),
        ("minmax", "minmax"),
        ("percentile", "percentile 99"),
    ],
)
def test_the_reading_is_that_of_the_method_or_a_quick_one(method: Method, reading: str) -> None:
    assert curve(growing(1, 2), method).reading == reading


def test_a_tenth_of_the_tensors_may_move() -> None:
    """Of 40 tensors every other but one in 16 that are looked at is steady."""
    settler = ConvergenceTracker("minmax", 100)

    def histograms(moving: float) -> dict[str, Histogram]:
        return {f"t{i}": histogram_from_values(np.array([moving if i == 0 else 1.0]), "") for i in range(40)}

    for num, value in ((1, 1.0), (2, 1.0), (4, 2.0), (8, 3.0), (16, 4.0)):
        settler.on_part(num, histograms(value))
    found = settler.convergence(20, histograms(9.0))
    assert len(found.tensors) == NUM_TENSORS
    assert found.tensors[:3] == ("t0", "t2", "t5"), "evenly spaced"
    assert found.settled_at == 1


def test_the_quick_reading_follows_the_tail() -> None:
    values = np.append(np.linspace(0, 100, 100_000, dtype=np.float32), np.float32(120))  # One far out.
    histogram = histogram_from_values(values, "")
    settler = ConvergenceTracker("entropy", 50.0)
    settler.on_part(1, {"x": histogram})
    assert amax_percentile(histogram, 99.99) < histogram.amax
    found = settler.convergence(2, {"x": histogram_from_values(np.array([amax_percentile(histogram, 99.99)]), "")})
    assert found.points[0].most_change < 1e-3


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_the_curve_does_not_depend_on_the_workers(num_workers: int) -> None:
    samples = np.random.default_rng(0).normal(size=(37, 50)).astype(np.float32)
    assert curve(samples, "percentile", 95.0, num_workers) == curve(samples, "percentile", 95.0)


SETTLED = Convergence("minmax", ("a", "ß"), (Point(1, 0.25, 0.5), Point(20, 0.0, 0.0)), None)


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    assert convergence_from_folder(tmp_path) is None
    write_convergence(SETTLED, tmp_path)
    assert convergence_from_folder(tmp_path) == SETTLED


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _text: "[]",
        lambda text: text.replace('"points"', '"point"'),
        lambda text: text.replace("0.25", '"much"'),
        lambda text: text.replace("null", '"20"'),
        lambda text: json.dumps({**json.loads(text), "points": []}),
    ],
)
def test_a_damaged_file_is_said(tmp_path: Path, damage: object) -> None:
    write_convergence(SETTLED, tmp_path)
    file = tmp_path / "settling.json"
    assert callable(damage)
    file.write_text(damage(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError, match=r"settling\.json: is damaged \(.*\); delete it, or calibrate again"):
        convergence_from_folder(tmp_path)
