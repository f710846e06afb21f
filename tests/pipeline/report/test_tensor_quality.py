"""Which method was best where, and the histograms of the tensors that fare worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.errors import DataError
from calibration.histogram.histogram import Histogram, histogram_from_values
from calibration.histogram.methods import Method
from calibration.ranges.override import Override, overridden
from calibration.ranges.ranges import METHODS, Origin, RangesRecord, ranges_from_histograms
from calibration.ranges.ranges_file import ranges_from_folder, write_ranges
from pipeline.artifact import OnnxModel
from pipeline.record import TensorHistogram
from pipeline.report.tensor_quality import (
    MAX_HISTOGRAMS,
    NUM_DRAWN_BINS,
    best_where,
    methods_from_ranges,
    quantized_tensors,
    ranges_in_models,
    tensors_from_ranges,
    worst_histograms,
)

ORIGIN = Origin("model", "data", 1)


def histogram(*values: float) -> Histogram:
    return histogram_from_values(np.array(values, np.float32), "a test")


def normal(num: int, outlier: float) -> Histogram:
    """A bell of so many values, and one far away."""
    return histogram(*np.random.default_rng(0).normal(size=num), outlier)


def ranges_of(histograms: dict[str, Histogram], method: Method = "entropy") -> RangesRecord:
    return ranges_from_histograms(histograms, method, 99.9, ORIGIN)


def written(histograms: dict[str, Histogram], folder: Path) -> Path:
    write_ranges(ranges_of(histograms), histograms, folder)
    return folder


def worst(folder: Path, quantized: frozenset[str] = frozenset()) -> tuple[TensorHistogram, ...]:
    return worst_histograms(ranges_from_folder(folder), folder, quantized)


def test_every_method_stands_beside_the_chosen_one() -> None:
    found = ranges_of({"bell": normal(5000, 40.0)}, "minmax")
    (tensor,) = tensors_from_ranges(found)
    assert list(tensor.by_method) == list(METHODS)
    chosen = tensor.by_method["minmax"]
    assert (tensor.amax, tensor.sqnr_db, tensor.clipped_share) == (chosen.amax, chosen.sqnr_db, chosen.clipped_share)
    assert chosen.clipped_share == 0.0 < tensor.by_method["percentile"].clipped_share
    assert {method: one.amax for method, one in tensor.by_method.items()} == found.tensors["bell"].amax_by_method
    ratios = {method: one.sqnr_db or 0.0 for method, one in tensor.by_method.items()}
    assert ratios[tensor.best_method] >= max(ratios.values()) - 0.1


@pytest.mark.parametrize("chosen", ["entropy", "minmax", "mse"])
def test_among_equals_the_chosen_method_is_best(chosen: Method) -> None:
    # Two magnitudes, both exact in eight bits whatever the method.
    (tensor,) = tensors_from_ranges(ranges_of({"coin": histogram(*[0.0, 127.0] * 50)}, chosen))
    assert len({round(one.sqnr_db or 0.0, 1) for one in tensor.by_method.values()}) < len(METHODS)
    ratios = {method: round(one.sqnr_db or 0.0, 1) for method, one in tensor.by_method.items()}
    equals = [method for method in METHODS if ratios[method] == max(ratios.values())]
    assert tensor.best_method == (chosen if chosen in equals else equals[0])


def test_the_summary_counts_tensors_and_leaves_out_those_without_an_sqnr() -> None:
    found = ranges_of({"bell": normal(5000, 40.0), "flat": histogram(*np.linspace(0, 1, 999)), "zero": histogram(0.0)})
    summary = methods_from_ranges(found)
    assert [one.method for one in summary] == list(METHODS)
    assert [one.num_chosen for one in summary] == [3, 0, 0, 0]
    assert sum(one.num_best for one in summary) == 2
    for one in summary:
        ratios = [found.tensors[name].sqnr_db[one.method] or 0.0 for name in ("bell", "flat")]
        assert one.mean_sqnr_db == pytest.approx(sum(ratios) / 2)
        assert one.num_best <= one.num_near_best <= 2
    assert best_where(summary).startswith("Highest SQNR of 2 tensors: ")
    assert " 0" not in best_where(summary)


@pytest.mark.parametrize("histograms", [{}, {"zero": histogram(0.0, 0.0)}, {"none": histogram()}])
def test_without_a_signal_no_method_is_best(histograms: dict[str, Histogram], tmp_path: Path) -> None:
    found = ranges_of(histograms)
    assert [tensor.best_method for tensor in tensors_from_ranges(found)] == [""] * len(histograms)
    assert {one.mean_sqnr_db for one in methods_from_ranges(found)} == {None}
    assert best_where(methods_from_ranges(found)) == "No tensor has an SQNR."
    assert worst(written(histograms, tmp_path)) == ()


def test_special_tensors_are_named(tmp_path: Path) -> None:
    histograms = {
        "bell": normal(999, -3.0),
        "constant": histogram(0.5, 0.5),
        "positive": histogram(0.0, 0.25, 1.0),
        "tiny": histogram(-1e-4, 5e-4),
        "zero": histogram(0.0, 0.0),
    }
    found = tensors_from_ranges(ranges_from_folder(written(histograms, tmp_path)))
    notes = {tensor.name: "; ".join(tensor.notes) for tensor in found}
    assert "one-sided" not in notes["bell"]
    assert "constant on the calibration data" in notes["constant"]
    assert "one-sided" in notes["positive"]
    assert "tiny scale 3.94e-06: below FP16's smallest normal" in notes["tiny"]
    assert notes["zero"] == "all zero on the calibration data"
    assert found[-1].name == "zero"


def test_the_worst_histograms_come_first_and_shared_ones_once(tmp_path: Path) -> None:
    histograms = {f"bell_{i}": normal(2000, 4.0 + 4 * i) for i in range(8)}
    histograms["again"] = histograms["bell_7"]
    histograms["reshaped"] = histograms["bell_7"]
    order = [tensor.name for tensor in tensors_from_ranges(ranges_from_folder(written(histograms, tmp_path)))]
    found = worst(tmp_path)
    assert len(found) == MAX_HISTOGRAMS
    distinct = [name for name in order if name not in ("bell_7", "reshaped")]
    assert [one.tensors[0] for one in found] == distinct[:MAX_HISTOGRAMS]
    (shared,) = [one for one in found if "again" in one.tensors]
    assert shared.tensors == ("again", "bell_7", "reshaped")


def test_tensors_without_quantizers_are_told_and_have_no_histogram(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N] b) => (int8[N] q) <float scale = {1.0}, int8 zero = {0}>
        { q = QuantizeLinear (b, scale, zero) }"""
    )
    onnx.save(model, tmp_path / "model.onnx")
    quantized = quantized_tensors([OnnxModel(tmp_path / "model.onnx")])
    assert quantized == {"b"}
    histograms = {"a": normal(999, 50.0), "b": normal(999, 5.0)}
    folder = written(histograms, tmp_path)
    tensors = tensors_from_ranges(ranges_from_folder(folder), quantized)
    assert {tensor.name: tensor.quantized for tensor in tensors} == {"a": False, "b": True}
    assert [histogram.tensors for histogram in worst(folder, quantized)] == [("b",)]
    assert all(tensor.quantized for tensor in tensors_from_ranges(ranges_from_folder(folder)))


