"""Counting in compiled code and in numpy: the same to the byte."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.errors import DataError
from calibration.histogram import accumulate
from calibration.histogram.accumulate import (
    Accumulator,
    CompiledAccumulator,
    NumpyAccumulator,
    accumulator,
    compiled_module,
)
from calibration.histogram.histogram import NUM_BINS, Histogram, histogram_from_values

Floats = npt.NDArray[np.float32]

compiled: Any = compiled_module()
INSTRUCTIONS = ("plain", "avx2", "avx512")

needs_compiled = pytest.mark.skipif(compiled is None, reason="histogram.c was not built: no C compiler at installation")


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled module with these instructions, or the best below them that this CPU has."""
    used = compiled.use(request.param)
    yield used
    compiled.use("avx512")


def same(a: Histogram, b: Histogram) -> None:
    assert np.array_equal(a.counts, b.counts)
    assert (a.exponent, a.min, a.max, a.num_zeros) == (b.exponent, b.min, b.max, b.num_zeros)
    assert np.copysign(1, [a.min, a.max]).tolist() == np.copysign(1, [b.min, b.max]).tolist()


floats = hnp.arrays(
    np.float32,
    st.integers(0, 5000),
    elements=st.one_of(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 2.0**-110, 2.0**-111, 3.4e38, 6.0]),
    ),
    fill=st.floats(-8, 8, width=32),
)


@needs_compiled
@settings(max_examples=60)
@given(batches=st.lists(floats, max_size=5), which=st.sampled_from(INSTRUCTIONS))
def test_compiled_counts_are_those_of_numpy_to_the_byte(batches: list[Floats], which: str) -> None:
    compiled.use(which)
    ours, reference = CompiledAccumulator(compiled), NumpyAccumulator()
    for values in batches:
        ours.add(values, "x")
        reference.add(values, "x")
    same(ours.histogram(), reference.histogram())


@needs_compiled
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 2047, 2048, 2049, 4097])
def test_ends_of_blocks_and_of_vectors_are_counted_once(instructions: str, size: int) -> None:
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    ours = CompiledAccumulator(compiled)
    ours.add(values, "x")
    same(ours.histogram(), histogram_from_values(values, "x"))


@needs_compiled
def test_the_range_doubles_in_the_middle_of_an_array(instructions: str) -> None:
    values = np.concatenate([np.full(5000, 0.3), np.full(5000, 70.0), np.full(5000, 2.0**-120)]).astype(np.float32)
    ours = CompiledAccumulator(compiled)
    ours.add(values, "x")
    found = ours.histogram()
    assert found.exponent == 7
    assert found.counts[int(70.0 * NUM_BINS / 128)] == 5000
    assert found.counts[int(0.3 * NUM_BINS / 128)] == 5000
    assert found.counts[0] == 5000
    assert found.num_zeros == 0


@needs_compiled
def test_counters_are_emptied_before_they_overflow() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    ours = CompiledAccumulator(compiled, capacity=300)
    for part in (values[:100], values[100:350], values[350:]):
        ours.add(part, "x")
    same(ours.histogram(), histogram_from_values(values, "x"))


@needs_compiled
def test_a_bin_takes_more_values_than_sixteen_bits_count(instructions: str) -> None:
    values = np.full(200_000, 0.7, np.float32)
    ours = CompiledAccumulator(compiled)
    ours.add(values, "x")
    ours.add(np.concatenate([values, np.full(70_000, 3.0, np.float32), values]), "x")  # Doubles the range, twice.
    found = ours.histogram()
    assert found.counts[int(0.7 * NUM_BINS / 4)] == 600_000
    assert found.counts[int(3.0 * NUM_BINS / 4)] == 70_000
    assert found.num_values == 670_000


