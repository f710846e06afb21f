"""Ranges come back from their file to the bit; a damaged file or another model's is refused with one sentence."""

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.histogram.entropy import amax_entropy
from calibration.histogram.histogram import Histogram, histogram_from_values
from calibration.histogram.methods import Method, amax_mse, amax_percentile, clipped_share, sqnr_db
from calibration.ranges.ranges import (
    METHODS,
    Origin,
    RangesRecord,
    TensorRange,
    ranges_from_histograms,
    spans_from_ranges,
)
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, write_ranges

ORIGIN = Origin(model_digest="a" * 64, data_digest="b" * 64, num_samples=10)


def of(*values: float) -> Histogram:
    return histogram_from_values(np.array(values, np.float32), "tensor 't'")


def laplace() -> Histogram:
    return histogram_from_values(np.random.default_rng(0).laplace(size=20_000), "tensor 't'")


def histograms() -> dict[str, Histogram]:
    return {"x": of(-1.0, 0.1, 2.0), "conv/输出": laplace(), "dead": of(0.0, 0.0)}


def made(method: Method = "entropy") -> RangesRecord:
    return ranges_from_histograms(histograms(), method, 99.9, ORIGIN)


def notes(histogram: Histogram, method: Method = "minmax") -> tuple[str, ...]:
    return ranges_from_histograms({"t": histogram}, method, 99.99, ORIGIN).tensors["t"].notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_ranges(made(), histograms(), tmp_path)
    return tmp_path


# Making them.


@pytest.mark.parametrize("method", METHODS)
def test_the_chosen_amax_is_the_methods_own(method: Method) -> None:
    tensor = made(method).tensors["conv/输出"]
    histogram = laplace()
    expected = {
        "entropy": amax_entropy(histogram),
        "minmax": histogram.amax,
        "percentile": amax_percentile(histogram, 99.9),
        "mse": amax_mse(histogram),
    }
    assert tensor.amax == tensor.amax_by_method[method]
    assert dict(tensor.amax_by_method) == pytest.approx(expected, rel=2.0**-24)
    assert len(set(expected.values())) == 4
    assert dict(tensor.sqnr_db) == {name: sqnr_db(histogram, amax) for name, amax in expected.items()}
    assert dict(tensor.clipped_share) == {name: clipped_share(histogram, amax) for name, amax in expected.items()}


def test_facts_are_those_of_the_values() -> None:
    tensor = ranges_from_histograms({"t": of(-3.0, 0.0, 0.0, 1.0)}, "minmax", 100.0, ORIGIN).tensors["t"]
    assert (tensor.min, tensor.max, tensor.num_values, tensor.num_zeros, tensor.exponent) == (-3.0, 1.0, 4, 2, 2)


@given(st.floats(min_value=2.0**-100, max_value=float(np.finfo(np.float32).max), width=32))
def test_the_scale_is_a_float32_and_amax_comes_back_from_it(value: float) -> None:
    """TensorRT's cache keeps the scale alone: amax = 127 * scale must be the same number."""
    for amax in ranges_from_histograms({"t": of(value)}, "minmax", 99.9, ORIGIN).tensors["t"].amax_by_method.values():
        scale = float(np.float32(amax / 127))
        assert 127 * scale == amax
        assert amax == pytest.approx(value, rel=1e-3)


def test_subnormal_ranges_are_kept_as_they_are() -> None:
    assert ranges_from_histograms({"t": of(1e-44)}, "minmax", 99.9, ORIGIN).tensors["t"].amax == of(1e-44).amax


def test_the_order_of_the_tensors_does_not_show() -> None:
    backwards = dict(reversed(histograms().items()))
    assert ranges_from_histograms(backwards, "entropy", 99.9, ORIGIN) == made()
    assert list(made().tensors) == ["conv/输出", "dead", "x"]


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(DataError, match=r"^calibration method 'max': is unknown; choose one of entropy, minmax, "):
        ranges_from_histograms(histograms(), "max", 99.9, ORIGIN)  # type: ignore[arg-type]