def test_equal_ratios_of_other_values_are_not_taken_for_one_histogram(tmp_path: Path) -> None:
    histograms = {"positive": histogram(0.25, 1.0), "negative": histogram(-0.25, -1.0)}
    assert [one.tensors for one in worst(written(histograms, tmp_path))] == [("negative",), ("positive",)]


def test_a_drawn_histogram_loses_no_value_but_the_zeros(tmp_path: Path) -> None:
    (found,) = worst(written({"x": histogram(0.0, 0.0, 1e-6, -0.5, 0.5, 99.0)}, tmp_path))
    assert sum(found.counts) == 4
    assert found.num_zeros == 2
    assert found.bin_width == 128 / NUM_DRAWN_BINS
    assert [index for index, count in enumerate(found.counts) if count] == [0, 1, 198]
    assert len(found.counts) == 199
    assert 198 * found.bin_width <= 99.0 < 199 * found.bin_width


def test_a_damaged_file_of_histograms_is_one_sentence(tmp_path: Path) -> None:
    file = written({"x": histogram(1.0, 2.0)}, tmp_path) / "histograms.npz"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match=r"histograms\.npz: cannot be read"):
        worst(tmp_path)


def test_a_range_that_the_user_set_is_rated_beside_the_methods() -> None:
    values = np.random.default_rng(0).laplace(size=20_000)
    histograms = {"t": histogram_from_values(values, "t")}
    ranges = ranges_from_histograms(histograms, "minmax", 99.99, Origin("a" * 64, "b" * 64, 10))
    changed, _ = overridden(ranges, [Override(tensors="t", range=(-2, 2))], onnx.ModelProto(), histograms)
    (tensor,) = tensors_from_ranges(changed)
    assert tensor.method == "override"
    assert tensor.amax == pytest.approx(2)
    assert tensor.sqnr_db == changed.tensors["t"].sqnr_db["override"]
    assert tensor.best_method in METHODS
    assert [summary.num_chosen for summary in methods_from_ranges(changed)] == [0, 0, 0, 0]


def test_a_softmax_is_rated_by_the_range_it_has_by_definition(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,4] x) => (float[N,4] y) { y = Softmax (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    folder = written({"x": normal(1000, 5.0), "y": histogram(*[0.01] * 1000, 0.9)}, tmp_path)
    tensors = ranges_in_models(folder, [OnnxModel(tmp_path / "model.onnx")]).tensors
    assert tensors["y"].amax == pytest.approx(1.0)
    assert tensors["y"].bounds == (0.0, 1.0)
    assert tensors["x"] == ranges_from_folder(folder).tensors["x"]
