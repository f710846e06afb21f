"""Several workers: the same to the byte, really at the same time, and the first error counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.collect import Array, collect
from calibration.errors import DataError


def square(batch: Mapping[str, Array]) -> dict[str, Array]:
    x = np.asarray(batch["x"], np.float32)
    return {"y": x * np.abs(x)}


def batches_of(samples: npt.NDArray[np.float32], size: int) -> Iterator[dict[str, Array]]:
    for begin in range(0, len(samples), size):
        yield {"x": samples[begin : begin + size]}


@settings(deadline=None, max_examples=40)
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

    def run(batch: Mapping[str, Array]) -> dict[str, Array]:
        meeting.wait(timeout=10)  # Breaks unless three are here at once.
        return square(batch)

    collect(run, batches_of(np.ones((9, 2), np.float32), 1), num_workers=3)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_first_bad_sample_is_named_and_no_further_one_is_run(workers: int) -> None:
    ran = []

    def run(batch: Mapping[str, Array]) -> dict[str, Array]:
        ran.append(1)
        return square(batch)

    samples = np.ones((500, 2), np.float32)
    samples[[5, 6, 7, 8]] = np.nan
    with pytest.raises(DataError, match="tensor 'x' on samples 5 to 5: 2 of 2 values are NaN"):
        collect(run, batches_of(samples, 1), num_workers=workers)
    assert len(ran) < 100


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_the_data_comes_through(workers: int) -> None:
    def batches() -> Iterator[dict[str, Array]]:
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
