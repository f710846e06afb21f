"""The histogram is exact and merges exactly; each reading against a plain slow computation written out here."""

from __future__ import annotations

import math
import random
import struct
import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.histogram import entropy
from calibration.histogram import histogram as histogram_module
from calibration.histogram.entropy import (
    amax_entropy,
    closer_bounds,
    divergence_bounds,
    divergences,
    entropy_bins,
    sums_of,
)
from calibration.histogram.histogram import NUM_BINS, Histogram, exponent_of, histogram_from_values, histogram_of
from calibration.histogram.methods import (
    amax_minmax,
    amax_mse,
    amax_percentile,
    clipped_share,
    clipping_errors,
    sqnr_db,
    squared_errors,
)
from calibration.histogram.spikes import without_spikes

Values = npt.NDArray[np.float32]

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LISTS = st.lists(
    st.one_of(FLOATS, st.sampled_from([0.0, -0.0, 1.0, -6.0, 2.0**-149, 3.4028234663852886e38])), min_size=1
)


def histogram(values: object) -> Histogram:
    return histogram_from_values(np.asarray(values, np.float32), "tensor 'x'")


def content(found: Histogram) -> tuple[object, ...]:
    """Everything in a histogram, to the bit."""
    return found.counts.tobytes(), found.exponent, struct.pack("dd", found.min, found.max), found.num_zeros


def normal(num: int = 20_000) -> Values:
    return np.random.default_rng(0).standard_normal(num).astype(np.float32)


def laplace(num: int = 20_000) -> Values:
    return np.random.default_rng(1).laplace(size=num).astype(np.float32)


def image(num: int = 20_000) -> Values:
    """Eight-bit pixels, 0 to 255, around a middle grey."""
    grey = np.random.default_rng(2).normal(110, 50, num)
    return np.clip(np.rint(grey), 0, 255).astype(np.float32)


SHAPES: dict[str, Values] = {
    "normal": normal(),
    "relu": np.maximum(normal(), 0),
    "relu6": np.clip(3 * normal(), 0, 6),
    "laplace": laplace(),
    "outliers": np.concatenate([laplace(), 10 * laplace(20)]),
    "image": image(),
    "image / 255": image() / np.float32(255),
    "normalised image": (image() / np.float32(255) - np.float32(0.45)) / np.float32(0.225),
    "mostly zero": np.where(np.random.default_rng(3).random(20_000) < 0.95, 0, normal()).astype(np.float32),
    "negative": -np.abs(normal()),
    "few": normal(300),
    "two values": np.tile(np.array([1, 2], np.float32), 500),
    "constant": np.full(1000, 3.7, np.float32),
}


