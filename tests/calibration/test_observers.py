"""Histograms that no order or split changes; ranges read from them equal slow references written out here."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.observers import (
    CHUNK,
    LEAST_EXPONENT,
    NUM_BINS,
    READINGS,
    TIE,
    Floats,
    Histogram,
    amax_entropy,
    amax_minmax,
    amax_mse,
    amax_percentile,
    clipped_share,
    divergences,
    entropy_bins,
    exponent_of,
    histogram_from_values,
    histogram_of,
    sqnr_db,
    squared_errors,
)

LARGEST = float(np.finfo(np.float32).max)
SMALLEST_SUBNORMAL = 2.0**-149
NUM = 200_000


def of(*values: float) -> Histogram:
    return histogram_from_values(np.array(values, np.float32), "tensor 't'")


def generator() -> np.random.Generator:
    return np.random.default_rng(2017)


def relu_of_normal() -> Floats:
    return np.asarray(np.maximum(generator().standard_normal(NUM), 0.0))


def laplace() -> Floats:
    return generator().laplace(size=NUM)


def laplace_with_outliers() -> Floats:
    """Every thousandth value is ten times as large."""
    return laplace() * np.where(np.arange(NUM) % 1000 == 0, 10.0, 1.0)


def relu6() -> Floats:
    """A spike at 0 and one at 6."""
    return np.clip(3.0 * generator().standard_normal(NUM), 0.0, 6.0)


def image_bytes() -> Floats:
    return np.repeat(np.arange(256.0), 100)


DISTRIBUTIONS = (relu_of_normal, laplace, laplace_with_outliers, relu6, image_bytes)


def slow_divergence(bins: Sequence[int], m: int) -> float:
    """KL(P || Q) for one m, bin by bin: Migacz 2017, as in pytorch-quantization's ``_compute_amax_entropy``."""
    filled = [float(count) for count in bins]
    filled[0] = filled[1]
    kept, tail = filled[:m], sum(filled[m:])
    level_sum, level_num = [0.0] * 128, [0] * 128
    for j, count in enumerate(kept):
        if count > 0:
            level_sum[j * 128 // m] += count
            level_num[j * 128 // m] += 1
    q = [level_sum[j * 128 // m] / level_num[j * 128 // m] if count > 0 else 0.0 for j, count in enumerate(kept)]
    p = [*kept[:-1], kept[-1] + tail]
    sum_p, sum_q, divergence = sum(p), sum(q), 0.0
    for in_p, in_q in zip(p, q):
        if in_p > 0:
            if in_q == 0:
                return math.inf
            divergence += in_p / sum_p * math.log(in_p / sum_p / (in_q / sum_q))
    return divergence


def slow_amax_entropy(bins: Sequence[int], amax: float) -> float:
    """All m, and the last of the best; those that differ only by rounding are equal."""
    found = {m: slow_divergence(bins, m) for m in range(128, 2049)}
    best = max(m for m, divergence in found.items() if divergence <= min(found.values()) + TIE)
    return (best + 0.5) / 2048 * amax


def slow_squared_error(values: Floats, amax: float) -> float:
    """What int8 with scale amax / 127 really does to the values."""
    codes = np.clip(np.rint(values / (amax / 127)), -127, 127)
    return float(((values - codes * (amax / 127)) ** 2).sum())


def same(one: Histogram, other: Histogram) -> bool:
    """Equal to the byte."""
    facts = [(h.exponent, h.min.hex(), h.max.hex(), h.num_zeros, h.counts.tobytes()) for h in (one, other)]
    return facts[0] == facts[1]


# The histogram.


def test_a_value_lies_in_the_bin_that_its_magnitude_names() -> None:
    found = of(-3.0, 0.0, 0.5, 2.9999, 3.0)
    assert found.exponent == 2, "3 < 2^2"
    width = 4 / NUM_BINS
    assert found.bin_width == width
    expected = np.zeros(NUM_BINS, np.int64)
    for value in (3.0, 0.0, 0.5, 2.9999, 3.0):
        expected[math.floor(value / width)] += 1
    np.testing.assert_array_equal(found.counts, expected)
    assert (found.min, found.max, found.num_zeros, found.num_values, found.amax) == (-3.0, 3.0, 1, 5, 3.0)


def test_counts_equal_numpys_histogram_also_beyond_one_chunk() -> None:
    values = generator().standard_normal(3 * CHUNK + 1).astype(np.float32)
    expected, _ = np.histogram(np.abs(values).astype(np.float64), NUM_BINS, (0.0, 8.0))
    np.testing.assert_array_equal(histogram_of(values, 3), expected)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    values=st.lists(FLOATS | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, LARGEST, SMALLEST_SUBNORMAL]), min_size=1),
    data=st.data(),
)
def test_no_order_no_split_and_no_order_of_merging_changes_a_byte(values: list[float], data: st.DataObject) -> None:
    whole = of(*values)
    shuffled = data.draw(st.permutations(values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)))))
    parts = [of(*shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(values)])]
    while len(parts) > 1:
        index = data.draw(st.integers(0, len(parts) - 2))
        one, other = parts.pop(index), parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(one.merged(other))
    assert same(parts[0], whole)


