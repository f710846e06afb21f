"""The file of the ranges of a model's tensors: a folder with ranges.json and histograms.npz.

``ranges.json``
    UTF-8, keys sorted. ``format_version`` (4), ``method``, ``percentile``, what the ranges were found on (the fields
    of ``Origin``), and ``tensors``: by name ``method`` (its own), ``amax`` (by that), ``amax_by_method``, ``sqnr_db``
    and ``clipped_share`` by method, ``min``, ``max``, ``num_values``, ``num_zeros``, ``exponent``,
    ``notes``, ``method_for`` (by placement, where it is another), ``num_infinite``, ``channel_means`` and, where the
    user set a range, or it was learned, ``bounds``, with ``override`` or ``tuned`` as the method and as a further key
    of the tables by method.
    Numbers are written so that reading them gives the same bits; an SQNR that does not exist is null.
``histograms.npz``
    ``counts``: (num_tensors, 16384) int64, a row per tensor in the order of ``ranges.json``; see
    ``calibration.histogram.methods``.

Ranges from another tool's table, which keeps scales alone, have the method ``imported``: there are no histograms,
the tables by method are empty, ``num_values`` is 0, and ``min`` and ``max`` are -amax and amax.

Equal content gives equal bytes: neither the order of the tensors nor the time of writing shows.
"""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import DataError
from calibration.histogram.histogram import NUM_BINS, Counts, Histogram
from calibration.histogram.methods import Method
from calibration.ranges.ranges import AUTO, IMPORTED, METHODS, SET, TUNED, Origin, RangesRecord, TensorRange

RANGES_FILE = "ranges.json"
HISTOGRAMS_FILE = "histograms.npz"
FORMAT_VERSION = 4
BY_METHOD = ("amax_by_method", "sqnr_db", "clipped_share")
LARGEST_FLOAT = sys.float_info.max
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What numpy raises on a damaged archive, or on an array in an archive's place."""


