"""The ranges of a model's tensors, and their file.

A folder with two files:

``ranges.json``
    UTF-8, keys sorted. ``format_version`` (2), ``method``, ``percentile``, what the ranges were found on (the fields
    of ``Origin``), and ``tensors``: by name ``amax`` (the chosen one), ``amax_by_method``, ``sqnr_db`` and
    ``clipped_share`` by method, ``min``, ``max``, ``num_values``, ``num_zeros``, ``exponent`` and ``notes``. Numbers
    are written so that reading them gives the same bits; an SQNR that does not exist is null.
``histograms.npz``
    ``counts``: (num_tensors, 16384) int64, a row per tensor in the order of ``ranges.json``; see
    ``calibration.histogram.methods``.

Ranges from another tool's table, which keeps scales alone, have the method ``imported``: there are no histograms,
the tables by method are empty, ``num_values`` is 0, and ``min`` and ``max`` are -amax and amax.

Equal content gives equal bytes: neither the order of the tensors nor the time of writing shows.

``amax`` is 127 times a float32, the scale, wherever that is a normal number. So scale = float32(amax / 127) is exact,
and amax survives TensorRT's calibration cache, which keeps the scale.
"""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calibration.errors import DataError
from calibration.graph.tensor_digests import differing
from calibration.histogram.histogram import NUM_BINS, Counts, Histogram
from calibration.histogram.methods import LARGEST_CODE, READINGS, Method, amax_percentile, clipped_share, sqnrs_db
from calibration.ranges.span import Span

RANGES_FILE = "ranges.json"
HISTOGRAMS_FILE = "histograms.npz"
FORMAT_VERSION = 2
BY_METHOD = ("amax_by_method", "sqnr_db", "clipped_share")
METHODS: tuple[Method, ...] = ("entropy", "minmax", "percentile", "mse")
IMPORTED: Literal["imported"] = "imported"

SMALLEST_FP16_NORMAL = 2.0**-14
"""6.1e-5: a scale below it loses bits when TensorRT keeps it as FP16."""
NOTABLE_LOSS_DB = 6.0
"""A chosen range that is so much worse than another method's is noted: 6 dB is one of the eight bits."""
LARGEST_FLOAT = sys.float_info.max
NUM_NAMED = 5
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What numpy raises on a damaged archive, or on an array in an archive's place."""


@dataclass(frozen=True)
class Origin:
    """What ranges were found on."""

    model_digest: str
    data_digest: str
    """Of the samples and their preprocessing; of several runs, see ``calibration.ranges.merge``; "" if imported."""
    num_samples: int
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the tools that computed the values."""
    tensor_digests: Mapping[str, str] = field(default_factory=dict)
    """Of each tensor of the model (``calibration.graph.tensor_digests``): tells which of another model differ."""
    parts: tuple[str, ...] = ()
    """Of merged ranges, the data digests of the runs, sorted."""
    source: str = ""
    """Of imported ranges, what they were read from, such as ``TRT-8502-EntropyCalibration2``."""


@dataclass(frozen=True)
class TensorRange:
    """One tensor's range, -amax to amax, and what is known of its values."""

    amax: float
    """By the chosen method; 0 for a tensor that is all zero."""
    amax_by_method: Mapping[str, float]
    sqnr_db: Mapping[str, float | None]
    """Signal to quantization noise ratio of symmetric int8 by method, dB; None where there is no signal."""
    clipped_share: Mapping[str, float]
    """Share of values beyond the range, by method."""
    min: float
    max: float
    num_values: int
    num_zeros: int
    exponent: int
    """The histogram spans |x| in [0, 2^exponent)."""
    notes: tuple[str, ...]
    """What a reader should know: no values, all zero, constant, one-sided, tiny scale, or that a method loses."""


