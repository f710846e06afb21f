"""Several workers: the same to the byte, really at the same time, and the first error counts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.arrays import AnyArray
from calibration.errors import DataError
from calibration.histogram.collect import collect
from calibration.histogram.histogram import Histogram


def square(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    x = np.asarray(batch["x"], np.float32)
    return {"y": x * np.abs(x)}


def batches_of(samples: npt.NDArray[np.float32], size: int) -> Iterator[dict[str, AnyArray]]:
    for begin in range(0, len(samples), size):
        yield {"x": samples[begin : begin + size]}


@settings(max_examples=40)
@given(num=st.integers(1, 30), size=st.integers(1, 9), workers=st.integers(1, 5), seed=st.integers(0, 99))
def test_neither_workers_nor_batches_nor_order_show(num: int, size: int, workers: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = random.lognormal(sigma=4, size=(num, 40)).astype(np.float32)
    samples *= random.choice([-1.0, 0.0, 1.0], samples.shape).astype(np.float32)
    plain = collect(square, batches_of(samples, 1))
    ours = collect(square, batches_of(random.permutation(samples), size), num_workers=workers)
    assert list(ours) == list(plain) == ["x", "y"]
    for name, expected in plain.items():
        assert ours[name].counts.tobytes() == expected.counts.tobytes()
        figures = [(h.exponent, h.min, h.max, h.num_zeros) for h in (ours[name], expected)]
        assert figures[0] == figures[1]


def test_workers_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3)

    def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        meeting.wait(timeout=300)  # Breaks unless three are here at once.
        return square(batch)

    collect(run, batches_of(np.ones((9, 2), np.float32), 1), num_workers=3)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_first_bad_sample_is_named_and_no_further_one_is_run(workers: int) -> None:
    ran = []

    def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        ran.append(1)
        return square(batch)

    samples = np.ones((500, 2), np.float32)
    samples[[5, 6, 7, 8]] = np.nan
    with pytest.raises(DataError, match="tensor 'x' on samples 5 to 5: 2 of 2 values are NaN"):
        collect(run, batches_of(samples, 1), num_workers=workers)
    assert len(ran) < 100


@pytest.mark.parametrize("workers", [1, 3])
def test_ctrl_c_ends_it_at_once(workers: int) -> None:
    ran = []

    def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        ran.append(1)
        if len(ran) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return square(batch)

    with pytest.raises(KeyboardInterrupt):
        collect(run, batches_of(np.ones((3000, 2), np.float32), 1), num_workers=workers)
    assert len(ran) < 1000


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_the_data_comes_through(workers: int) -> None:
    def batches() -> Iterator[dict[str, AnyArray]]:
        yield {"x": np.ones((1, 2), np.float32)}
        raise DataError("sample 1: is missing")

    with pytest.raises(DataError, match="sample 1: is missing"):
        collect(square, batches(), num_workers=workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_counts_every_sample_once(workers: int) -> None:
    said: list[int] = []
    collect(square, batches_of(np.ones((7, 2), np.float32), 2), on_batch=said.append, num_workers=workers)
    assert sorted(said) == said
    assert said[-1] == 7
    assert len(said) == 4


@dataclass
class Looking:
    """An observer that looks after 1, 2, 4, ... samples."""

    look: Callable[[int, Mapping[str, Histogram]], object]
    num_before: int = 0
    before: Mapping[str, Histogram] = field(default_factory=dict)
    last: int = 0
    next: int = 1

    def begun(self) -> tuple[int, Mapping[str, Histogram]]:
        return self.num_before, self.before

    def is_due(self, num_samples: int) -> bool:
        return num_samples >= self.next

    def on_part(self, num_samples: int, histograms: Mapping[str, Histogram]) -> bool:
        self.next = 1 << num_samples.bit_length()
        self.look(num_samples, histograms)
        return num_samples != self.last


class TestParts:
    """``observer``: the histograms after 1, 2, 4, ... samples."""

    @pytest.mark.parametrize("num_workers", [1, 2, 4])
    def test_each_part_has_the_first_samples_and_no_other(self, num_workers: int) -> None:
        parts: list[tuple[int, float, int]] = []

        def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
            time.sleep(0.002 * float(np.asarray(batch["x"], np.float32)[0, 0] % 3))
            return {"y": batch["x"]}

        def on_part(num_samples: int, histograms: Mapping[str, Histogram]) -> None:
            assert len(histograms) == len(list(histograms)) == 2
            parts.append((num_samples, histograms["y"].max, histograms["x"].num_values))

        feeds = [{"x": np.full((1, 1), index, np.float32)} for index in range(11)]
        collect(run, feeds, observer=Looking(on_part), num_workers=num_workers)
        assert parts == [(1, 0, 1), (2, 1, 2), (4, 3, 4), (8, 7, 8)]

    @pytest.mark.parametrize(("batch_size", "expected"), [(3, [3, 6, 9, 18]), (8, [8, 16]), (64, [20])])
    def test_batches_that_pass_a_power_of_two(self, batch_size: int, expected: list[int]) -> None:
        parts: list[int] = []
        x = np.zeros((20, 1), np.float32)
        feeds = [{"x": x[i : i + batch_size]} for i in range(0, 20, batch_size)]
        collect(lambda _batch: {}, feeds, observer=Looking(lambda num, _found: parts.append(num)), num_workers=2)
        assert parts == expected

    def test_the_result_is_the_same_with_parts_and_without(self) -> None:
        x = np.random.default_rng(0).normal(size=(13, 9)).astype(np.float32)
        feeds = [{"x": x[i : i + 1]} for i in range(13)]
        looking = Looking(lambda _num, found: found["x"].counts.sum())
        with_parts = collect(lambda _batch: {}, feeds, observer=looking)["x"]
        without = collect(lambda _batch: {}, feeds)["x"]
        np.testing.assert_array_equal(with_parts.counts, without.counts)
        assert (with_parts.min, with_parts.max) == (without.min, without.max)

    @pytest.mark.parametrize("fails", ["run", "on_part", "batches"])
    def test_a_failure_ends_the_waiting(self, fails: str) -> None:
        def run(batch: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
            if fails == "run" and np.asarray(batch["x"], np.float32)[0, 0] == 2:
                raise RuntimeError("run")
            time.sleep(0.002)
            return {}

        def on_part(num_samples: int, _histograms: Mapping[str, Histogram]) -> None:
            if fails == "on_part" and num_samples == 4:
                raise RuntimeError("on_part")

        def feeds() -> Iterator[dict[str, AnyArray]]:
            for index in range(20):
                if fails == "batches" and index == 3:
                    raise RuntimeError("batches")
                yield {"x": np.full((1, 1), index, np.float32)}

        with pytest.raises(RuntimeError, match=fails):
            collect(run, feeds(), observer=Looking(on_part), num_workers=3)

    @pytest.mark.parametrize("num_workers", [1, 3])
    def test_an_observer_may_end_it(self, num_workers: int) -> None:
        feeds = [{"x": np.full((1, 1), index, np.float32)} for index in range(20)]
        ran: list[int] = []
        found = collect(
            lambda _batch: ran.append(1) or {},  # type: ignore[func-returns-value]
            feeds,
            observer=Looking(lambda _num, _found: None, last=8),
            num_workers=num_workers,
        )
        assert (len(ran), found["x"].num_values, found["x"].max) == (8, 8, 7)

    @pytest.mark.parametrize("num_workers", [1, 3])
    @pytest.mark.parametrize("num_before", [1, 6, 11])
    def test_it_goes_on_from_histograms_that_are_there(self, num_workers: int, num_before: int) -> None:
        x = np.random.default_rng(0).normal(size=(11, 9)).astype(np.float32)
        feeds = [{"x": x[i : i + 1]} for i in range(11)]
        before, whole = collect(square, feeds[:num_before]), collect(square, feeds)
        parts: list[tuple[int, int]] = []
        looking = Looking(lambda num, found: parts.append((num, found["y"].num_values)), num_before, before, next=8)
        ours = collect(square, feeds, observer=looking, num_workers=num_workers)
        assert parts == [(max(8, num_before), 9 * max(8, num_before))]
        for name, expected in whole.items():
            np.testing.assert_array_equal(ours[name].counts, expected.counts)
            assert (ours[name].min, ours[name].max) == (expected.min, expected.max)
