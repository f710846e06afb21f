"""The ranges of a model's tensors, and their file.

A folder with two files:

``ranges.json``
    ``format_version`` (1), ``method``, ``percentile``, ``num_samples``, ``model_digest``, ``data_digest``, and
    ``tensors``: by name ``amax`` (the chosen one), ``amax_by_method``, ``sqnr_db`` and ``clipped_share`` by method,
    ``min``, ``max``, ``num_values``, ``num_zeros``, ``exponent`` and ``notes``. Numbers are written so that reading
    them gives the same bits; an SQNR that does not exist is null.
``histograms.npz``
    ``counts``: (num_tensors, 16384) int64, a row per tensor in the order of ``ranges.json``; see
    ``calibration.observers``.

Equal content gives equal bytes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import DataError
from calibration.observers import (
    READINGS,
    Histogram,
    Method,
    amax_percentile,
    clipped_share,
    sqnr_db,
)

FORMAT_VERSION = 1
METHODS: tuple[Method, ...] = ("entropy", "minmax", "percentile", "mse")

LARGEST_CODE = 127
SMALLEST_FP16_NORMAL = 2.0**-14
"""6.1e-5: a scale below it loses bits when TensorRT keeps it as FP16."""
NUM_NAMED = 5


@dataclass(frozen=True)
class Origin:
    """What ranges were found on."""

    model_digest: str
    data_digest: str
    num_samples: int


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
    """What a reader should know: ``all zero``, ``constant``, ``one-sided``, ``tiny scale …``."""


@dataclass(frozen=True)
class Ranges:
    """The ranges of a model's tensors, in the order in which the model computes them."""

    method: Method
    percentile: float
    origin: Origin
    tensors: Mapping[str, TensorRange]

    def check_model(self, model_digest: str, tensor_names: Iterable[str]) -> None:
        """Refuse to be used with another model than the one that was calibrated.

        Raises:
            DataError: names up to five tensors that the ranges lack.
        """
        if model_digest == self.origin.model_digest:
            return
        missing = [name for name in tensor_names if name not in self.tensors]
        listed = ", ".join(f"'{name}'" for name in missing[:NUM_NAMED])
        which = f"; they lack {len(missing)} of its tensors, such as {listed}" if missing else ""
        raise DataError(
            f"ranges: were found on model {self.origin.model_digest[:12]}, not on {model_digest[:12]}{which}; "
            "calibrate this model"
        )


def ranges_from_histograms(
    histograms: Mapping[str, Histogram], method: Method, percentile: float, origin: Origin
) -> Ranges:
    """Read every method's range from every tensor's histogram; ``method`` is the chosen one.

    Raises:
        DataError: the method is unknown, or ``percentile`` is not in (0, 100].
    """
    if method not in METHODS:
        raise DataError(f"calibration method '{method}': is unknown; choose one of {', '.join(METHODS)}")
    tensors = {name: _tensor_range(histogram, method, percentile) for name, histogram in histograms.items()}
    return Ranges(method, percentile, origin, tensors)


def write_ranges(ranges: Ranges, histograms: Mapping[str, Histogram], folder: Path) -> None:
    """Write ``ranges.json`` and ``histograms.npz`` into the folder."""
    record = {"format_version": FORMAT_VERSION, "method": ranges.method, "percentile": ranges.percentile}
    tensors = {name: asdict(tensor) for name, tensor in ranges.tensors.items()}
    record |= asdict(ranges.origin) | {"tensors": tensors}
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / "ranges.json").write_text(text + "\n", encoding="utf-8")
    counts = np.stack([histograms[name].counts for name in ranges.tensors])
    with (folder / "histograms.npz").open("wb") as stream:
        np.savez_compressed(stream, counts=counts)


def ranges_from_folder(folder: Path) -> Ranges:
    """Read ``ranges.json`` strictly.

    Raises:
        DataError: the file is missing, is cut off, is of another format version, or lacks or has too many keys.
    """
    record = _read_json(folder / "ranges.json")
    where = folder / "ranges.json"
    try:
        if record["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{where}: is format version {record['format_version']}, this program reads {FORMAT_VERSION}; "
                "calibrate again"
            )
        origin = Origin(record["model_digest"], record["data_digest"], record["num_samples"])
        tensors = {name: _tensor_from_record(item) for name, item in record["tensors"].items()}
        return Ranges(record["method"], record["percentile"], origin, tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: is not a ranges file (at {error}); calibrate again") from error


def histograms_from_folder(folder: Path) -> dict[str, Histogram]:
    """Read ``histograms.npz`` beside its ranges.

    Raises:
        DataError: a file is missing, damaged, or does not belong to the other.
    """
    ranges = ranges_from_folder(folder)
    where = folder / "histograms.npz"
    try:
        with np.load(where, allow_pickle=False) as stored:
            counts = stored["counts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{where}: cannot be read ({error}); calibrate again") from error
    if len(counts) != len(ranges.tensors):
        raise DataError(f"{where}: has {len(counts)} histograms for {len(ranges.tensors)} ranges; calibrate again")
    return {
        name: Histogram(row, tensor.exponent, tensor.min, tensor.max, tensor.num_zeros)
        for (name, tensor), row in zip(ranges.tensors.items(), counts)
    }


def _tensor_range(histogram: Histogram, method: Method, percentile: float) -> TensorRange:
    amax: dict[str, float] = {name: read(histogram) for name, read in READINGS.items()}
    amax["percentile"] = amax_percentile(histogram, percentile)
    return TensorRange(
        amax=amax[method],
        amax_by_method={name: amax[name] for name in METHODS},
        sqnr_db={name: sqnr_db(histogram, amax[name]) for name in METHODS},
        clipped_share={name: clipped_share(histogram, amax[name]) for name in METHODS},
        min=histogram.min,
        max=histogram.max,
        num_values=histogram.num_values,
        num_zeros=histogram.num_zeros,
        exponent=histogram.exponent,
        notes=_notes(histogram, amax[method]),
    )


def _notes(histogram: Histogram, amax: float) -> tuple[str, ...]:
    if not histogram.amax:
        return ("all zero on the calibration data",)
    notes = []
    if histogram.min == histogram.max:
        notes.append("constant on the calibration data")
    elif histogram.min >= 0 or histogram.max <= 0:
        notes.append("one-sided: half of symmetric int8's codes are unused")
    if amax / LARGEST_CODE < SMALLEST_FP16_NORMAL:
        notes.append(f"tiny scale {amax / LARGEST_CODE:.3g}: below FP16's smallest normal, 6.1e-5")
    return tuple(notes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the folder of `trtforge calibrate`"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is cut off or no JSON ({error}); calibrate again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is not a ranges file; calibrate again")
    return found


def _tensor_from_record(item: Mapping[str, Any]) -> TensorRange:
    unknown = set(item) - {f.name for f in fields(TensorRange)}
    if unknown:
        raise KeyError(sorted(unknown)[0])
    numbers = (item["amax"], item["min"], item["max"])
    if not all(isinstance(number, (int, float)) and np.isfinite(number) for number in numbers):
        raise TypeError(f"range {numbers}")
    return TensorRange(**{**item, "notes": tuple(item["notes"])})
