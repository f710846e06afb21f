"""When a calibration may stop: at looks that are settled beforehand, and not where a section says otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from calibration.errors import DataError
from calibration.histogram.entropy import amax_entropy
from calibration.histogram.histogram import Histogram, histogram_from_values
from calibration.histogram.methods import Method, amax_mse
from calibration.ranges.stop import (
    SectionsLook,
    Stop,
    StopRule,
    difference,
    section_ends,
    stop_from_folder,
    write_stop,
)

Floats = npt.NDArray[np.float32]


def of(values: npt.NDArray[np.floating]) -> Histogram:
    return histogram_from_values(values.astype(np.float32), "")


def stopped(rows: Floats, share: float, methods: Sequence[Method] = ("percentile",), percentile: float = 100.0) -> Stop:
    """Samples one by one: (num_samples, num_values) of one tensor."""
    rule = StopRule(share, (len(rows), 1), percentile, lambda found: dict.fromkeys(found, methods))
    for num in range(1, len(rows) + 1):
        if rule.is_due(num) and not rule.on_part(num, {"x": of(rows[:num])}):
            break
    return rule.stop()


@pytest.mark.parametrize(
    ("num", "batch", "looks"),
    [
        (5000, 1, {632: 79, 1264: 158, 2528: 316}),
        (1024, 1, {128: 16, 256: 32, 512: 64}),
        (512, 1, {64: 8, 128: 16, 256: 32}),
        (511, 1, {64: 8, 128: 16, 256: 32}),
        (448, 1, {112: 14, 224: 28}),
        (128, 1, {64: 8}),
        (65, 1, {64: 8}),
        (64, 1, {}),
        (1, 1, {}),
        (1000, 16, {128: 16, 256: 32, 512: 64}),
        (1000, 64, {512: 64}),
        (500, 64, {}),
    ],
)
def test_the_looks_follow_from_the_number_of_samples(num: int, batch: int, looks: dict[int, int]) -> None:
    ends = section_ends(num, batch)
    assert {end: size for end, size in ends.items() if size} == looks
    for end, size in looks.items():
        assert set(range(size, end + 1, size)) <= ends.keys()
        assert not size % batch
    if looks and batch == 1:
        assert min(looks) * 8 >= num


def test_what_does_not_move_is_enough_at_the_first_look() -> None:
    rows = np.tile(np.array([1, -4, 0], np.float32), (1024, 1))
    assert stopped(rows, 0.01) == Stop(0.01, 0.95, 1024, 128, (SectionsLook(128, "", 0.0, 0.01),))


def test_a_section_without_the_largest_value_is_a_reason_to_go_on() -> None:
    rows = np.tile(np.array([4, 0], np.float32), (1024, 1))
    rows[300:] = 5
    stop = stopped(rows, 0.1)
    assert (stop.num_used, stop.looks[0]) == (128, SectionsLook(128, "", 0.0, 0.1)), (
        "those that were seen say nothing of it"
    )
    rows[100] = 5
    first = stopped(rows, 0.1).looks[0]
    assert (first.num_samples, first.tensor) == (128, "x")
    assert first.change == pytest.approx(0.2, abs=1e-3)
    assert stopped(rows, 0.1).num_used == 1024
    assert stopped(rows, 0.21).num_used == 128


def test_a_later_look_may_be_enough() -> None:
    rows = np.full((1024, 1), 4, np.float32)
    rows[::20] = 5  # One or none in a section of 16; in one of 32 at least one.
    stop = stopped(rows, 0.1)
    assert (stop.num_used, [look.num_samples for look in stop.looks]) == (256, [128, 256])
    assert stop.sentence() == (
        "calibration stopped after 256 of 1024 samples: in each eighth of them every range is within 0.0% of its "
        "value; those of all samples are within 10.0%, with a confidence of 95%"
    )


def test_what_never_rests_goes_on_to_the_end_and_says_so() -> None:
    rows = np.arange(1, 1025, dtype=np.float32)[:, None]
    stop = stopped(rows, 0.1)
    assert (stop.num_used, len(stop.looks)) == (1024, 3)
    assert stop.sentence().startswith(
        "calibration used all 1024 samples: after 512 of them the range of 'x' differed by 87.5% in an eighth of them, "
        "10.0% was allowed"
    )


def test_readings_that_can_jump_have_half_of_the_share() -> None:
    rows = np.tile(np.array([4, 0], np.float32), (1024, 1))
    rows[100] = 5
    assert stopped(rows, 0.21, ("percentile",)).num_used == 128
    assert stopped(rows, 0.39, ("minmax",)).looks[0].allowed == 0.195
    assert stopped(rows, 0.39, ("minmax",)).num_used == 1024
    assert stopped(rows, 0.41, ("minmax",)).num_used == 128


def test_too_few_go_on_to_the_end_and_that_is_said() -> None:
    stop = stopped(np.ones((40, 1), np.float32), 0.5)
    assert stop == Stop(0.5, 0.95, 40, 40, ())
    assert stop.sentence() == "calibration used all 40 samples: they are too few to stop before the end"


def test_a_tensor_that_is_zero_or_empty_keeps_nobody_waiting() -> None:
    assert stopped(np.zeros((512, 3), np.float32), 0.1).num_used == 64
    assert stopped(np.zeros((512, 0), np.float32), 0.1).num_used == 64


def test_a_tensor_that_is_zero_in_most_sections_does() -> None:
    rows = np.zeros((512, 3), np.float32)
    rows[40] = 1
    assert stopped(rows, 0.9).looks[0] == SectionsLook(64, "x", 1.0, 0.9)


@pytest.mark.parametrize("method", ["entropy", "mse", "percentile"])
def test_steady_samples_are_within_the_share_of_all(method: Method) -> None:
    rows = np.random.default_rng(0).laplace(size=(1024, 400)).astype(np.float32)
    stop = stopped(rows, 0.5, (method,), 99.99)
    assert stop.num_used < 1024
    read = {"entropy": amax_entropy, "mse": amax_mse}.get(method)
    if read:
        assert read(of(rows[: stop.num_used])) == pytest.approx(read(of(rows)), rel=0.5)


def test_every_reading_that_is_asked_for_has_to_be_steady() -> None:
    rows = np.random.default_rng(0).laplace(size=(1024, 400)).astype(np.float32)
    assert stopped(rows, 0.25, ("mse",)).num_used < 1024 == stopped(rows, 0.25, ("mse", "minmax")).num_used


def test_confidence_on_samples_of_a_network() -> None:
    """Of a hundred orders of samples with spreads of their own, at most one in twenty stops and is wrong."""
    random, wrong, early = np.random.default_rng(0), 0, 0
    for _ in range(100):
        scales = random.lognormal(sigma=0.2, size=(512, 1))
        rows = (scales * random.laplace(size=(512, 200))).astype(np.float32)
        stop = stopped(rows, 0.2, ("mse",))
        early += stop.num_used < 512
        wrong += abs(amax_mse(of(rows[: stop.num_used])) / amax_mse(of(rows)) - 1) > 0.2
    assert early >= 10
    assert wrong <= 5


def test_the_difference_is_the_histogram_of_the_others() -> None:
    random = np.random.default_rng(0)
    for scale in (0.1, 1.0, 30.0):
        first, second = random.normal(size=500), scale * np.append(random.normal(size=400), 0.0)
        ours, expected = difference(of(np.append(first, second)), of(first)), of(second)
        assert (ours.num_values, ours.num_zeros) == (401, 1)
        assert ours.amax == pytest.approx(expected.amax, abs=ours.bin_width)
        widened = Histogram(expected.counts, expected.exponent, 0, 0, 0).merged(Histogram(0 * ours.counts, 9, 0, 0, 0))
        assert widened.counts.sum() == ours.counts.sum()
    empty = difference(of(first), of(first))
    assert (empty.num_values, empty.amax) == (0, 0)


def test_one_sided_values_keep_their_side() -> None:
    values = np.arange(1, 9, dtype=np.float32)
    assert difference(of(-values), of(-values[:3])).max == -1
    assert difference(of(values), of(values[:3])).min == 1


def test_it_goes_on_from_its_record() -> None:
    rows = np.random.default_rng(0).laplace(size=(1024, 30)).astype(np.float32)

    def rule() -> StopRule:
        return StopRule(0.05, (1024, 1), 99.99, lambda found: dict.fromkeys(found, ("mse",)))

    whole = rule()
    for num in range(1, 1025):
        if whole.is_due(num):
            whole.on_part(num, {"x": of(rows[:num])})
    for cut in (1, 16, 40, 128, 200, 256, 600):
        first, second = rule(), rule()
        for num in range(1, cut + 1):
            if first.is_due(num):
                first.on_part(num, {"x": of(rows[:num])})
        parts: Mapping[int, Mapping[str, Histogram]] = first.seen
        second.resume(first.record(), parts)
        for num in range(cut + 1, 1025):
            if second.is_due(num):
                second.on_part(num, {"x": of(rows[:num])})
        assert second.stop() == whole.stop()
    with pytest.raises(KeyError):
        rule().resume({"at": 16, "ends": [16], "looks": []}, {})


def test_its_file(tmp_path: Path) -> None:
    assert stop_from_folder(tmp_path) is None
    stop = Stop(0.1, 0.95, 800, 200, (SectionsLook(100, "ä", 0.13, 0.1), SectionsLook(200, "b", 0.04, 0.05)))
    write_stop(stop, tmp_path)
    assert stop_from_folder(tmp_path) == stop
    text = (tmp_path / "stop.json").read_text()
    for broken in ("{", "[]", text.replace("200", "0"), text.replace("num_used", "used"), text.replace("800", "100")):
        (tmp_path / "stop.json").write_text(broken)
        with pytest.raises(DataError, match=r"stop\.json: is damaged \(.*\); delete it, or calibrate again"):
            stop_from_folder(tmp_path)
