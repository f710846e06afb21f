"""Ranges that the user sets: what is asked for, what follows for each placement, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from calibration.errors import DataError
from calibration.histogram.histogram import Histogram, histogram_from_values
from calibration.precision.scale import asymmetric, symmetric
from calibration.ranges.override import Override, overridden
from calibration.ranges.ranges import (
    IMPORTED,
    Origin,
    RangesRecord,
    TensorRange,
    methods_of_tensors,
    ranges_from_histograms,
    spans_from_ranges,
)
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, rewrite_ranges, write_ranges

MODEL = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v>
    { [first] a = MatMul (x, w) [act] b = Relu (a) [second] y = MatMul (b, v) }"""
)


def histograms() -> dict[str, Histogram]:
    values = np.random.default_rng(0).laplace(size=20_000)
    return {
        "x": histogram_from_values(values, "x"),
        "a": histogram_from_values(values * 3, "a"),
        "b": histogram_from_values(np.abs(values), "b"),
    }


def ranges(method: Any = "entropy") -> RangesRecord:
    return ranges_from_histograms(histograms(), method, 99.9, Origin("a" * 64, "b" * 64, 10))


def test_a_range_is_that_of_both_kinds_of_scale() -> None:
    record, notes = overridden(ranges(), [Override(tensors="[xb]", range=(-2, 6))], MODEL, histograms())
    assert notes == ["[[quantize.override]] tensors = '[xb]': range -2 to 6: 2 ('b', 'x') tensors"]
    spans = spans_from_ranges(record.read_for("tensorrt"))
    for name in ("x", "b"):
        scale = symmetric(spans[name])
        assert scale is not None
        assert scale.scale == float(np.float32(6 / 127))
        shifted = asymmetric(spans[name], "uint8")
        assert shifted is not None
        assert shifted.scale == pytest.approx(8 / 255)
        assert shifted.zero_point == round(2 * 255 / 8)
    assert spans["a"] == spans_from_ranges(ranges())["a"]


def test_what_was_seen_is_still_known_to_others() -> None:
    """FP16 is decided by the values, not by what INT8 clips."""
    record, _ = overridden(ranges(), [Override(tensors="x", range=(0, 6))], MODEL, histograms())
    seen = ranges().tensors["x"]
    assert (record.tensors["x"].min, record.tensors["x"].max) == (seen.min, seen.max)


def test_what_the_range_clips_is_rated() -> None:
    record, _ = overridden(ranges("minmax"), [Override(tensors="x", range=(-1, 1))], MODEL, histograms())
    tensor = record.tensors["x"]
    assert tensor.method == "override"
    assert tensor.clipped_share["override"] == pytest.approx(math.exp(-1), abs=0.02)
    rated = tensor.sqnr_db["override"]
    assert rated is not None
    assert any(note.startswith(f"override gives {rated:.1f} dB, ") for note in tensor.notes)


def test_a_method_by_tensors_and_by_the_nodes_that_read_them() -> None:
    by_tensor, _ = overridden(ranges(), [Override(tensors="b", method="minmax")], MODEL, {})
    by_node, notes = overridden(ranges(), [Override(nodes="sec*", method="minmax")], MODEL, {})
    assert by_tensor == by_node
    assert by_node.tensors["b"].amax == ranges("minmax").tensors["b"].amax
    assert methods_of_tensors(by_node) == {"a": "entropy", "b": "minmax", "x": "entropy"}
    assert notes == ["[[quantize.override]] nodes = 'sec*': minmax: 1 ('b') tensors"]


def test_the_last_counts() -> None:
    exceptions = [Override(tensors="*", range=(0, 1)), Override(tensors="a", range=(0, 2))]
    exceptions.append(Override(tensors="b", method="mse"))
    record, _ = overridden(ranges(), exceptions, MODEL, histograms())
    assert [record.tensors[name].bounds for name in "xab"] == [(0, 1), (0, 2), ()]
    assert record.tensors["b"].method == "mse"


