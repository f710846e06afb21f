"""Readings of the distributions that TensorRT's formula was measured on, each against a slow reference over all m."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.arrays import Floats
from calibration.errors import DataError
from calibration.histogram.entropy import TIE, amax_entropy, divergences, entropy_bins, sums_of
from calibration.histogram.histogram import CHUNK, NUM_BINS, Counts, Histogram, histogram_from_values, histogram_of
from calibration.histogram.methods import READINGS, amax_mse, amax_percentile, clipped_share, sqnr_db
from calibration.histogram.spikes import without_spikes

LARGEST = float(np.finfo(np.float32).max)
SMALLEST_SUBNORMAL = 2.0**-149
NUM = 200_000
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)

Make: TypeAlias = Callable[[], Floats]


def of(*values: float) -> Histogram:
    return histogram_from_values(np.array(values, np.float32), "tensor 't'")


def generator() -> np.random.Generator:
    return np.random.default_rng(2017)


def relu_of_normal() -> Floats:
    return np.asarray(np.maximum(generator().standard_normal(NUM), 0.0))


def laplace() -> Floats:
    return generator().laplace(size=NUM)


def laplace_with_outliers() -> Floats:
    """Laplace's distribution; every ten-thousandth value ten times as large, and one at 90."""
    values = laplace() * np.where(np.arange(NUM) % 10_000 == 0, 10.0, 1.0)
    values[-1] = 90.0
    return values


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


def test_counts_equal_numpys_histogram_also_beyond_one_chunk() -> None:
    values = generator().standard_normal(3 * CHUNK + 1).astype(np.float32)
    expected, _ = np.histogram(np.abs(values).astype(np.float64), NUM_BINS, (0.0, 8.0))
    np.testing.assert_array_equal(histogram_of(values, 3), expected)


def test_merging_ranges_far_apart_puts_the_small_ones_into_the_first_bin() -> None:
    merged = of(SMALLEST_SUBNORMAL, 1e-20).merged(of(LARGEST))
    assert (merged.exponent, merged.counts[0], merged.counts[-1]) == (128, 2, 1)


def test_merging_leaves_the_parts_as_they_were() -> None:
    one, other = of(1.0), of(2.0)
    before = one.counts.copy()
    one.merged(other).counts[:] = 7
    np.testing.assert_array_equal(one.counts, before)


def test_a_signalling_nan_is_refused_without_a_warning() -> None:
    signalling = np.array([0x7FF0000000000001], np.uint64).view(np.float64)
    with pytest.raises(DataError, match="NaN"):
        histogram_from_values(signalling, "t")


def readings(histogram: Histogram) -> dict[str, float]:
    return {
        "percentile": amax_percentile(histogram, 99.9),
        **{name: read(histogram) for name, read in READINGS.items()},
    }


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


@pytest.mark.parametrize("make", DISTRIBUTIONS)
@pytest.mark.parametrize(("percentile", "rank"), [(50.0, 100), (90.0, 180), (99.0, 198), (99.5, 199), (100.0, 200)])
def test_percentile_is_numpys_within_a_bin(make: Make, percentile: float, rank: int) -> None:
    values = np.abs(generator().permutation(make())[:200]).astype(np.float32)
    histogram = histogram_from_values(values, "t")
    expected = float(np.percentile(values, percentile, method="inverted_cdf"))
    assert expected == np.sort(values)[rank - 1]
    assert expected <= amax_percentile(histogram, percentile) <= expected + histogram.bin_width


@given(values=st.lists(FLOATS, min_size=1), pair=st.tuples(*[st.floats(0.001, 100)] * 2))
def test_percentile_grows_with_the_share(values: list[float], pair: tuple[float, float]) -> None:
    low, high = sorted(pair)
    histogram = of(*values)
    assert amax_percentile(histogram, low) <= amax_percentile(histogram, high) <= histogram.amax


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_entropy_equals_the_slow_loop(make: Make) -> None:
    histogram = histogram_from_values(make(), "t")
    bins = entropy_bins(histogram).tolist()
    assert amax_entropy(histogram) == slow_amax_entropy(bins, histogram.amax)


def with_constant_background(share: float, num_spots: int) -> Floats:
    """A ReLU behind a convolution, where so many of its outputs are those of an empty background, one per channel."""
    random = generator()
    spots = random.uniform(0.05, 1.5, num_spots)
    return np.where(random.random(NUM) < share, random.choice(spots, NUM), np.maximum(random.standard_normal(NUM), 0.0))


@pytest.mark.parametrize("num_spots", [4, 8, 16])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_a_constant_background_does_not_make_entropy_clip(share: float, num_spots: int) -> None:
    histogram = histogram_from_values(with_constant_background(share, num_spots), "t")
    best = sqnr_db(histogram, amax_mse(histogram))
    found = sqnr_db(histogram, amax_entropy(histogram))
    assert best is not None
    assert found is not None
    assert found > best - 6


def test_by_migacz_alone_it_would() -> None:
    histogram = histogram_from_values(with_constant_background(0.2, 4), "t")
    plain = sqnr_db(histogram, slow_amax_entropy(entropy_bins(histogram).tolist(), histogram.amax))
    found = sqnr_db(histogram, amax_entropy(histogram))
    assert plain is not None
    assert found is not None
    assert plain < found - 20