def test_a_percentile_of_zero_is_refused_whatever_the_method() -> None:
    with pytest.raises(DataError, match=r"^percentile: is 0\.0"):
        ranges_from_histograms(histograms(), "entropy", 0.0, ORIGIN)


# Notes.


def test_an_ordinary_tensor_has_no_note() -> None:
    assert notes(of(*np.linspace(-1.0, 1.0, 999))) == ()


def test_an_all_zero_tensor_keeps_amax_0_and_says_so() -> None:
    tensor = made().tensors["dead"]
    assert (tensor.amax, tensor.notes) == (0.0, ("all zero on the calibration data",))
    assert set(tensor.amax_by_method.values()) == {0.0}
    assert set(tensor.sqnr_db.values()) == {None}
    assert set(tensor.clipped_share.values()) == {0.0}


def test_a_tensor_without_values_says_so() -> None:
    assert notes(of()) == ("no values on the calibration data",)


@pytest.mark.parametrize("value", [3.0, -3.0, 1.0039062])  # The last lies at the edge of a bin: the methods differ.
def test_a_constant_says_so_and_no_method_is_worse(value: float) -> None:
    assert notes(of(value, value)) == ("constant on the calibration data",)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_one_sided_tensor_says_so(sign: float) -> None:
    assert notes(of(*(sign * np.linspace(0.0, 6.0, 999)))) == ("one-sided: half of symmetric int8's codes are unused",)


def test_a_scale_below_fp16s_normals_says_so() -> None:
    (note,) = notes(of(*np.linspace(-0.0063, 0.0063, 999)))
    assert note == "tiny scale 4.96e-05: below FP16's smallest normal, 6.1e-5"
    assert notes(of(*np.linspace(-0.0078, 0.0078, 999))) == ()


def test_a_method_much_worse_than_another_says_so() -> None:
    values = np.append(np.random.default_rng(0).uniform(-1, 1, 1_000_000), 100.0)
    (note,) = notes(histogram_from_values(values, "t"))
    assert note.startswith("minmax gives ")
    assert "mse would give " in note


# The file.


def test_what_is_written_is_read_back_to_the_bit(folder: Path) -> None:
    assert ranges_from_folder(folder) == made()


def test_histograms_are_read_back_to_the_bit(folder: Path) -> None:
    found = histograms_from_folder(folder)
    assert sorted(found) == sorted(histograms())
    for name, histogram in histograms().items():
        np.testing.assert_array_equal(found[name].counts, histogram.counts)
        assert replace(found[name], counts=histogram.counts) != histogram, "eq is by identity; so compare the facts:"
        facts = [(h.exponent, h.min, h.max, h.num_zeros) for h in (found[name], histogram)]
        assert facts[0] == facts[1]