@given(values=st.lists(FLOATS, min_size=1))
def test_extremes_are_exact_and_every_value_is_counted(values: list[float]) -> None:
    found = of(*values)
    assert found.num_values == len(values)
    assert (found.min, found.max) == (min(values), max(values))
    assert found.num_zeros == sum(value == 0 for value in values)
    assert found.amax < 2.0**found.exponent
    for reading in READINGS.values():
        assert 0 <= reading(found) <= found.amax * 2048.5 / 2048


def test_merging_adds_neighbours_when_the_range_doubles() -> None:
    merged = of(0.75, 0.25).merged(of(-100.0))
    assert merged.exponent == 7
    assert np.flatnonzero(merged.counts).tolist() == [int(x * NUM_BINS / 128) for x in (0.25, 0.75, 100.0)]


def test_merging_ranges_far_apart_puts_the_small_ones_into_the_first_bin() -> None:
    merged = of(SMALLEST_SUBNORMAL, 1e-20).merged(of(LARGEST))
    assert (merged.exponent, merged.counts[0], merged.counts[-1]) == (128, 2, 1)


def test_merging_leaves_the_parts_as_they_were() -> None:
    one, other = of(1.0), of(2.0)
    before = one.counts.copy()
    one.merged(other).counts[:] = 7
    np.testing.assert_array_equal(one.counts, before)


@pytest.mark.parametrize(
    ("amax", "exponent"),
    [(1.0, 1), (0.99, 0), (2.0, 2), (6.0, 3), (LARGEST, 128), (0.0, LEAST_EXPONENT), (1e-44, LEAST_EXPONENT)],
)
def test_the_exponent_is_the_least_power_of_two_above(amax: float, exponent: int) -> None:
    assert exponent_of(amax) == exponent


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_type_and_shape_gives_the_same(dtype: type[np.floating]) -> None:
    values = np.array([[0.5, -1.5], [0.0, 2.25]])
    assert same(histogram_from_values(values.astype(dtype).T, "t"), of(0.5, -1.5, 0.0, 2.25))
    assert same(histogram_from_values(np.asarray(1.5, dtype), "t"), of(1.5))