def test_another_reading_of_the_same_ranges_leaves_what_was_set() -> None:
    record, _ = overridden(ranges(), [Override(tensors="a", range=(0, 2))], MODEL, histograms())
    again = record.read_by("minmax", dict.fromkeys(record.tensors, "minmax"))
    assert again.tensors["a"] == record.tensors["a"]
    assert again.tensors["x"].amax == ranges("minmax").tensors["x"].amax
    assert methods_of_tensors(again) == {}


def test_precision_is_a_matter_of_nodes() -> None:
    record, notes = overridden(ranges(), [Override(nodes="MatMul", precision="fp32")], MODEL, {})
    assert record == ranges()
    assert notes == ["[[quantize.override]] nodes = 'MatMul': fp32: 2 ('first', 'second') nodes"]


def test_imported_ranges_have_ranges_to_set_and_no_methods() -> None:
    tensor = TensorRange(IMPORTED, 1.0, {}, {}, {}, -1.0, 1.0, 0, 0, 0, ())
    record = RangesRecord(IMPORTED, 100.0, Origin("a" * 64, "", 0, source="a table"), {"x": tensor})
    changed, _ = overridden(record, [Override(tensors="x", range=(0, 6))], MODEL, {})
    assert spans_from_ranges(changed.read_for("tensorrt"))["x"].amax == pytest.approx(6)
    with pytest.raises(DataError, match=r"imported from a table, .* but .*tensors = 'x': mse needs"):
        overridden(record, [Override(tensors="x", method="mse")], MODEL, {})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (Override(tensors="z*", method="mse"), r"tensors: 'z\*' .* no such tensor with a range; the nearest is "),
        (Override(nodes="frist", method="mse"), "nodes: 'frist' .* no such node or operator; the nearest is 'first'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(override: Override, said: str) -> None:
    with pytest.raises(DataError, match=said):
        overridden(ranges(), [override], MODEL, {})


def test_nodes_that_read_nothing_with_a_range_are_refused() -> None:
    without = RangesRecord("entropy", 99.9, ranges().origin, {"x": ranges().tensors["x"]})
    with pytest.raises(DataError, match="nodes = 'act': mse: these nodes read no tensor with a range"):
        overridden(without, [Override(nodes="act", method="mse")], MODEL, {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"range": (0, 6)}, "names neither or both of tensors and nodes"),
        ({"tensors": "x", "nodes": "n", "method": "mse"}, "names neither or both"),
        ({"tensors": "x"}, "sets nothing of tensors, takes one of range and method"),
        ({"tensors": "x", "range": (0, 6), "method": "mse"}, "sets range and method of tensors, takes one"),
        ({"tensors": "x", "precision": "fp32"}, "sets precision of tensors, takes one of range and method"),
        ({"nodes": "n", "range": (0, 6)}, "sets range of nodes, takes one of method and precision"),
        ({"tensors": "x", "range": (6, 0)}, r"range is \[6, 0\], but must be two finite numbers, the smaller first"),
        ({"tensors": "x", "range": (3, 3)}, "the smaller first"),
        ({"tensors": "x", "range": (0,)}, "two finite numbers"),
        ({"tensors": "x", "range": (0, math.nan)}, "two finite numbers"),
        ({"tensors": "x", "range": (-math.inf, 0)}, "two finite numbers"),
    ],
)
def test_what_does_not_belong_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Override(**options)


def test_they_come_back_from_their_file(tmp_path: Path) -> None:
    write_ranges(ranges(), histograms(), tmp_path)
    plain = (tmp_path / "ranges.json").read_bytes()
    assert b"bounds" not in plain, "files without exceptions are as they always were"
    record, _ = overridden(ranges(), [Override(tensors="a", range=(-0.1, 2))], MODEL, histograms())
    rewrite_ranges(record, tmp_path)
    assert ranges_from_folder(tmp_path) == record
    assert histograms_from_folder(tmp_path).keys() == histograms().keys()
    text = (tmp_path / "ranges.json").read_text()
    (tmp_path / "ranges.json").write_text(text.replace('"bounds": [-0.1, 2]', '"bounds": [2]'))
    with pytest.raises(DataError, match="tensor 'a': bounds are"):
        ranges_from_folder(tmp_path)