@given(amax=st.floats(min_value=2.0**-149, max_value=float(np.finfo(np.float32).max), width=32))
def test_any_float_comes_back_exactly(amax: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ranges")
    found = {"t": of(amax, -amax / 3)}
    ranges = ranges_from_histograms(found, "entropy", 99.99, ORIGIN)
    write_ranges(ranges, found, folder)
    assert ranges_from_folder(folder) == ranges


def test_equal_content_gives_equal_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name, now in (("one", time.time()), ("two", time.time() + 1e6)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        folder = tmp_path / name
        folder.mkdir()
        found = histograms() if name == "one" else dict(reversed(histograms().items()))
        write_ranges(ranges_from_histograms(found, "mse", 99.9, ORIGIN), found, folder)
        written.append([(folder / file).read_bytes() for file in ("ranges.json", "histograms.npz")])
    assert written[0] == written[1]


def test_the_archive_bears_no_time(folder: Path) -> None:
    with zipfile.ZipFile(folder / "histograms.npz") as archive:
        assert [entry.date_time for entry in archive.infolist()] == [(1980, 1, 1, 0, 0, 0)]


def test_the_file_is_documented_json(folder: Path) -> None:
    text = (folder / "ranges.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert list(record) == sorted(record)
    assert record["format_version"] == 4
    assert (record["method"], record["percentile"], record["num_samples"]) == ("entropy", 99.9, 10)
    assert record["tensors"]["dead"]["sqnr_db"] == {"entropy": None, "minmax": None, "mse": None, "percentile": None}
    assert '"conv/输出"' in text
    assert text.endswith("}\n")


def test_means_of_channels_come_back(folder: Path) -> None:
    means = {"x": (0.1, -3.5, 1e-30)}
    ranges = ranges_from_folder(folder).with_means(means)
    write_ranges(ranges, histograms_from_folder(folder), folder)
    assert ranges_from_folder(folder) == ranges
    spans = spans_from_ranges(ranges_from_folder(folder))
    assert {name: span.channel_means for name, span in spans.items() if span.channel_means} == means
    other = ranges.read_by("mse", {})
    assert other.tensors["x"].channel_means == means["x"], "means do not depend on the reading"


def test_no_tensors_at_all_are_written_and_read(tmp_path: Path) -> None:
    """A model whose only input is integer, and that computes nothing in float."""
    none = ranges_from_histograms({}, "entropy", 99.99, ORIGIN)
    write_ranges(none, {}, tmp_path)
    assert ranges_from_folder(tmp_path) == none
    assert histograms_from_folder(tmp_path) == {}


def test_the_order_in_the_file_does_not_matter(folder: Path) -> None:
    """Another program may have sorted the keys otherwise; the rows of counts are in the order of the names."""
    change(folder, lambda record: record.update(tensors=dict(reversed(record["tensors"].items()))))
    assert histograms_from_folder(folder)["x"].num_values == 3


# Files that are not right.


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "ranges.json").read_text(encoding="utf-8"))
    how(record)
    (folder / "ranges.json").write_text(json.dumps(record), encoding="utf-8")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ranges\.json: cannot be read \(No such file or directory\); give the folder"):
        ranges_from_folder(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(folder: Path, share: float) -> None:
    path = folder / "ranges.json"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"ranges\.json: is truncated or not JSON \(.*\); calibrate again$"):
        ranges_from_folder(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[" * 100_000])
def test_what_is_no_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "ranges.json").write_bytes(content)
    with pytest.raises(DataError, match=r"ranges\.json: is truncated or not JSON"):
        ranges_from_folder(folder)


def test_another_json_file_is_refused(folder: Path) -> None:
    (folder / "ranges.json").write_text("[]")
    with pytest.raises(DataError, match=r"ranges\.json: is not a ranges file"):
        ranges_from_folder(folder)


TENSOR = "tensors", "x"
DAMAGE: dict[str, tuple[tuple[str, ...], object, str]] = {
    "unknown method": (
        ("method",),
        "max",
        "method is 'max', one of entropy, minmax, percentile, mse, auto, imported, ",
    ),
    "percentile of 0": (("percentile",), 0, "percentile is 0, a number above 0 and up to 100 is expected"),
    "percentile as text": (("percentile",), "99", "the file: percentile is '99', a finite number is expected"),
    "digest as number": (("model_digest",), 3, "model_digest is 3, text is expected"),
    "source null": (("source",), None, "source is None, text is expected"),
    "version as number": (("versions",), {"onnx": 1.0}, "versions is {'onnx': 1.0}, a table of texts is expected"),
    "digests as list": (("tensor_digests",), ["x"], "tensor_digests is ['x'], a table of texts is expected"),
    "parts as text": (("parts",), "ab", "parts is 'ab', a list of texts is expected"),
    "measured as imported": (
        ("method",),
        "imported",
        "tensor 'conv/输出', amax_by_method: has the unknown key 'entropy'",
    ),
    "half a sample": (("num_samples",), 1.5, "the file: num_samples is 1.5, a count is expected"),
    "tensors as list": (("tensors",), [], "tensors is no table of tensors by name"),
    "tensor as number": (TENSOR, 1.0, "tensor 'x': is no table of amax, amax_by_method"),
    "NaN": ((*TENSOR, "amax"), math.nan, "tensor 'x': amax is nan, a finite number is expected"),
    "infinity": ((*TENSOR, "max"), math.inf, "tensor 'x': max is inf, a finite number is expected"),
    "beyond float64": ((*TENSOR, "min"), -(10**400), "tensor 'x': min is -1000"),
    "amax as text": ((*TENSOR, "amax"), "1", "tensor 'x': amax is '1', a finite number is expected"),
    "amax as truth": ((*TENSOR, "amax"), True, "tensor 'x': amax is True, a finite number is expected"),
    "amax null": ((*TENSOR, "amax"), None, "tensor 'x': amax is None, a finite number is expected"),
    "negative amax": ((*TENSOR, "amax"), -1.0, "tensor 'x': amax is -1.0, a number not below 0 is expected"),
    "NaN of a method": ((*TENSOR, "amax_by_method", "mse"), math.nan, "tensor 'x', amax_by_method: mse is nan"),
    "NaN ratio": ((*TENSOR, "sqnr_db", "mse"), math.nan, "tensor 'x', sqnr_db: mse is nan"),
    "unknown reading": ((*TENSOR, "clipped_share", "kl"), 0.0, "tensor 'x', clipped_share: has the unknown key 'kl'"),
    "means that are no list": ((*TENSOR, "channel_means"), 1.0, "tensor 'x': channel_means are 1.0, a list of "),
    "a mean that is no number": ((*TENSOR, "channel_means"), [1.0, True], "tensor 'x': channel_means are [1.0, True]"),
    "negative count": ((*TENSOR, "num_zeros"), -1, "tensor 'x': num_zeros is -1, a count is expected"),
    "exponent": ((*TENSOR, "exponent"), 1.0, "tensor 'x': exponent is 1.0, a whole number is expected"),
    "notes": ((*TENSOR, "notes"), "all zero", "tensor 'x': notes are 'all zero', a list of texts is expected"),
    "unknown key": (("methods",), [], "the file: has the unknown key 'methods'"),
    "unknown key of a tensor": ((*TENSOR, "mean"), 0.0, "tensor 'x': has the unknown key 'mean'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_value_is_refused_with_its_place(folder: Path, damage: str) -> None:
    (*path, last), value, sentence = DAMAGE[damage]

    def spoil(record: dict[str, Any]) -> None:
        for key in path:
            record = record[key]
        record[last] = value

    change(folder, spoil)
    with pytest.raises(DataError) as caught:
        ranges_from_folder(folder)
    assert str(caught.value).startswith(f"{folder / 'ranges.json'}: {sentence}")
    assert str(caught.value).endswith("; restore the file, or calibrate again")


@pytest.mark.parametrize("key", ["method", "percentile", "tensors", *(one.name for one in fields(Origin))])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    change(folder, lambda record: record.pop(key))
    with pytest.raises(DataError, match=rf"ranges\.json: the file: lacks key '{key}'; restore the file"):
        ranges_from_folder(folder)


@pytest.mark.parametrize("key", ["amax", "amax_by_method", "sqnr_db", "clipped_share", "min", "num_values", "notes"])
def test_a_tensors_missing_key_is_named(folder: Path, key: str) -> None:
    change(folder, lambda record: record["tensors"]["x"].pop(key))
    with pytest.raises(DataError, match=rf"ranges\.json: tensor 'x': lacks key '{key}'"):
        ranges_from_folder(folder)


@pytest.mark.parametrize(("version", "is_what"), [(1, "is format version 1"), (None, "has no format version")])
def test_another_format_version_is_refused(folder: Path, version: int | None, is_what: str) -> None:
    change(folder, lambda record: record.update(format_version=version))
    with pytest.raises(DataError, match=rf"ranges\.json: {is_what}, this program reads 4; calibrate again"):
        ranges_from_folder(folder)


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 16384), np.int64))
    return stream.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all", npy()])
def test_an_archive_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "histograms.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"histograms\.npz: cannot be read \(.*\); calibrate again"):
        histograms_from_folder(folder)


def test_a_missing_archive_is_refused(folder: Path) -> None:
    (folder / "histograms.npz").unlink()
    with pytest.raises(DataError, match=r"histograms\.npz: cannot be read"):
        histograms_from_folder(folder)


@pytest.mark.parametrize("place", [0.2, 0.5])
@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_archive_is_refused(folder: Path, place: float, how: str) -> None:
    path = folder / "histograms.npz"
    content = bytearray(path.read_bytes())
    at = int(len(content) * place)
    content[at : len(content) if how == "cut" else at + 1] = b"" if how == "cut" else bytes([content[at] ^ 0xFF])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"histograms\.npz: cannot be read"):
        histograms_from_folder(folder)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"other": np.zeros(1)}, r"cannot be read"),
        ({"counts": np.zeros((2, 16384), np.int64)}, r"is int64 \(2, 16384\), int64 \(3, 16384\) is expected"),
        ({"counts": np.zeros((3, 16384))}, r"is float64 \(3, 16384\), int64 \(3, 16384\) is expected"),
        ({"counts": np.zeros((3, 16384), np.int64)}, r"has 0 values of tensor 'conv/输出', ranges.json has 20000"),
    ],
)
def test_the_counts_of_another_calibration_are_refused(
    folder: Path, arrays: dict[str, np.ndarray[Any, Any]], sentence: str
) -> None:
    np.savez(folder / "histograms.npz", allow_pickle=False, **arrays)
    with pytest.raises(DataError, match=r"histograms\.npz: " + sentence):
        histograms_from_folder(folder)


