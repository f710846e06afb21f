"""ONNX Runtime's calibration table in its three forms: FlatBuffers, JSON and plain text; per tensor its amax.

``onnxruntime.quantization.write_calibration_table`` writes all three: ``calibration.flatbuffers`` is what the TensorRT
execution provider reads (``trt_int8_calibration_table_name``), a vector of pairs of texts, tensor name and amax;
``calibration.json``, also of ``save_tensors_data``, has ``lowest`` and ``highest`` of each tensor; and
``calibration.cache`` has lines of name, space and amax.

ONNX Runtime writes as amax the larger of lowest and highest, which is not the larger magnitude: for a tensor that is
never positive its FlatBuffers and text tables have 0 or a negative number. Such a line is refused here; the JSON has
both numbers and is read right.

amax is written here with all digits of float64, so that the scale comes back to the bit; the execution provider rounds
it to float32, which may move the scale by one unit in its last place.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers.table import Table

from calibration.errors import DataError

LARGEST_CODE = 127
LARGEST_AMAX = float(np.finfo(np.float32).max)
_KEY, _VALUE, _DICT = 4, 6, 4
"""Places in the virtual tables of KeyValue and TrtTable, in ONNX Runtime's ``calibration_table.fbs``."""
_UNREADABLE = (struct.error, IndexError, ValueError, TypeError, AttributeError)
"""What reading a damaged FlatBuffer raises."""
_METHODS = {"entropy": "Entropy", "percentile": "Percentile"}
"""ONNX Runtime's names of methods; all others are MinMax there, where numbers are taken as they stand."""


def scales_from_flatbuffers(data: bytes, where: str) -> dict[str, float]:
    """Tensor name -> scale, from ``calibration.flatbuffers``.

    Raises:
        DataError: the file is damaged, a tensor stands there twice, or an amax is not a positive finite number.
    """
    try:
        pairs = _pairs(data)
    except _UNREADABLE as error:
        raise DataError(
            f"{where}: is not a calibration table of ONNX Runtime, or damaged ({error}); restore it, or calibrate again"
        ) from error
    scales: dict[str, float] = {}
    for name, text in pairs:
        _add(scales, name, _positive(text, f"{where}, tensor '{name}'"), where)
    return scales


def flatbuffers_from_scales(scales: Mapping[str, float]) -> bytes:
    """``calibration.flatbuffers`` as ONNX Runtime's TensorRT execution provider reads it; sorted by name."""
    builder = flatbuffers.Builder(1024)
    entries = []
    for name in sorted(scales):
        key, value = builder.CreateString(name), builder.CreateString(repr(LARGEST_CODE * scales[name]))
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUOffsetTRelativeSlot(1, value, 0)
        entries.append(builder.EndObject())
    builder.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        builder.PrependUOffsetTRelative(entry)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def scales_from_json(data: bytes, where: str) -> dict[str, float]:
    """Tensor name -> scale, from ``calibration.json``; 0 for a tensor that is all zero.

    Raises:
        DataError: the file is damaged, or a tensor has not one lowest and one highest finite value.
    """
    try:
        record = json.loads(data, object_pairs_hook=lambda pairs: _once(pairs, where))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: is truncated or not JSON ({error}); restore it, or calibrate again") from error
    if isinstance(record, dict) and record.get("CLS") == "TensorsData":
        record = record.get("data")
    if not isinstance(record, dict) or not all(isinstance(item, dict) for item in record.values()):
        raise DataError(f"{where}: is not a table of ONNX Runtime (tensors by name); give its calibration.json")
    scales: dict[str, float] = {}
    for name, item in record.items():
        both = [_single(item.get(key), f"{where}, tensor '{name}': {key}") for key in ("lowest", "highest")]
        scales[name] = _scale(max(map(abs, both)))
    return scales