class TestHistogram:
    def test_a_value_is_in_the_bin_of_its_magnitude(self) -> None:
        found = histogram([0.0, 0.25, -0.25, 0.75])
        assert found.exponent == 0
        assert {int(i): int(found.counts[i]) for i in np.flatnonzero(found.counts)} == {0: 1, 4096: 2, 12288: 1}
        assert (found.min, found.max, found.num_values, found.num_zeros) == (-0.25, 0.75, 4, 1)

    @pytest.mark.parametrize(
        ("amax", "exponent"),
        [(1.0, 1), (0.999, 0), (6.0, 3), (8.0, 4), (255.0, 8), (1e-45, -110), (0.0, -110), (3.4e38, 128)],
    )
    def test_the_range_is_the_least_power_of_two_above(self, amax: float, exponent: int) -> None:
        assert exponent_of(amax) == exponent
        assert amax < 2.0**exponent

    @given(LISTS)
    def test_counts_are_those_of_exact_arithmetic(self, values: list[float]) -> None:
        found = histogram(values)
        expected = np.zeros(NUM_BINS, np.int64)
        for value in values:  # Python's integers know no rounding.
            numerator, denominator = abs(value).as_integer_ratio()
            up, down = (1 << max(14 - found.exponent, 0)), (1 << max(found.exponent - 14, 0))
            expected[numerator * up // (denominator * down)] += 1
        assert found.counts.dtype == np.int64
        assert found.counts.tolist() == expected.tolist()
        assert (found.min, found.max, found.num_zeros) == (min(values), max(values), values.count(0.0))

    @given(LISTS, st.randoms(use_true_random=False), st.integers(1, 5))
    @example([-0.0, 0.0, 1e-45, 1e38], random.Random(0), 2)
    def test_order_and_split_do_not_show(self, values: list[float], shuffle: random.Random, num_parts: int) -> None:
        whole = content(histogram(values))
        shuffled = list(values)
        shuffle.shuffle(shuffled)
        size = math.ceil(len(values) / num_parts)
        parts = [histogram(shuffled[begin : begin + size]) for begin in range(0, len(values), size)]
        from_left, from_right = parts[0], parts[-1]
        for part in parts[1:]:
            from_left = from_left.merged(part)
        for part in reversed(parts[:-1]):
            from_right = part.merged(from_right)
        assert content(from_left) == whole
        assert content(from_right) == whole

    def test_a_range_that_doubles_adds_neighbours(self) -> None:
        narrow, wide = histogram([2 * i / NUM_BINS + 1 for i in range(8192)]), histogram([100.0])
        assert narrow.exponent == 1
        assert set(narrow.counts[8192:].tolist()) == {1}
        merged = narrow.merged(wide)
        assert merged.exponent == 7
        assert set(merged.counts[128:256].tolist()) == {64}
        assert merged.num_values == 8193

    def test_large_arrays_are_counted_piece_by_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = normal(1001)
        whole = histogram_of(values, 3)
        monkeypatch.setattr(histogram_module, "CHUNK", 10)
        assert histogram_of(values, 3).tolist() == whole.tolist()
        assert whole.sum() == 1001

    def test_the_values_are_left_as_they_are(self) -> None:
        values = normal(100)
        before = values.copy()
        histogram_from_values(values, "x")
        assert values.tobytes() == before.tobytes()

    def test_shape_strides_and_width_do_not_matter(self) -> None:
        values = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
        for same in (values, values.transpose(2, 0, 1), values[::-1, :, ::-1], values.astype(np.float64)):
            assert content(histogram_from_values(same, "x")) == content(histogram(values.reshape(-1)))

    def test_nothing_is_left_out_by_merging(self) -> None:
        nothing, some = histogram([]), histogram([3.0, 5.0])
        assert (nothing.num_values, nothing.amax) == (0, 0.0)
        assert content(nothing.merged(some)) == content(some.merged(nothing)) == content(some)
        assert content(nothing.merged(nothing)) == content(nothing)

    def test_negative_zero_is_zero(self) -> None:
        assert content(histogram([-0.0])) == content(histogram([0.0]))
        assert histogram([-0.0]).num_zeros == 1

    def test_nan_is_an_error_that_says_where(self) -> None:
        with pytest.raises(DataError, match=r"^tensor 'conv1': 1 of 3 values are NaN, numbers are expected.*sample"):
            histogram_from_values(np.array([1.0, np.nan, 2.0]), "tensor 'conv1'")

    @pytest.mark.parametrize("bad", [np.inf, -np.inf, 1e39])
    def test_infinities_are_counted_and_left_out(self, bad: float) -> None:
        found = histogram_from_values(np.array([1.0, bad, 2.0]), "tensor 'conv1'")
        assert content(found) == content(histogram([1.0, 2.0]))
        assert found.num_infinite == 1
        assert found.merged(histogram([])).num_infinite == histogram([]).merged(found).num_infinite == 1
        assert found.merged(found).num_infinite == 2


class TestMinmaxAndPercentile:
    def test_minmax_is_exact(self) -> None:
        assert amax_minmax(histogram([0.1, -0.7])) == float(np.float32(0.7))

    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 99.99])
    def test_so_many_values_lie_within_and_no_bin_less_would_do(self, name: str, percentile: float) -> None:
        found, magnitude = histogram(SHAPES[name]), np.abs(SHAPES[name].astype(np.float64))
        amax = amax_percentile(found, percentile)
        wanted = math.ceil(round(len(magnitude) * percentile * 1000) / 100_000)
        assert np.count_nonzero(magnitude <= amax) >= wanted
        assert np.count_nonzero(magnitude < amax - found.bin_width) < wanted or amax == found.bin_width

    def test_a_hundred_percent_is_minmax(self) -> None:
        assert amax_percentile(histogram(laplace()), 100) == amax_minmax(histogram(laplace()))

    def test_a_decimal_percentage_is_meant_as_written(self) -> None:
        # 99.9 % of 1000 are 999 values, though 0.999 * 1000 is more in binary arithmetic on some ways to it.
        values = np.concatenate([np.full(999, 1.0), [100.0]])
        assert amax_percentile(histogram(values), 99.9) < 1.01
        assert amax_percentile(histogram(values), 99.90001) == 100.0

    @pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, math.nan])
    def test_other_percentages_are_refused(self, percentile: float) -> None:
        with pytest.raises(DataError, match="above 0 and up to 100"):
            amax_percentile(histogram([1.0]), percentile)