def test_pickled_counts_are_not_loaded(folder: Path) -> None:
    np.savez(folder / "histograms.npz", allow_pickle=True, counts=np.array([print], object))
    with pytest.raises(DataError, match=r"histograms\.npz: cannot be read \(.*pickle"):
        histograms_from_folder(folder)


# Whose ranges they are.


def test_the_calibrated_model_is_accepted_and_its_tensors_are_not_hashed() -> None:
    made().check_model("a" * 64, lambda: pytest.fail("the digests were requested"))


def other_model(ours: dict[str, str], others: dict[str, str]) -> str:
    """What is said of a model with other tensors."""
    ranges = replace(made(), origin=replace(ORIGIN, tensor_digests=ours))
    with pytest.raises(DataError) as caught:
        ranges.check_model("c" * 64, lambda: others)
    said = str(caught.value)
    assert said.startswith("ranges: were found on model aaaaaaaaaaaa, not on this one, cccccccccccc")
    assert said.endswith("; calibrate this model")
    return said


def test_another_model_is_refused_and_five_of_its_tensors_named() -> None:
    said = other_model({"x": "1"}, {"x": "1", **{f"conv_{i}": "2" for i in range(7)}})
    expected = "which lacks 7 ('conv_0', 'conv_1', 'conv_2', 'conv_3', 'conv_4', …) of this one's tensors"
    assert expected in said
    assert "weights" not in said