@dataclass(frozen=True)
class RangesRecord:
    """The ranges of a model's tensors, sorted by name."""

    method: Method | Literal["imported"]
    percentile: float
    origin: Origin
    tensors: Mapping[str, TensorRange]

    def check_model(self, model_digest: str, tensor_digests: Callable[[], Mapping[str, str]]) -> None:
        """Refuse to be used with another model than the one that was calibrated.

        ``tensor_digests`` gives the model's (see ``calibration.graph.tensor_digests``); it is called if the models
        differ.

        Raises:
            DataError: the digests differ; names up to five tensors that the calibrated model lacks, and up to five
                that it computes otherwise.
        """
        if model_digest == self.origin.model_digest:
            return
        ours, others = self.origin.tensor_digests, tensor_digests()
        missing = [name for name in others if name not in ours and name not in self.tensors]
        changed = differing(ours, others)
        which = f", which lacks {_listed(missing)} of this one's tensors" if missing else ""
        if changed:
            which += f"; by weights or operators, {_listed(changed)} differ, the first of them in order of computation"
        raise DataError(
            f"ranges: were found on model {self.origin.model_digest[:12]}, not on this one, {model_digest[:12]}"
            f"{which}; calibrate this model"
        )

    def check_measured(self, what_for: str) -> None:
        """Refuse imported ranges where more than scales is needed.

        Raises:
            DataError: they were imported.
        """
        if self.method == IMPORTED:
            raise DataError(
                f"ranges: were imported from {self.origin.source}, which has scales only, but {what_for} needs what "
                "`trtforge calibrate` sees of the values; calibrate the model"
            )


def ranges_from_histograms(
    histograms: Mapping[str, Histogram], method: Method, percentile: float, origin: Origin
) -> RangesRecord:
    """Read every method's range from every tensor's histogram; ``method`` is the chosen one.

    Raises:
        DataError: the method is unknown, or ``percentile`` is not in (0, 100].
    """
    if method not in METHODS:
        raise DataError(f"calibration method '{method}': is unknown; choose one of {', '.join(METHODS)}")
    # Tensors that have their values from another, in another shape, share its histogram: it is read once.
    distinct = {id(histogram): histogram for histogram in histograms.values()}
    read = {key: _tensor_range(histogram, method, percentile) for key, histogram in distinct.items()}
    tensors = {name: read[id(histograms[name])] for name in sorted(histograms)}
    return RangesRecord(method, percentile, origin, tensors)


def write_ranges(ranges: RangesRecord, histograms: Mapping[str, Histogram], folder: Path) -> None:
    """Write ``ranges.json`` and, unless they were imported, ``histograms.npz`` into the folder."""
    record: dict[str, Any] = {"format_version": FORMAT_VERSION, "method": ranges.method}
    record |= {"percentile": ranges.percentile, **vars(ranges.origin)}
    record["tensors"] = {name: vars(tensor) for name, tensor in ranges.tensors.items()}
    (folder / RANGES_FILE).write_text(_json_text(record), encoding="utf-8", newline="\n")
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
        histograms[name] = Histogram(row, tensor.exponent, tensor.min, tensor.max, tensor.num_zeros)
    return histograms


def _tensor_range(histogram: Histogram, method: Method, percentile: float) -> TensorRange:
    amax: dict[str, float] = {name: read(histogram) for name, read in READINGS.items()}
    amax["percentile"] = amax_percentile(histogram, percentile)
    sqnr: dict[str, float | None] = dict(zip(METHODS, sqnrs_db(histogram, [amax[name] for name in METHODS])))
    return TensorRange(
        amax=_of_float32_scale(amax[method]),
        amax_by_method={name: _of_float32_scale(amax[name]) for name in METHODS},
        sqnr_db=sqnr,
        clipped_share={name: clipped_share(histogram, amax[name]) for name in METHODS},
        min=histogram.min,
        max=histogram.max,
        num_values=histogram.num_values,
        num_zeros=histogram.num_zeros,
        exponent=histogram.exponent,
        notes=_notes(histogram, method, amax[method], sqnr),
    )


