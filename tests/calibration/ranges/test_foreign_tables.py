"""Another tool's scales become a model's ranges, whatever the tensors were called; and every tensor's cache for DLA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.errors import DataError
from calibration.graph.tensor_digests import tensor_digests
from calibration.histogram.histogram import histogram_from_values
from calibration.ranges.foreign_tables import (
    ScaleTable,
    ranges_from_table,
    scales_from_ranges,
    scales_of_every_tensor,
    table_from_file,
)
from calibration.ranges.ort_table import flatbuffers_from_scales, json_from_scales
from calibration.ranges.ranges import Origin, RangesRecord, ranges_from_histograms
from calibration.ranges.trt_cache import Cache, bytes_from_cache

MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x, int64[2] shape) => (float[N, 4] y)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>
{
    h = MatMul(x, w)
    a_b = Relu(h)
    flat = Reshape(a_b, shape)
    back = Identity(flat)
    y = Sigmoid(back)
}""")
HEADER = "TRT-8502-EntropyCalibration2"


def imported(scales: dict[str, float], names: dict[str, str]) -> tuple[RangesRecord, list[str]]:
    return ranges_from_table(ScaleTable(HEADER, scales), MODEL, "m" * 64, names)


def scales(ranges: RangesRecord) -> dict[str, float]:
    return scales_from_ranges(ranges)[0]


def test_scales_come_out_as_they_went_in() -> None:
    given = {"x": 0.5, "h": 2.0**-149, "a_b": 3.0, "flat": 3.0, "back": 3.0, "y": 0.0078125}
    ranges, notes = imported(given, {})
    assert scales(ranges) == given
    assert notes == []
    assert ranges.method == "imported"
    assert ranges.origin == Origin("m" * 64, "", 0, tensor_digests=tensor_digests(MODEL), source=HEADER)
    tensor = ranges.tensors["x"]
    assert (tensor.amax, tensor.min, tensor.max, tensor.num_values) == (63.5, -63.5, 63.5, 0)


def test_names_are_taken_as_export_renames_them_and_it_is_said() -> None:
    ranges, notes = imported({"x:0": 0.5, "a:b": 3.0, "y": 1.0}, {})
    assert scales(ranges) == {"x": 0.5, "a_b": 3.0, "y": 1.0}
    assert notes == [
        "2 ('x:0', 'a:b') tensors were renamed as `trtforge export` renames them",
        f"3 ('h', 'flat', 'back') of the model's tensors have no scale in {HEADER}",
    ]


def test_names_that_are_given_go_first() -> None:
    ranges, notes = imported({"x": 0.5, "old": 1.0}, {"h": "x", "x": "old"})
    assert scales(ranges) == {"h": 0.5, "x": 1.0}
    assert notes[0] == "2 ('x', 'old') tensors were renamed as `trtforge export` renames them"


def test_tensors_that_the_model_lacks_are_named() -> None:
    _, notes = imported({"x": 0.5, "(Unnamed Layer* 1) [Constant]_output": 1.0}, {})
    assert (
        notes[0] == f"1 ('(Unnamed Layer* 1) [Constant]_output') tensors of {HEADER} are not in the model, and left out"
    )


def test_a_table_of_another_model_is_refused() -> None:
    with pytest.raises(DataError, match=rf"^{HEADER}: none of its 7 \('t0', 't1', 't2', 't3', 't4', …\) tensors is in"):
        imported({f"t{i}": 1.0 for i in range(7)}, {})


def test_two_names_for_one_tensor_are_refused() -> None:
    with pytest.raises(DataError, match=rf"^{HEADER}: 'x:0' and 'x' are both the model's tensor 'x'; say which"):
        imported({"x": 0.5, "x:0": 0.25}, {})


def test_weights_and_integers_have_no_range() -> None:
    with pytest.raises(DataError, match="none of its 2"):
        imported({"w": 1.0, "shape": 1.0}, {})


def test_an_all_zero_tensor_has_amax_0_and_no_scale_on_the_way_out() -> None:
    ranges, _ = imported({"x": 0.5, "h": 0.0}, {})
    assert ranges.tensors["h"].amax == 0.0
    assert ranges.tensors["h"].notes == (f"all zero, says {HEADER}",)
    assert scales_from_ranges(ranges) == (
        {"x": 0.5}, ["1 ('h') tensors had no value but 0 in calibration, which gives no scale"],
    )  # fmt: skip


def test_measured_ranges_give_the_scales_of_their_amax() -> None:
    histograms = {
        name: histogram_from_values(np.array([value], np.float32), name) for name, value in (("x", 3.0), ("a", 0.1))
    }
    ranges = ranges_from_histograms(histograms, "minmax", 100.0, Origin("m", "d", 1))
    found = scales(ranges)
    assert list(found) == ["a", "x"]
    assert {name: 127 * scale for name, scale in found.items()} == {n: t.amax for n, t in ranges.tensors.items()}


# Every tensor, for DLA.


def test_tensors_of_the_same_values_get_the_same_scale_in_both_directions() -> None:
    for known in ("a_b", "flat", "back"):
        found = scales_of_every_tensor({"x": 0.5, "h": 1.0, known: 3.0, "y": 0.25}, MODEL, [])
        assert found == {"a_b": 3.0, "back": 3.0, "flat": 3.0, "h": 1.0, "x": 0.5, "y": 0.25}
        assert list(found) == sorted(found)


def test_a_tensor_without_a_scale_is_named_unless_it_is_all_zero() -> None:
    some = {"x": 0.5, "a_b": 3.0}
    with pytest.raises(
        DataError, match=r"^ranges: 2 \('h', 'y'\) of the model's tensors have no range, a cache for DLA"
    ):
        scales_of_every_tensor(some, MODEL, [])
    assert "h" not in scales_of_every_tensor(some, MODEL, ["h", "y"])


# Which kind of table a file is.

TABLE = {"x": float(np.float32(0.1)), "a:0": 2.0}


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (bytes_from_cache(Cache(HEADER, TABLE)), HEADER),
        (flatbuffers_from_scales(TABLE), "ONNX Runtime calibration table"),
        (flatbuffers_from_scales({"x": TABLE["x"], "a:0": 2.0}), "ONNX Runtime calibration table"),
        (json_from_scales(TABLE, "minmax"), "ONNX Runtime calibration table"),
        (f"x {127 * TABLE['x']!r}\na:0 254.0\n".encode(), "ONNX Runtime calibration table"),
    ],
)
def test_the_content_tells_what_a_table_is(tmp_path: Path, data: bytes, source: str) -> None:
    path = tmp_path / "any_name"
    path.write_bytes(data)
    assert table_from_file(path) == ScaleTable(source, TABLE)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none: cannot be read \(No such file or directory\); give a calibration cache"
    ):
        table_from_file(tmp_path / "none")