def test_a_model_with_other_weights_is_refused_and_its_tensors_named_in_order_of_computation() -> None:
    said = other_model({"a": "3", "x": "1", "y": "2"}, {"x": "1", "y": "other", "a": "other"})
    assert "; by weights or operators, 2 ('y', 'a') differ, the first of them in order of computation" in said
    assert "lacks" not in said


def test_another_model_with_equal_tensors_is_refused_too() -> None:
    assert "cccccccccccc; calibrate this model" in other_model({"x": "1"}, {"x": "1"})


# Imported ones.


def imported() -> RangesRecord:
    tensor = TensorRange("imported", 2.54, {}, {}, {}, -2.54, 2.54, 0, 0, 2, ("from a cache",))
    return RangesRecord("imported", 100.0, replace(ORIGIN, source="TRT-8502-EntropyCalibration2"), {"x": tensor})


def test_imported_ranges_come_back_without_histograms(tmp_path: Path) -> None:
    write_ranges(imported(), {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.json"]
    assert ranges_from_folder(tmp_path) == imported()
    with pytest.raises(DataError, match="imported from TRT-8502-EntropyCalibration2, which has scales only, but read"):
        histograms_from_folder(tmp_path)


def test_what_needs_the_values_refuses_imported_ranges() -> None:
    made().check_measured("FP16")
    with pytest.raises(DataError, match="but FP16 needs what `trtforge calibrate` sees of the values; calibrate the"):
        imported().check_measured("FP16")