def test_float64_is_rounded_to_float32() -> None:
    assert same(histogram_from_values(np.array([0.1, 1e-60]), "t"), of(0.1, 0.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_what_is_not_finite_in_float32_is_refused_with_the_tensors_name(bad: float) -> None:
    message = (
        r"^tensor 'conv_1' on samples 0 to 7: 2 of 3 values are NaN or infinite in float32, finite values are expected;"
    )
    with pytest.raises(DataError, match=message):
        histogram_from_values(np.array([bad, 1.0, bad]), "tensor 'conv_1' on samples 0 to 7")


def test_a_signalling_nan_is_refused_without_a_warning() -> None:
    signalling = np.array([0x7FF0000000000001], np.uint64).view(np.float64)
    with pytest.raises(DataError, match="NaN"):
        histogram_from_values(signalling, "t")


def test_minus_zero_is_zero() -> None:
    found = of(-0.0, 0.0)
    assert (found.num_zeros, found.min.hex(), found.max.hex()) == (2, (0.0).hex(), (0.0).hex())


def test_a_histogram_of_nothing_merges_into_anything() -> None:
    nothing = histogram_from_values(np.zeros((0, 3), np.float32), "t")
    something = of(-2.0, -1.0)
    assert nothing.num_values == 0
    assert same(nothing.merged(something), something)
    assert same(something.merged(nothing), something)
    assert same(nothing.merged(nothing), nothing)


# All readings, on what is at the edge.


def readings(histogram: Histogram) -> dict[str, float]:
    return {name: read(histogram) for name, read in READINGS.items()} | {"percentile": amax_percentile(histogram, 99.9)}


@pytest.mark.parametrize("histogram", [of(0.0, -0.0), histogram_from_values(np.zeros(0, np.float32), "t")])
def test_without_a_signal_every_amax_is_zero(histogram: Histogram) -> None:
    assert set(readings(histogram).values()) == {0.0}
    assert sqnr_db(histogram, 0.0) is None
    assert clipped_share(histogram, 0.0) == 0.0


@pytest.mark.parametrize("value", [1.0, -1.0, 0.75, 3.1e-5, LARGEST, -LARGEST, 2.0**-100])
def test_a_constant_keeps_its_magnitude(value: float) -> None:
    histogram = of(value, value)
    for name, amax in readings(histogram).items():
        assert amax == pytest.approx(histogram.amax, rel=1e-3), name
        ratio = sqnr_db(histogram, amax)
        assert ratio is not None
        assert ratio > 60, name


@pytest.mark.parametrize("value", [SMALLEST_SUBNORMAL, 1e-40, -3e-42])
def test_subnormals_have_a_range_that_holds_them(value: float) -> None:
    histogram = of(value, value / 2, 0.0)
    for name, amax in readings(histogram).items():
        assert 0 < amax <= histogram.amax * 2048.5 / 2048, name
        ratio = sqnr_db(histogram, amax)
        assert ratio is not None
        assert math.isfinite(ratio), name


def test_one_sided_values_read_as_their_mirror_image() -> None:
    values = np.abs(laplace()[:5000])
    assert readings(histogram_from_values(values, "t")) == readings(histogram_from_values(-values, "t"))


def test_scaling_by_a_power_of_two_scales_every_amax_exactly() -> None:
    values = laplace()[:20_000].astype(np.float32)
    plain, scaled = (readings(histogram_from_values(v, "t")) for v in (values, values * np.float32(2.0**-20)))
    assert scaled == {name: amax * 2.0**-20 for name, amax in plain.items()}


def test_minmax_is_the_largest_magnitude() -> None:
    assert amax_minmax(of(-7.25, 3.0)) == 7.25


# Percentile.


@pytest.mark.parametrize("make", DISTRIBUTIONS)
@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
def test_percentile_is_numpys_within_a_bin(make: type[Floats], percentile: float) -> None:
    values = np.abs(make()).astype(np.float32)
    histogram = histogram_from_values(values, "t")
    expected = float(np.percentile(values, percentile, method="inverted_cdf"))
    assert expected <= amax_percentile(histogram, percentile) <= expected + histogram.bin_width


def test_percentile_100_is_minmax() -> None:
    histogram = of(*np.linspace(-1.0, 6.1, 1001))
    assert amax_percentile(histogram, 100) == amax_minmax(histogram)


def test_percentile_counts_in_exact_decimals() -> None:
    """99.9 % of 1000 values are 999; in binary, 99.9 is a little more."""
    histogram = of(*[1.0] * 999, 100.0)
    assert amax_percentile(histogram, 99.9) == 1.0 + histogram.bin_width
    assert amax_percentile(histogram, 99.91) == 100.0


@given(values=st.lists(FLOATS, min_size=1), pair=st.tuples(*[st.floats(0.001, 100)] * 2))
def test_percentile_grows_with_the_share(values: list[float], pair: tuple[float, float]) -> None:
    low, high = sorted(pair)
    histogram = of(*values)
    assert amax_percentile(histogram, low) <= amax_percentile(histogram, high) <= histogram.amax


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, math.nan, math.inf])
def test_a_share_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(DataError, match=rf"^percentile: is {percentile}, a number above 0 and up to 100 is expected"):
        amax_percentile(of(1.0), percentile)


# Entropy.


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_entropy_equals_the_slow_loop(make: type[Floats]) -> None:
    histogram = histogram_from_values(make(), "t")
    bins = entropy_bins(histogram).tolist()
    assert amax_entropy(histogram) == slow_amax_entropy(bins, histogram.amax)


def random_bins() -> npt.NDArray[np.int64]:
    return generator().poisson(3.0, 2048)


def sparse_bins() -> npt.NDArray[np.int64]:
    bins = np.zeros(2048, np.int64)
    bins[generator().integers(0, 2048, 60)] = generator().integers(1, 10**9, 60)
    return bins


def falling_bins() -> npt.NDArray[np.int64]:
    return np.asarray(1e15 * np.exp(-np.arange(2048) / 50), dtype=np.int64)


def a_bin() -> npt.NDArray[np.int64]:
    return np.bincount([2047], minlength=2048)