def _of_float32_scale(amax: float) -> float:
    """127 times the float32 that is nearest to amax / 127; amax itself where that would not be a normal number."""
    scale = np.float32(amax / LARGEST_CODE)
    return LARGEST_CODE * float(scale) if scale >= np.finfo(np.float32).tiny else amax


def _notes(histogram: Histogram, method: Method, amax: float, sqnr: Mapping[str, float | None]) -> tuple[str, ...]:
    if not histogram.num_values:
        return ("no values on the calibration data",)
    if not histogram.amax:
        return ("all zero on the calibration data",)
    notes = []
    is_constant = histogram.min == histogram.max
    if is_constant:
        notes.append("constant on the calibration data")
    elif histogram.min >= 0 or histogram.max <= 0:
        notes.append("one-sided: half of symmetric int8's codes are unused")
    if amax / LARGEST_CODE < SMALLEST_FP16_NORMAL:
        notes.append(f"tiny scale {amax / LARGEST_CODE:.3g}: below FP16's smallest normal, 6.1e-5")
    ratios = {name: ratio for name, ratio in sqnr.items() if ratio is not None}
    best = max(ratios, key=lambda name: ratios[name])
    if ratios[best] - ratios[method] > NOTABLE_LOSS_DB and not is_constant:
        notes.append(f"{method} gives {ratios[method]:.1f} dB, {best} would give {ratios[best]:.1f} dB")
    return tuple(notes)


def _listed(names: list[str]) -> str:
    """Their number, and the first of them."""
    shown = ", ".join(f"'{name}'" for name in names[:NUM_NAMED])
    return f"{len(names)} ({shown}{', …' * (len(names) > NUM_NAMED)})"


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
    methods = (*METHODS, IMPORTED)
    if record["method"] not in methods:
        raise _Malformed(f"method is {record['method']!r}, one of {', '.join(methods)} is expected")
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
    record = _check_keys(item, {range_field.name for range_field in fields(TensorRange)}, where)
    by_method = {key: _check_keys(record[key], set(methods), f"{where}, {key}") for key in BY_METHOD}
    for key, values in by_method.items():
        for name in methods:
            if not (key == "sqnr_db" and values[name] is None):
                _number(values, name, f"{where}, {key}")
    if not isinstance(record["notes"], list) or not all(isinstance(note, str) for note in record["notes"]):
        raise _Malformed(f"{where}: notes are {record['notes']!r}, a list of texts is expected")
    if not isinstance(record["exponent"], int):
        raise _Malformed(f"{where}: exponent is {record['exponent']!r}, a whole number is expected")
    for key in ("amax", "min", "max"):
        _number(record, key, where)
    if record["amax"] < 0:
        raise _Malformed(f"{where}: amax is {record['amax']}, a number not below 0 is expected")
    for key in ("num_values", "num_zeros"):
        _count(record, key, where)
    return TensorRange(**{**record, "notes": tuple(record["notes"])})


def _check_keys(item: object, keys: set[str], where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise _Malformed(f"{where}: is no table of {', '.join(sorted(keys))}")
    for problem, names in (("lacks", keys - set(item)), ("has the unknown", set(item) - keys)):
        if names:
            raise _Malformed(f"{where}: {problem} key '{min(names)}'")
    return item


def _number(record: Mapping[str, Any], key: str, where: str) -> float:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_FLOAT:
        raise _Malformed(f"{where}: {key} is {value!r}, a finite number is expected")
    return float(value)


def _count(record: Mapping[str, Any], key: str, where: str) -> int:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Malformed(f"{where}: {key} is {value!r}, a count is expected")
    return value


def spans_from_ranges(ranges: RangesRecord) -> dict[str, Span]:
    """Tensor name -> the chosen amax and the observed minimum and maximum."""
    return {name: Span(amax=t.amax, min=t.min, max=t.max) for name, t in ranges.tensors.items()}
