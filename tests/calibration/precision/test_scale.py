"""Scales and zero points from ranges; and no CPU is given arithmetic that it saturates in."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.precision.scale import (
    LARGEST_PAIR,
    SMALLEST_SCALE,
    Arithmetic,
    DataType,
    Quantization,
    arithmetic_for,
    asymmetric,
    quantized,
    symmetric,
    weight_scales,
)
from calibration.ranges.span import Span

NO_VNNI = {"avx", "avx2", "fma"}


def test_symmetric_is_amax_over_127() -> None:
    assert symmetric(Span(amax=254.0, min=-3.0, max=300.0)) == Quantization(2.0, 0, "int8")


def test_symmetric_never_underflows_to_scale_zero() -> None:
    found = symmetric(Span(amax=1e-44, min=0.0, max=1e-44))
    assert found is not None
    assert found.scale == SMALLEST_SCALE


def test_no_scale_comes_from_zeros() -> None:
    zeros = Span(amax=0.0, min=0.0, max=0.0)
    assert symmetric(zeros) is None
    assert asymmetric(zeros, "uint8") is None


@pytest.mark.parametrize(
    ("span", "dtype", "expected"),
    [
        (Span(amax=255.0, min=0.0, max=255.0), "uint8", Quantization(1.0, 0, "uint8")),
        (Span(amax=255.0, min=0.0, max=255.0), "int8", Quantization(1.0, -128, "int8")),
        (Span(amax=200.0, min=-127.5, max=127.5), "uint8", Quantization(1.0, 128, "uint8")),
        (Span(amax=510.0, min=100.0, max=510.0), "uint8", Quantization(2.0, 0, "uint8")),
        (Span(amax=510.0, min=-510.0, max=-5.0), "uint8", Quantization(2.0, 255, "uint8")),
        (Span(amax=255.0, min=0.0, max=4000.0), "uint8", Quantization(1.0, 0, "uint8")),
        (Span(amax=51.0, min=-204.0, max=204.0), "int8", Quantization(float(np.float32(0.4)), -1, "int8")),
    ],
)
def test_asymmetric(span: Span, dtype: DataType, expected: Quantization) -> None:
    assert asymmetric(span, dtype) == expected


@given(amax=st.floats(2.0**-100, 2.0**100), low=st.floats(-1.0, 0.0), dtype=st.sampled_from(["uint8", "int8"]))
def test_asymmetric_represents_zero_exactly_and_covers_the_range(amax: float, low: float, dtype: DataType) -> None:
    found = asymmetric(Span(amax=amax, min=low * amax, max=amax), dtype)
    assert found is not None
    first = 0 if dtype == "uint8" else -128
    assert first <= found.zero_point <= first + 255
    assert (first + 255 - found.zero_point) * found.scale == pytest.approx(amax, abs=found.scale)
    assert (first - found.zero_point) * found.scale == pytest.approx(low * amax, abs=found.scale)
    assert found.scale == float(np.float32(found.scale))


@given(upper=st.floats(2.0**-60, 2.0**60, width=32))
def test_no_level_lies_beyond_the_bound_of_a_clip(upper: float) -> None:
    found = asymmetric(Span(amax=upper, min=0.0, max=upper), "uint8")
    assert found is not None
    assert np.float32(found.scale) * np.float32(255) <= np.float32(upper)


def test_weight_scales_for_each_channel_and_for_all() -> None:
    weight = np.array([[127.0, -254.0], [0.0, 0.0], [1.0, 12.7]], np.float32)
    np.testing.assert_allclose(weight_scales(weight, 0), [2.0, 1.0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(weight_scales(weight, 1), [1.0, 2.0])
    assert weight_scales(weight, None) == np.float32(2.0)
    assert weight_scales(weight, None).shape == ()


def test_quantized_rounds_half_to_even_and_clips() -> None:
    values = np.array([[0.5, 1.5, 2.5, -300.0], [5.0, 15.0, -15.0, 90.0]], np.float32)
    scales = np.array([1.0, 10.0], np.float32)
    assert quantized(values, scales, 0).tolist() == [[0, 2, 2, -127], [0, 2, -2, 9]]


@given(st.lists(st.floats(2.0**-60, 2.0**60, width=32) | st.floats(-(2.0**60), 0.0, width=32), min_size=1))
def test_limits_hold_for_any_weight(values: list[float]) -> None:
    weight = np.array(values, np.float32)[:, None]
    integers = quantized(weight, weight_scales(weight, 0), 0)
    assert np.abs(integers).max() <= 127
    assert set(np.abs(integers[np.abs(weight) >= 2.0**-60]).ravel()) <= {127}


def test_pairs_of_seven_bits_fit_sixteen_and_full_ones_do_not() -> None:
    largest = 2**15 - 1
    assert largest >= 255 * LARGEST_PAIR
    assert largest < 2 * 255 * 127
    assert largest >= 2 * 128 * 127, "as Arm adds them"


def test_scales_leave_room_for_neighbours_of_one_sign_alone() -> None:
    """(2 outputs, 4 inputs): the first has neighbours of 1 and 1, the second of 1 and -1."""
    weight = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, -1.0, 0.0, 1.0]], np.float32)
    np.testing.assert_allclose(weight_scales(weight, 0, in_pairs=True), [2 / 127, 1 / 127], rtol=1e-6)
    np.testing.assert_allclose(weight_scales(weight.T, 1, in_pairs=True), [2 / 127, 1 / 127], rtol=1e-6)
    assert weight_scales(weight.T, None, in_pairs=True) == np.float32(2 / 127)
    assert weight_scales(weight[0], None, in_pairs=True) == np.float32(2 / 127)


def test_neighbours_of_a_convolution_are_input_channels_at_one_position() -> None:
    weight = np.zeros((1, 2, 1, 4), np.float32)
    weight[0, 0] = 1.0
    np.testing.assert_allclose(weight_scales(weight, 0, in_pairs=True), [1 / 127], rtol=1e-6)
    weight[0, 1, 0, 2] = 0.5
    np.testing.assert_allclose(weight_scales(weight, 0, in_pairs=True), [1.5 / 127], rtol=1e-6)


@given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=30), st.sampled_from([1, 2, 3]))
def test_no_pair_is_beyond_sixteen_bits(values: list[float], num_channels: int) -> None:
    length = -(-len(values) // num_channels)
    weight = np.resize(np.array(values, np.float32), (1, num_channels, length))
    integers = quantized(weight, weight_scales(weight, 0, in_pairs=True), 0)
    order = integers[0].T.ravel()
    assert np.abs(order).max() <= 127
    order = np.append(order, np.zeros(len(order) % 2, np.int64)).reshape(-1, 2)
    for sign in (1, -1):
        assert np.maximum(sign * order, 0).sum(axis=1).max() <= LARGEST_PAIR


@pytest.mark.parametrize(
    ("flags", "machine", "arithmetic", "because"),
    [
        ({"avx2", "avx512_vnni"}, "x86_64", "u8s8", "avx512_vnni"),
        ({"avx2", "avx_vnni"}, "AMD64", "u8s8", "avx_vnni"),
        (NO_VNNI, "x86_64", "u8s7", "no VNNI"),
        (set(), "x86_64", "u8s7", "not known"),
        (set(), "riscv64", "u8s7", "riscv64"),
        (set(), "", "u8s7", "unknown"),
        ({"asimd", "asimddp"}, "aarch64", "s8s8", "asimddp"),
        ({"asimd"}, "aarch64", "s8s8", "without overflow"),
        ({"asimd", "asimddp"}, "x86_64", "u8s7", "no VNNI"),
    ],
)
def test_arithmetic_for_a_cpu(flags: set[str], machine: str, arithmetic: Arithmetic, because: str) -> None:
    chosen, sentence = arithmetic_for(flags, machine)
    assert chosen == arithmetic
    assert because in sentence


def test_scales_are_finite_both_ways() -> None:
    assert math.isfinite(1.0 / SMALLEST_SCALE)