@needs_compiled
@pytest.mark.parametrize("bad", [np.nan, -np.nan])
@pytest.mark.parametrize("at", [0, 3000, 4999])
def test_nan_is_refused_in_the_same_words(instructions: str, bad: float, at: int) -> None:
    values = np.ones(5000, np.float32)
    values[(at + 7) % 5000], values[at] = np.inf, bad
    with pytest.raises(DataError, match=r"^tensor 'y': 1 of 5000 values are NaN, numbers are expected"):
        CompiledAccumulator(compiled).add(values, "tensor 'y'")
    with pytest.raises(DataError, match=r"^tensor 'y': 1 of 5000 values are NaN, numbers are expected"):
        NumpyAccumulator().add(values, "tensor 'y'")


@needs_compiled
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 31, 2048, 2049, 20_000])
def test_infinities_are_counted_apart(instructions: str, size: int, share: float) -> None:
    random = np.random.default_rng(size)
    values = (random.normal(size=size) * 10.0 ** random.integers(-9, 9, size)).astype(np.float32)
    values[random.uniform(size=size) < share] = random.choice([np.inf, -np.inf])
    finite = values[np.isfinite(values)]
    ours, numpys = CompiledAccumulator(compiled), NumpyAccumulator()
    for part in (values, finite, values):
        ours.add(part, "tensor 'y'")
        numpys.add(part, "tensor 'y'")
    expected = histogram_from_values(np.concatenate([finite] * 3), "")
    for found in (ours.histogram(), numpys.histogram()):
        np.testing.assert_array_equal(found.counts, expected.counts)
        assert (found.exponent, found.min, found.max, found.num_zeros) == (
            expected.exponent, expected.min, expected.max, expected.num_zeros,
        )  # fmt: skip
        assert found.num_infinite == 2 * (size - finite.size)


@needs_compiled
@pytest.mark.parametrize(
    ("values", "table"),
    [(np.zeros(4, np.float32), np.zeros(4, np.uint32)), (np.zeros(3, np.int8), np.zeros(NUM_BINS, np.uint32))],
)
def test_the_compiled_module_refuses_buffers_of_other_sizes(values: npt.NDArray[Any], table: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"float32 values and a table of \(16384,\) uint32"):
        compiled.add(values, table, 0)


@needs_compiled
def test_a_module_compiled_from_another_version_is_said_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "NUM_COUNTERS", 2 * NUM_BINS)
    accumulate.compiled_module.cache_clear()
    try:
        assert isinstance(accumulator(), NumpyAccumulator)
        assert "is of another version; install again" in caplog.text
    finally:
        accumulate.compiled_module.cache_clear()


@pytest.mark.parametrize("make", [accumulator, NumpyAccumulator])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_any_float_of_any_shape_and_stride(make: Callable[[], Accumulator], dtype: str) -> None:
    values = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)[:, ::2].transpose(2, 0, 1)
    ours = make()
    ours.add(values, "x")
    same(ours.histogram(), histogram_from_values(np.ascontiguousarray(values).astype(np.float32), "x"))


@pytest.mark.parametrize("make", [accumulator, NumpyAccumulator])
def test_a_float64_beyond_float32_is_an_infinity(make: Callable[[], Accumulator]) -> None:
    adding = make()
    adding.add(np.array([1.0, 1e300]), "x")
    assert (adding.histogram().num_values, adding.histogram().num_infinite) == (1, 1)


def test_nothing_added_is_the_histogram_of_nothing() -> None:
    same(accumulator().histogram(), histogram_from_values(np.zeros(0), "x"))


def test_memory_does_not_grow_with_the_values() -> None:
    ours = accumulator()
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    ours.add(values, "x")
    tracemalloc.start()
    try:
        for _ in range(20):
            ours.add(values, "x")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 400_000


def test_without_the_compiled_module_numpy_counts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "calibration.histogram._histogram", None)
    monkeypatch.delattr("calibration.histogram._histogram", raising=False)
    accumulate.compiled_module.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert isinstance(accumulator(), NumpyAccumulator)
        assert "counting with numpy" in caplog.text
    finally:
        accumulate.compiled_module.cache_clear()