def write_ranges(ranges: RangesRecord, histograms: Mapping[str, Histogram], folder: Path) -> None:
    """Write ``ranges.json`` and, unless they were imported, ``histograms.npz`` into the folder."""
    rewrite_ranges(ranges, folder)
    if ranges.method == IMPORTED:
        return
    counts = np.zeros((len(ranges.tensors), NUM_BINS), np.int64)
    for row, name in enumerate(sorted(ranges.tensors)):
        counts[row] = histograms[name].counts
    # As numpy.savez_compressed, but at zlib's quickest level, three times as fast. No time of writing: always 1980.
    with (
        zipfile.ZipFile(folder / HISTOGRAMS_FILE, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("counts.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array(stream, counts, allow_pickle=False)


def rewrite_ranges(ranges: RangesRecord, folder: Path) -> None:
    """Write ``ranges.json`` into the folder; the histograms stay as they are."""
    record: dict[str, Any] = {"format_version": FORMAT_VERSION, "method": ranges.method}
    record |= {"percentile": ranges.percentile, **vars(ranges.origin)}
    record["tensors"] = {name: _plain_tensor(tensor) for name, tensor in ranges.tensors.items()}
    (folder / RANGES_FILE).write_text(_json_text(record), encoding="utf-8", newline="\n")


def _plain_tensor(tensor: TensorRange) -> dict[str, Any]:
    return {key: value for key, value in vars(tensor).items() if key != "bounds" or value}


def ranges_from_folder(folder: Path) -> RangesRecord:
    """Read ``ranges.json`` strictly.

    Raises:
        DataError: the file is missing or cut off, is of another format version, lacks a key or has an unknown one, or
            a value is not what it must be, such as an amax that is NaN.
    """
    where = folder / RANGES_FILE
    record = _read_json(where)
    version = record.pop("format_version", None)
    if version != FORMAT_VERSION:
        is_what = "has no format version" if version is None else f"is format version {version}"
        raise DataError(f"{where}: {is_what}, this program reads {FORMAT_VERSION}; calibrate again")
    try:
        return _ranges_from_record(record)
    except _Malformed as error:
        raise DataError(f"{where}: {error}; restore the file, or calibrate again") from error


def histograms_from_folder(folder: Path) -> dict[str, Histogram]:
    """Read ``histograms.npz`` beside its ranges.

    Raises:
        DataError: a file is missing, damaged, or does not belong to the other; or the ranges were imported.
    """
    ranges = ranges_from_folder(folder)
    ranges.check_measured("reading histograms")
    where = folder / HISTOGRAMS_FILE
    try:
        # Opened here, as numpy leaves a broken archive open.
        with where.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            counts: Counts = stored["counts"]
    except UNREADABLE as error:
        raise DataError(f"{where}: cannot be read ({error}); calibrate again") from error
    expected = (len(ranges.tensors), NUM_BINS)
    if counts.dtype != np.int64 or counts.shape != expected:
        raise DataError(f"{where}: is {counts.dtype} {counts.shape}, int64 {expected} is expected; calibrate again")
    histograms = {}
    for (name, tensor), row in zip(ranges.tensors.items(), counts):
        if row.min() < 0 or row.sum() != tensor.num_values:
            raise DataError(
                f"{where}: has {row.sum()} values of tensor '{name}', {RANGES_FILE} has {tensor.num_values}; "
                "the two are not of one calibration: calibrate again"
            )
        histograms[name] = Histogram(
            row, tensor.exponent, tensor.min, tensor.max, tensor.num_zeros, tensor.num_infinite
        )
    return histograms


def _json_text(record: Mapping[str, object]) -> str:
    """Sorted, one line for each entry of each table: made by json's C encoder, which an indent rules out."""
    encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, sort_keys=True).encode
    lines = []
    for key, value in sorted(record.items()):
        if isinstance(value, Mapping):
            entries = ",\n".join(f"  {encode(name)}: {encode(entry)}" for name, entry in sorted(value.items()))
            lines.append(f" {encode(key)}: {{\n{entries}\n }}")
        else:
            lines.append(f" {encode(key)}: {encode(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


class _Malformed(Exception):
    """What is wrong in a record; the caller knows in which file."""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the folder of `trtforge calibrate`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is truncated or not JSON ({error}); calibrate again") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: is not a ranges file; calibrate again")
    return record


def _ranges_from_record(record: dict[str, Any]) -> RangesRecord:
    _check_keys(
        record, {"method", "percentile", "tensors"} | {origin_field.name for origin_field in fields(Origin)}, "the file"
    )
    _one_of(record["method"], (*METHODS, AUTO, IMPORTED, TUNED), "method")
    if not 0 < _number(record, "percentile", "the file") <= 100:
        raise _Malformed(f"percentile is {record['percentile']}, a number above 0 and up to 100 is expected")
    if not isinstance(record["tensors"], dict):
        raise _Malformed("tensors is no table of tensors by name")
    methods = () if record["method"] == IMPORTED else METHODS
    tensors = {
        name: _tensor_from_record(record["tensors"][name], methods, f"tensor '{name}'")
        for name in sorted(record["tensors"])
    }
    return RangesRecord(record["method"], float(record["percentile"]), _origin_from_record(record), tensors)


def _origin_from_record(record: dict[str, Any]) -> Origin:
    for key in ("model_digest", "data_digest", "source"):
        if not isinstance(record[key], str):
            raise _Malformed(f"{key} is {record[key]!r}, text is expected")
    for key in ("versions", "tensor_digests"):
        if not isinstance(record[key], dict) or not all(isinstance(text, str) for text in record[key].values()):
            raise _Malformed(f"{key} is {record[key]!r:.60}, a table of texts is expected")
    if not isinstance(record["parts"], list) or not all(isinstance(text, str) for text in record["parts"]):
        raise _Malformed(f"parts is {record['parts']!r:.60}, a list of texts is expected")
    _count(record, "num_samples", "the file")
    known = {origin_field.name: record[origin_field.name] for origin_field in fields(Origin)}
    return Origin(**{**known, "parts": tuple(record["parts"])})


def _tensor_from_record(item: object, methods: tuple[Method, ...], where: str) -> TensorRange:
    keys = {range_field.name for range_field in fields(TensorRange)}
    record = _check_keys({"bounds": [], **item} if isinstance(item, dict) else item, keys, where)
    is_set = bool(methods) and record["method"] in SET
    readings: tuple[str, ...] = (*methods, record["method"]) if is_set else methods
    by_method = {key: _check_keys(record[key], set(readings), f"{where}, {key}") for key in BY_METHOD}
    for key, values in by_method.items():
        for name in readings:
            if not (key == "sqnr_db" and values[name] is None):
                _number(values, name, f"{where}, {key}")
    if not isinstance(record["notes"], list) or not all(isinstance(note, str) for note in record["notes"]):
        raise _Malformed(f"{where}: notes are {record['notes']!r}, a list of texts is expected")
    if not isinstance(record["exponent"], int):
        raise _Malformed(f"{where}: exponent is {record['exponent']!r}, a whole number is expected")
    for key in ("amax", "min", "max"):
        _number(record, key, where)
    _one_of(record["method"], readings or (IMPORTED,), f"{where}: method")
    if record["amax"] < 0:
        raise _Malformed(f"{where}: amax is {record['amax']}, a number not below 0 is expected")
    for key in ("num_values", "num_zeros", "num_infinite"):
        _count(record, key, where)
    if not isinstance(record["method_for"], dict):
        raise _Malformed(f"{where}: method_for is {record['method_for']!r:.60}, a table of methods is expected")
    for target, method in record["method_for"].items():
        _one_of(method, methods, f"{where}: method_for {target}")
    means = record["channel_means"]
    if not isinstance(means, list) or not all(_is_finite(mean) for mean in means):
        raise _Malformed(f"{where}: channel_means are {means!r:.60}, a list of finite numbers is expected")
    bounds = record["bounds"]
    if not isinstance(bounds, list) or not all(_is_finite(bound) for bound in bounds) or len(bounds) not in (0, 2):
        raise _Malformed(f"{where}: bounds are {bounds!r:.60}, two finite numbers are expected")
    tuples = {"notes": tuple(record["notes"]), "channel_means": tuple(map(float, means)), "bounds": tuple(bounds)}
    return TensorRange(**{**record, **tuples})


def _one_of(value: object, known: Collection[str], what: str) -> None:
    if value not in known:
        raise _Malformed(f"{what} is {value!r}, one of {', '.join(known)} is expected")


def _check_keys(item: object, keys: set[str], where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise _Malformed(f"{where}: is no table of {', '.join(sorted(keys))}")
    for problem, names in (("lacks", keys - set(item)), ("has the unknown", set(item) - keys)):
        if names:
            raise _Malformed(f"{where}: {problem} key '{min(names)}'")
    return item


def _number(record: Mapping[str, Any], key: str, where: str) -> float:
    value = record[key]
    if not _is_finite(value):
        raise _Malformed(f"{where}: {key} is {value!r}, a finite number is expected")
    return float(value)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT


def _count(record: Mapping[str, Any], key: str, where: str) -> int:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Malformed(f"{where}: {key} is {value!r}, a count is expected")
    return value