def first_bins() -> npt.NDArray[np.int64]:
    return np.bincount([0, 1, 1, 2, 100], minlength=2048)


@pytest.mark.parametrize("make", [random_bins, sparse_bins, falling_bins, a_bin, first_bins])
def test_divergences_equal_the_slow_loop_element_by_element(make: type[npt.NDArray[np.int64]]) -> None:
    bins = make()
    before = bins.copy()
    found = divergences(bins)
    assert found.shape == (1921,)
    some = [128, 129, 255, 256, 257, *range(300, 2040, 31), 2047, 2048]
    expected = [slow_divergence(bins.tolist(), m) for m in some]
    np.testing.assert_allclose(found[np.array(some) - 128], expected, rtol=1e-11, atol=TIE / 10)
    np.testing.assert_array_equal(bins, before)


def test_the_tail_on_an_empty_bin_is_infinitely_far() -> None:
    bins = np.zeros(2048, np.int64)
    bins[[1, 130, 2000]] = 5
    found = divergences(bins)
    assert found[130 - 128] == math.inf
    assert found[131 - 128] < math.inf
    assert found[2001 - 128] == found[2048 - 128] == 0.0


def test_no_information_is_lost_by_empty_bins_after_the_first() -> None:
    assert not divergences(np.bincount([0], minlength=2048)).any()


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_entropy_bins_are_numpys_within_the_bound(make: type[Floats]) -> None:
    """The cumulated count at every edge is wrong by no more than the one fine bin that the edge cuts."""
    values = np.abs(make()).astype(np.float32).astype(np.float64)
    histogram = histogram_from_values(values, "t")
    expected, edges = np.histogram(values, 2048, (0.0, histogram.amax))
    found = entropy_bins(histogram)
    assert found.sum() == histogram.num_values
    assert found[-1] >= 1, "the largest value lies in the last bin"
    cut = histogram.counts[np.minimum((edges / histogram.bin_width).astype(int), NUM_BINS - 1)]
    assert (np.abs(np.cumsum(found) - np.cumsum(expected)) <= cut[1:]).all()


@pytest.mark.parametrize("amax", [255.0, 1.0, 6.0, 127.0, 0.9999999, 4.7301, LARGEST])
def test_the_largest_value_lies_in_the_last_entropy_bin(amax: float) -> None:
    found = entropy_bins(of(amax, 0.0))
    assert np.flatnonzero(found).tolist() == [0, 2047]


def test_entropy_bins_of_an_image_are_exact() -> None:
    found = entropy_bins(histogram_from_values(image_bytes(), "t"))
    expected, _ = np.histogram(image_bytes(), 2048, (0.0, 255.0))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_rebinning_does_not_lead_the_choice_astray(make: type[Floats]) -> None:
    """On bins counted directly, the chosen threshold's divergence is within 0.05 % of a nat of the least."""
    values = np.abs(make()).astype(np.float32).astype(np.float64)
    histogram = histogram_from_values(values, "t")
    direct = divergences(np.histogram(values, 2048, (0.0, histogram.amax))[0])
    chosen = round(amax_entropy(histogram) / histogram.amax * 2048 - 0.5)
    assert direct[chosen - 128] <= direct.min() + 5e-4


def scale_in_tensorrts_cache(amax: float) -> str:
    return struct.pack(">f", amax / 127).hex()


def test_the_scale_that_tensorrt_published_for_8_bit_image_data() -> None:
    """NVIDIA's cache files have 4000890a, 255.0623 = 255 * 2048.5 / 2048."""
    amax = amax_entropy(histogram_from_values(image_bytes(), "t"))
    assert amax == 255 * 2048.5 / 2048
    assert scale_in_tensorrts_cache(amax) == "4000890a"


def test_the_scale_that_tensorrt_published_for_data_in_0_to_1() -> None:
    """NVIDIA's cache files have 3c010a14, 1.000244 = 2048.5 / 2048."""
    amax = amax_entropy(histogram_from_values(image_bytes() / 255, "t"))
    assert amax == 2048.5 / 2048
    assert scale_in_tensorrts_cache(amax) == "3c010a14"