@pytest.mark.parametrize("share", [0.002, 0.3])
def test_a_spike_is_never_clipped(share: float) -> None:
    """Values around 0, some at 5 precisely, and a thin tail up to 8: with the spike away nothing else speaks for 5."""
    values = np.minimum(np.abs(generator().standard_normal(NUM)), 3.0)
    values[: int(share * NUM)] = 5.0
    values[-20:] = np.linspace(3.0, 8.0, 20)
    assert amax_entropy(histogram_from_values(values, "t")) >= 5.0


def test_a_spike_becomes_what_is_usual_around_it() -> None:
    bins = np.full(2048, 10)
    bins[[0, 700, 2047]] = 1000
    bins[701] = 70
    found, last_spike = without_spikes(bins)
    assert (found[0], found[700], found[701], found[2047], last_spike) == (1000, 10, 70, 1000, 700)
    assert bins[700] == 1000, "the histogram itself stays"


def test_a_repeated_value_in_a_thin_tail_is_no_spike() -> None:
    """Nine equal values among hundred thousands may be clipped as any outlier."""
    bins = np.zeros(2048, np.int64)
    bins[:200] = 1000
    bins[200:] = 1
    bins[1900] = 9
    assert without_spikes(bins)[1] == 0


def random_bins() -> Counts:
    return generator().poisson(3.0, 2048)


def sparse_bins() -> Counts:
    bins = np.zeros(2048, np.int64)
    bins[generator().integers(0, 2048, 60)] = generator().integers(1, 10**9, 60)
    return bins


def falling_bins() -> Counts:
    return np.asarray(1e15 * np.exp(-np.arange(2048) / 50), dtype=np.int64)


def a_bin() -> Counts:
    return np.bincount([2047], minlength=2048)


def first_bins() -> Counts:
    return np.bincount([0, 1, 1, 2, 100], minlength=2048)


@pytest.mark.parametrize("make", [random_bins, sparse_bins, falling_bins, a_bin, first_bins])
def test_divergences_equal_the_slow_loop_element_by_element(make: Callable[[], Counts]) -> None:
    bins = make()
    before = bins.copy()
    found = divergences(sums_of(bins))
    assert found.shape == (1921,)
    some = [128, 129, 255, 256, 257, *range(300, 2040, 31), 2047, 2048]
    expected = [slow_divergence(bins.tolist(), m) for m in some]
    np.testing.assert_allclose(found[np.array(some) - 128], expected, rtol=1e-11, atol=TIE / 10)
    np.testing.assert_array_equal(bins, before)


def test_the_tail_on_an_empty_bin_is_infinitely_far() -> None:
    bins = np.zeros(2048, np.int64)
    bins[[1, 130, 2000]] = 5
    found = divergences(sums_of(bins))
    assert found[130 - 128] == math.inf
    assert found[131 - 128] < math.inf
    assert found[2001 - 128] == found[2048 - 128] == 0.0


def test_no_information_is_lost_by_empty_bins_after_the_first() -> None:
    assert not divergences(sums_of(np.bincount([0], minlength=2048))).any()


@pytest.mark.parametrize("amax", [255.0, 1.0, 6.0, 127.0, 0.9999999, 4.7301, LARGEST])
def test_the_largest_value_lies_in_the_last_entropy_bin(amax: float) -> None:
    found = entropy_bins(of(amax, 0.0))
    assert np.flatnonzero(found).tolist() == [0, 2047]


@pytest.mark.parametrize(
    ("make", "largest", "chosen", "ratio_db"),
    [
        (relu_of_normal, (4.1, 5.1), (3.8, 4.4), 40.4),
        (laplace, (11, 16), (9.3, 11.2), 35.0),
        (laplace_with_outliers, (90, 90), (9.0, 13.0), 18.0),
        (relu6, (6.0, 6.0), (6.0, 6.002), 46.7),
    ],
)
def test_entropy_chooses_what_was_measured_of_other_programs(
    make: Make, largest: tuple[float, float], chosen: tuple[float, float], ratio_db: float
) -> None:
    """pytorch-quantization, on other draws: 4.73 -> 4.09 at 40.4 dB, 11.42 -> 10.43, 90 -> 9.98, 6 -> 6."""
    histogram = histogram_from_values(make(), "t")
    amax = amax_entropy(histogram)
    assert largest[0] <= histogram.amax <= largest[1]
    assert chosen[0] <= amax <= chosen[1]
    assert sqnr_db(histogram, amax) == pytest.approx(ratio_db, abs=0.5)


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_mse_is_the_best_of_a_brute_force_search(make: Make) -> None:
    values = make()[::4].astype(np.float32).astype(np.float64)
    histogram = histogram_from_values(values, "t")
    chosen = amax_mse(histogram)
    least = min(slow_squared_error(values, amax) for amax in histogram.amax * np.arange(1, 201) / 200)
    assert chosen <= histogram.amax
    assert slow_squared_error(values, chosen) <= 1.02 * least


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


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_clipped_share_is_the_share_beyond_to_within_a_bin(make: Make) -> None:
    values = np.abs(make()).astype(np.float32)
    histogram = histogram_from_values(values, "t")
    for amax in (0.1 * histogram.amax, 0.5 * histogram.amax, 0.99 * histogram.amax):
        bound = histogram.counts[int(amax / histogram.bin_width)] / histogram.num_values
        assert abs(clipped_share(histogram, amax) - (values > amax).mean()) <= bound


def test_zeros_are_never_clipped() -> None:
    assert clipped_share(of(0.0, 0.0, 0.0, 1.0), 1e-9) == 0.25
    assert clipped_share(of(0.0, 0.0, 0.0, 1.0), 0.0) == 0.25