def json_from_scales(scales: Mapping[str, float], method: str) -> bytes:
    """``calibration.json`` as ONNX Runtime's ``load_tensors_data`` reads it, from -amax to amax; sorted by name."""
    data = {}
    for name in sorted(scales):
        amax = LARGEST_CODE * scales[name]
        bounds = {key: {"data": value, "dtype": "float32", "CLS": "numpy.array"}
                  for key, value in (("lowest", -amax), ("highest", amax))}  # fmt: skip
        data[name] = {**bounds, "CLS": "TensorData"}
    how = {"CLS": "CalibrationMethod", "value": f"CalibrationMethod.{_METHODS.get(method, 'MinMax')}"}
    record = {"CLS": "TensorsData", "data": data, "calibration_method": how, "smooth_quant": False}
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def scales_from_text(data: bytes, where: str) -> dict[str, float]:
    """Tensor name -> scale, from ONNX Runtime's ``calibration.cache``: lines of name, space and amax.

    Raises:
        DataError: a line is damaged, or is of TensorRT's cache; a tensor stands there twice.
    """
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is neither a calibration cache nor a table; give one of the two") from error
    scales: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        name, _, text = line.rpartition(" ")
        if not name or name.endswith(":"):
            raise DataError(
                f"{where}, line {number}: is '{line[:60]}', a name and an amax are expected, or in line 1 the header "
                "of TensorRT's cache, TRT-…; restore the file"
            )
        _add(scales, name, _positive(text, f"{where}, line {number}, tensor '{name}'"), where)
    if not scales:
        raise DataError(f"{where}: is empty, a calibration table is expected; restore it, or calibrate again")
    return scales


def _pairs(data: bytes) -> list[tuple[str, str]]:
    root = Table(data, struct.unpack_from("<I", data)[0])
    where = root.Offset(_DICT)
    if not where:
        raise ValueError("it has no table of tensors")
    start, length = root.Vector(where), root.VectorLen(where)
    if start + 4 * length > len(data):
        raise ValueError(f"{length} tensors do not fit its {len(data)} bytes")
    pairs, num_bytes = [], 0
    for index in range(length):
        entry = Table(data, root.Indirect(start + 4 * index))
        pairs.append((_text(entry, _KEY), _text(entry, _VALUE)))
        num_bytes += sum(map(len, pairs[-1]))
        if num_bytes > len(data):
            raise ValueError("its texts overlap, and would be more than the file")
    return pairs


def _text(entry: Any, place: int) -> str:
    offset = entry.Offset(place)
    if not offset:
        raise ValueError("a tensor without name or amax")
    start = offset + entry.Pos
    start += struct.unpack_from("<I", entry.Bytes, start)[0]
    length = struct.unpack_from("<I", entry.Bytes, start)[0]
    if start + 4 + length > len(entry.Bytes):
        raise ValueError("a text beyond its end")
    return bytes(entry.Bytes[start + 4 : start + 4 + length]).decode("utf-8")


def _once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise DataError(f"{where}: has '{twice}' twice; remove one of the two")
    return table


def _add(scales: dict[str, float], name: str, amax: float, where: str) -> None:
    if name in scales:
        raise DataError(f"{where}: has tensor '{name}' twice; remove one of the two")
    scales[name] = _scale(amax)


def _positive(text: str, where: str) -> float:
    try:
        amax = float(text)
    except ValueError as error:
        raise DataError(f"{where}: amax is '{text[:60]}', a number is expected; restore the file") from error
    if not 0.0 < amax <= LARGEST_AMAX:
        raise DataError(
            f"{where}: amax is {amax}, a positive float32 is expected; ONNX Runtime writes 0 or less for a tensor that "
            "is never positive: give its calibration.json, which has both bounds"
        )
    return amax


def _single(item: object, where: str) -> float:
    value = item.get("data") if isinstance(item, dict) else item
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_AMAX:
        shown = f"{value!r}"[:60]
        raise DataError(f"{where} is {shown}, one finite number for the whole tensor is expected; calibrate per tensor")
    return float(value)


def _scale(amax: float) -> float:
    """The float32 nearest to amax / 127."""
    return float(np.float32(amax / LARGEST_CODE))