@pytest.mark.parametrize(
    ("make", "largest", "chosen", "ratio_db"),
    [
        (relu_of_normal, (4.1, 5.1), (3.8, 4.4), 40.4),
        (laplace, (11, 16), (9.3, 11.2), 34.6),
        (laplace_with_outliers, (45, 120), (9.0, 11.2), 21.5),
        (relu6, (6.0, 6.0), (6.0, 6.002), 46.7),
    ],
)
def test_entropy_chooses_what_was_measured_of_other_programs(
    make: type[Floats], largest: tuple[float, float], chosen: tuple[float, float], ratio_db: float
) -> None:
    """pytorch-quantization, on other draws of these distributions: 4.73 -> 4.09, 11.4 -> 10.4, 90 -> 9.98, 6 -> 6."""
    histogram = histogram_from_values(make(), "t")
    amax = amax_entropy(histogram)
    assert largest[0] <= histogram.amax <= largest[1]
    assert chosen[0] <= amax <= chosen[1]
    assert sqnr_db(histogram, amax) == pytest.approx(ratio_db, abs=0.5)


# Squared error, and what is read from it.


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_squared_errors_equal_real_quantization(make: type[Floats]) -> None:
    values = make().astype(np.float32).astype(np.float64)
    histogram = histogram_from_values(values, "t")
    candidates = histogram.amax * np.array([0.02, 0.1, 0.3, 0.5, 0.77, 0.9, 1.0, 1.5])
    expected = [slow_squared_error(values, amax) for amax in candidates]
    np.testing.assert_allclose(squared_errors(histogram, candidates), expected, rtol=0.02)


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_sqnr_equals_real_quantization(make: type[Floats]) -> None:
    values = make().astype(np.float32).astype(np.float64)
    histogram = histogram_from_values(values, "t")
    for amax in histogram.amax * np.array([0.1, 0.6, 1.0]):
        expected = 10 * math.log10((values**2).sum() / slow_squared_error(values, amax))
        assert sqnr_db(histogram, amax) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_mse_is_the_best_of_a_brute_force_search(make: type[Floats]) -> None:
    values = make().astype(np.float32).astype(np.float64)
    histogram = histogram_from_values(values, "t")
    chosen = amax_mse(histogram)
    least = min(slow_squared_error(values[::7], amax) for amax in histogram.amax * np.arange(1, 301) / 300)
    assert chosen <= histogram.amax
    assert slow_squared_error(values[::7], chosen) <= 1.03 * least


def test_mse_finds_a_range_far_below_an_outlier() -> None:
    """A thousandth of the largest value is right for the other 10^8; clipping one value costs less than they do."""
    histogram = histogram_from_values(generator().uniform(-1, 1, 10_000), "t")
    many = Histogram(histogram.counts * 10_000, histogram.exponent, histogram.min, histogram.max, 0)
    assert amax_mse(many.merged(of(100.0))) == pytest.approx(1.0, rel=0.15)


def test_more_clipping_or_coarser_steps_cost_signal() -> None:
    histogram = histogram_from_values(laplace(), "t")
    best = amax_mse(histogram)
    ratios = [sqnr_db(histogram, best * factor) or 0.0 for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert ratios[0] < ratios[1] < ratios[2] > ratios[3] > ratios[4]


def test_zeros_have_no_error_and_no_signal() -> None:
    values = laplace()[:10_000]
    without, padded = of(*values), of(*values, *[0.0] * 50_000)
    assert sqnr_db(padded, 5.0) == sqnr_db(without, 5.0)
    assert amax_mse(padded) == amax_mse(without)


# The share beyond the range.


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_clipped_share_is_the_share_beyond_to_within_a_bin(make: type[Floats]) -> None:
    values = np.abs(make()).astype(np.float32)
    histogram = histogram_from_values(values, "t")
    for amax in (0.1 * histogram.amax, 0.5 * histogram.amax, 0.99 * histogram.amax):
        bound = histogram.counts[int(amax / histogram.bin_width)] / histogram.num_values
        assert abs(clipped_share(histogram, amax) - (values > amax).mean()) <= bound


def test_nothing_is_clipped_from_the_largest_value_on() -> None:
    histogram = of(-3.0, 1.0)
    assert clipped_share(histogram, 3.0) == 0.0
    assert clipped_share(histogram, 1e30) == 0.0
    assert clipped_share(histogram, 2.0) == 0.5


def test_zeros_are_never_clipped() -> None:
    assert clipped_share(of(0.0, 0.0, 0.0, 1.0), 1e-9) == 0.25
    assert clipped_share(of(0.0, 0.0, 0.0, 1.0), 0.0) == 0.25


def test_the_percentile_clips_no_more_than_it_says() -> None:
    histogram = histogram_from_values(laplace(), "t")
    assert clipped_share(histogram, amax_percentile(histogram, 99.0)) == pytest.approx(0.01, abs=1e-4)