def slow_divergences(bins: npt.NDArray[np.generic], candidates: list[int]) -> list[float]:
    """Migacz's loop as NVIDIA's pytorch-quantization writes it, plainly."""
    counts = [float(count) for count in bins.tolist()]
    counts[0] = counts[1]
    found = []
    for m in candidates:
        level_of = [j * 128 // m for j in range(m)]
        total, filled = [0.0] * 128, [0] * 128
        for j in range(m):
            if counts[j]:
                total[level_of[j]] += counts[j]
                filled[level_of[j]] += 1
        q = [total[level_of[j]] / filled[level_of[j]] if counts[j] else 0.0 for j in range(m)]
        p = counts[:m]
        p[-1] += sum(counts[m:])
        sum_p, sum_q = sum(p), sum(q)
        divergence = 0.0
        for p_j, q_j in zip(p, q):
            if p_j:
                divergence += p_j / sum_p * math.log(p_j / sum_p / (q_j / sum_q)) if q_j else math.inf
        found.append(divergence)
    return found


def direct_bins(values: Values) -> npt.NDArray[np.int64]:
    """2048 bins over [0, max |x|] straight from the values."""
    magnitude = np.abs(values.astype(np.float64))
    return np.histogram(magnitude, bins=2048, range=(0, magnitude.max()))[0].astype(np.int64)


class TestEntropy:
    @pytest.mark.parametrize("name", SHAPES)
    def test_all_candidates_at_once_equal_the_plain_loop(self, name: str) -> None:
        bins = direct_bins(SHAPES[name])
        some = [128, 129, 130, 255, 256, 257, 500, 1000, 1023, 1024, 1025, 1500, 2046, 2047, 2048]
        assert divergences(sums_of(bins))[[m - 128 for m in some]] == pytest.approx(
            slow_divergences(bins, some), abs=1e-10
        )

    def test_there_are_1921_candidates_and_the_bins_stay(self) -> None:
        bins = direct_bins(normal())
        before = bins.tobytes()
        assert divergences(sums_of(bins)).shape == (1921,)
        assert bins.tobytes() == before

    @given(st.integers(0, 2**32), st.floats(0.0, 1.0), st.sampled_from([1, 10, 10_000]))
    @settings(max_examples=20)
    def test_the_same_on_any_counts(self, seed: int, share_empty: float, largest: int) -> None:
        rng = np.random.default_rng(seed)
        bins = np.where(rng.random(2048) < share_empty, 0, rng.integers(1, largest + 1, 2048))
        bins[-1] = 1
        some = [128, 200, 777, 2048]
        assert divergences(sums_of(bins))[[m - 128 for m in some]] == pytest.approx(
            slow_divergences(bins, some), abs=1e-10
        )

    @given(st.integers(0, 2**32), st.floats(0.0, 1.0), st.sampled_from([1, 10, 10_000]), st.floats(0.0, 12.0))
    @settings(max_examples=40)
    def test_no_divergence_is_below_its_bound(self, seed: int, share_empty: float, largest: int, decay: float) -> None:
        rng = np.random.default_rng(seed)
        counts = np.rint(rng.integers(1, largest + 1, 2048) * np.exp(-decay * np.arange(2048) / 2048))
        bins = np.where(rng.random(2048) < share_empty, 0, counts).astype(np.int64)
        of = sums_of(bins)
        full, bound, closer = divergences(of), divergence_bounds(of), closer_bounds(of)
        assert (np.isinf(full) == np.isinf(bound)).all()
        assert (np.isinf(full) == np.isinf(closer)).all()
        finite = np.isfinite(full)
        for each in (bound, closer):
            assert (each[finite] <= full[finite] + entropy.BOUND_MARGIN / 10).all()

    @pytest.mark.parametrize("name", SHAPES)
    def test_leaving_out_what_the_bounds_exclude_changes_nothing(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = histogram(SHAPES[name])
        quick = amax_entropy(found)
        for bounds in ("divergence_bounds", "closer_bounds"):
            monkeypatch.setattr(entropy, bounds, lambda _of, candidates: np.zeros(len(candidates)))
        assert quick == amax_entropy(found)

    @pytest.mark.parametrize("name", SHAPES)
    def test_coarse_bins_are_wrong_by_no_more_than_the_fine_bin_an_edge_cuts(self, name: str) -> None:
        found, magnitude = histogram(SHAPES[name]), np.abs(SHAPES[name].astype(np.float64))
        bins = entropy_bins(found)
        assert bins.sum() == found.num_values
        assert bins.min() >= 0
        for i in range(1, 2048):
            edge = found.amax * i / 2048
            error = abs(int(bins[:i].sum()) - np.count_nonzero(magnitude < edge))
            assert error <= found.counts[int(edge / found.bin_width)]

    @pytest.mark.parametrize("name", SHAPES)
    def test_a_cut_fills_no_empty_bin(self, name: str) -> None:
        found = histogram(SHAPES[name])
        lower = np.flatnonzero(found.counts) * found.bin_width * 2048 / found.amax
        assert set(np.flatnonzero(entropy_bins(found))) <= set(np.minimum(lower.astype(int), 2047).tolist())

    def test_pixels_and_spikes_keep_their_bins(self) -> None:
        assert entropy_bins(histogram(image())).tolist() == direct_bins(image()).tolist()
        assert entropy_bins(histogram([6.0, 6.0, 6.0, 1.0]))[2047] == 3
        assert entropy_bins(histogram([6.0, 6.0, 6.0, 1.0]))[341] == 1

    def test_a_continuous_distribution_shows_no_comb(self) -> None:
        # 4.5 fine bins lie under a coarse one: whole bins would give 4 and 5 of them by turns, 22 percent apart.
        even = Histogram(np.where(np.arange(NUM_BINS) < 9216, 1000, 0).astype(np.int64), 0, 0.0, 9216 / NUM_BINS, 0)
        inner = entropy_bins(even)[1:-2]
        assert set(inner.tolist()) == {4500}

    @pytest.mark.parametrize("name", SHAPES)
    def test_thresholds_are_those_of_direct_bins(self, name: str) -> None:
        values = SHAPES[name]
        divergence = divergences(sums_of(without_spikes(direct_bins(values))[0]))
        ours = amax_entropy(histogram(values)) / float(np.abs(values).max()) * 2048 - 0.5 - 128
        assert ours == pytest.approx(round(ours), abs=1e-6)
        # Not always the same candidate, as the minimum is flat, but one as good.
        assert divergence[round(ours)] <= divergence.min() * 1.1 + 1e-4

    @pytest.mark.parametrize("name", SHAPES)
    def test_only_a_repeated_value_is_a_spike(self, name: str) -> None:
        bins = direct_bins(SHAPES[name])
        found, last_spike = without_spikes(bins)
        if name == "normalised image":  # 1.5 percent of the pixels are black, which is 2.0 here, among few as bright.
            black = int(0.45 / 0.55 * 2048)
            assert np.flatnonzero(found != bins).tolist() == [black]
            assert last_spike == black
        else:
            assert found.tolist() == bins.tolist()
            assert last_spike == 0

    def test_a_tensor_that_stays_away_from_zero_is_not_clipped_to_nothing(self) -> None:
        """All kept values in one bin have a divergence of 0, whatever is clipped."""
        found = histogram(np.random.default_rng(0).uniform(0.697, 3.876, 5000))
        assert amax_entropy(found) > 0.9 * found.amax
        assert clipped_share(found, amax_entropy(found)) < 0.05

    @pytest.mark.parametrize("num_values", [1, 2, 16])
    def test_few_distinct_values_are_all_kept(self, num_values: int) -> None:
        found = histogram(np.linspace(1.0, 2.0, num_values))
        assert clipped_share(found, amax_entropy(found)) == 0.0

    @pytest.mark.parametrize(
        ("m", "amax", "scale"),
        [(2040, 1.0, "3c008912"), (2048, 1.0, "3c010a14"), (2048, 255.0, "4000890a")],
        ids=["MNIST's input", "softmax and images in 0 to 1", "8-bit input"],
    )
    def test_scales_as_in_published_calibration_caches(
        self, m: int, amax: float, scale: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for bounds in ("divergence_bounds", "closer_bounds"):
            monkeypatch.setattr(entropy, bounds, lambda _of, candidates: np.zeros(len(candidates)))
        monkeypatch.setattr(entropy, "divergences", lambda _bins, of: np.where(of == m, 0.0, 1.0))
        threshold = amax_entropy(histogram(np.linspace(0, amax, 8192)))
        assert struct.pack(">f", threshold / 127).hex() == scale

    def test_pixels_give_tensorrts_published_scale(self) -> None:
        assert struct.pack(">f", amax_entropy(histogram(image())) / 127).hex() == "4000890a"
        assert struct.pack(">f", amax_entropy(histogram(image() / np.float32(255))) / 127).hex() == "3c010a14"

    def test_outliers_are_cut_off_and_a_plateau_is_not(self) -> None:
        rare = np.concatenate([laplace(200_000), np.linspace(15, 90, 20, dtype=np.float32)])
        assert 9 < amax_entropy(histogram(rare)) < 11.5
        assert amax_entropy(histogram(SHAPES["relu6"])) == 2048.5 / 2048 * 6

    def test_the_last_of_equals_wins(self) -> None:
        # Of two values alone both candidates are free of loss; rounding must not decide between them.
        assert amax_entropy(histogram(SHAPES["two values"])) == 2048.5 / 2048 * 2
        assert amax_entropy(histogram(SHAPES["constant"])) == pytest.approx(2048.5 / 2048 * 3.7)

    def test_zeros_do_not_pull_the_threshold_down(self) -> None:
        # The first bin is set to the second: without that, a ReLU's zeros win a threshold near 2.
        values = np.maximum(normal(200_000), 0)
        more_zeros = np.concatenate([values, np.zeros(1_000_000, np.float32)])
        assert amax_entropy(histogram(values)) == amax_entropy(histogram(more_zeros)) > 3.5


def quantization_errors(values: npt.NDArray[np.floating], amax: float) -> npt.NDArray[np.float64]:
    exact = values.astype(np.float64)
    scale = amax / 127
    return np.asarray(exact - np.clip(np.rint(exact / scale), -127, 127) * scale)


class TestSquaredError:
    @pytest.mark.parametrize(
        "name", ["normal", "relu", "laplace", "outliers", "image", "normalised image", "mostly zero"]
    )
    def test_clipping_alone_is_no_more_than_the_whole_error(self, name: str) -> None:
        found = histogram(SHAPES[name])
        candidates = found.amax * 2.0 ** -np.linspace(12, 0, 200)
        clipping, whole = clipping_errors(found, candidates), squared_errors(found, candidates)
        assert (clipping <= whole + 1e-9 * whole.max()).all()
        assert (np.diff(clipping) <= 1e-9 * clipping.max()).all()

    @pytest.mark.parametrize(
        "name", ["normal", "relu", "laplace", "outliers", "image", "normalised image", "mostly zero"]
    )
    @pytest.mark.parametrize("share", [0.05, 0.3, 0.8, 1.0, 2048.5 / 2048, 1.7])
    def test_sqnr_is_that_of_the_values_themselves(self, name: str, share: float) -> None:
        values = SHAPES[name]
        amax = share * float(np.abs(values).max())
        ratio = (values.astype(np.float64) ** 2).sum() / (quantization_errors(values, amax) ** 2).sum()
        assert sqnr_db(histogram(values), amax) == pytest.approx(10 * math.log10(ratio), abs=0.1)

    def test_steps_far_below_a_bin_are_right_too(self) -> None:
        # One value of 1000 beside a normal distribution: at amax 4 a step is half a bin, and clipping is all the noise.
        values = np.append(normal(), np.float32(1000))
        inner = histogram(values)
        inner = Histogram(np.where(np.arange(NUM_BINS) < 100, inner.counts, 0), inner.exponent, inner.min, 5.0, 0)
        errors = quantization_errors(normal(), 4.5)
        assert squared_errors(inner, np.array([4.5])) == pytest.approx((errors**2).sum(), rel=0.05)

    @pytest.mark.parametrize("name", SHAPES)
    def test_no_candidate_is_better_than_mses(self, name: str) -> None:
        values = SHAPES[name]
        largest = float(np.abs(values).max())
        best = float((quantization_errors(values, amax_mse(histogram(values))) ** 2).mean())
        others = [
            float((quantization_errors(values, largest * share) ** 2).mean()) for share in np.geomspace(0.01, 1, 120)
        ]
        assert best <= min(others) * 1.02 + (largest / 8192) ** 2

    def test_the_optimum_of_a_normal_distribution(self) -> None:
        x = np.linspace(0, 6, 20_001)
        density = np.exp(-(x**2) / 2)
        candidates = np.linspace(3, 5, 101)
        expected = [(density * quantization_errors(x, amax) ** 2).sum() / (density * x**2).sum() for amax in candidates]
        found = histogram(normal(2_000_000))
        assert amax_mse(found) == pytest.approx(candidates[np.argmin(expected)], abs=0.06)
        assert sqnr_db(found, amax_mse(found)) == pytest.approx(-10 * math.log10(min(expected)), abs=0.2)

    def test_zeros_have_no_error_and_no_signal(self) -> None:
        few, many = histogram([1.0, 0.5]), histogram([1.0, 0.5] + [0.0] * 100_000)
        assert sqnr_db(few, 1.0) == sqnr_db(many, 1.0)
        assert amax_mse(few) == amax_mse(many)

    def test_shares_beyond_the_range(self) -> None:
        found = histogram([0.0, 1.0, 2.0, 3.0])
        assert [clipped_share(found, amax) for amax in (0.5, 1.5, 2.5, 3.0, 4.0)] == [0.75, 0.5, 0.25, 0.0, 0.0]
        wide = histogram(normal())
        for amax in (0.5, 1.0, 3.0):
            assert clipped_share(wide, amax) == pytest.approx(np.mean(np.abs(normal()) > amax), abs=5e-4)

    def test_the_share_beyond_a_percentile_is_the_rest(self) -> None:
        found = histogram(laplace())
        assert 0.0 < clipped_share(found, amax_percentile(found, 99.0)) <= 0.01


class TestExtremes:
    @pytest.mark.parametrize("read", [amax_minmax, amax_entropy, amax_mse, lambda found: amax_percentile(found, 99.9)])
    @pytest.mark.parametrize("scale", [2.0**-149, 1e-40, 1e-30, 1.0, 1e30])
    def test_scaling_the_values_scales_the_range(self, read: object, scale: float) -> None:
        values = (image() * np.float64(scale)).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            amax = read(histogram(values))  # type: ignore[operator]
        assert 0.9 * values.max() <= amax <= 1.001 * values.max()

    def test_all_zero_has_no_range_and_no_ratio(self) -> None:
        zero = histogram([0.0, 0.0])
        assert [amax_minmax(zero), amax_percentile(zero, 99), amax_entropy(zero), amax_mse(zero)] == [0.0] * 4
        assert sqnr_db(zero, 0.0) is None
        assert sqnr_db(histogram([1.0]), 0.0) is None
        assert clipped_share(zero, 0.0) == 0.0

    def test_a_sign_does_not_matter(self) -> None:
        one, other = histogram(np.abs(laplace())), histogram(-np.abs(laplace()))
        for read in (amax_minmax, amax_entropy, amax_mse):
            assert read(one) == read(other)
