"""Read an ONNX file without the values of its weights, which are most of it and seldom needed."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

HEAVY_BYTES = 1024
"""An initializer with more than that is no shape."""

GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
LONGEST_NAME = 255
"""Bytes in a file's name, on every usual file system."""
VALUES = frozenset(
    onnx.TensorProto.DESCRIPTOR.fields_by_name[name].number
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
)
"""Field numbers of what a tensor may hold its values in."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def skeleton_from_file(path: Path) -> onnx.ModelProto:
    """The model in a binary ONNX file; initializers beyond a kibibyte have name, type and shape, but no values.

    External weights are not read: their initializers say where they are. Only the parts that are returned are parsed
    (Protocol Buffers, "Encoding").

    Raises:
        DecodeError: it is not a whole file.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if not path.stat().st_size:
            return onnx.ModelProto()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = onnx.ModelProto()
            model.ParseFromString(_without_weights(data))
            return model


def _without_weights(data: mmap.mmap) -> bytes:
    """The encoded model without the values."""
    model = bytearray()
    for number, begin, value, end in _fields(data, 0, len(data)):
        if number != GRAPH:
            model += data[begin:end]
            continue
        graph = bytearray()
        for inner, inner_begin, inner_value, inner_end in _fields(data, value, end):
            if inner == INITIALIZER:
                fields = list(_fields(data, inner_value, inner_end))
                tensor = b"".join(data[b:e] for n, b, _, e in fields if n not in VALUES)
                _check(onnx.TensorProto.FromString(tensor), [e - v for n, _, v, e in fields if n == RAW_DATA])
            if inner == INITIALIZER and inner_end - inner_value > HEAVY_BYTES:
                graph += _tag(INITIALIZER) + _varint(len(tensor)) + tensor
            else:
                graph += data[inner_begin:inner_end]
        model += _tag(GRAPH) + _varint(len(graph)) + graph
    return bytes(model)


def _check(tensor: onnx.TensorProto, raw_sizes: list[int]) -> None:
    """That the values of a tensor have the size that its type and shape ask for; ``raw_sizes`` of each ``raw_data``.

    Raises:
        DecodeError: they have not, or it is not said where in another file they lie.
    """
    what = f"initializer '{tensor.name}'"
    for entry in tensor.external_data:
        if entry.key in ("offset", "length") and not (entry.value.isascii() and entry.value.isdecimal()):
            raise DecodeError(f"{what} has the {entry.key} '{entry.value}' in its file, a number of bytes is expected")
        if entry.key == "location" and any(len(part.encode()) > LONGEST_NAME for part in entry.value.split("/")):
            raise DecodeError(f"{what} lies in a file whose name has more than {LONGEST_NAME} bytes")
    bits = _BITS.get(tensor.data_type)
    if bits is None or not raw_sizes:
        return
    expected = -(-math.prod(tensor.dims) * bits // 8)
    if min(tensor.dims, default=0) < 0 or raw_sizes[-1] != expected:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        shape = "x".join(map(str, tensor.dims)) or "()"
        raise DecodeError(f"{what} has {raw_sizes[-1]} bytes, {expected} are expected of {kind} {shape}")


def _bits() -> dict[int, int]:
    """Of each element type of ONNX that has a fixed width: bits of a value in ``raw_data``."""
    sizes = {"4": ("INT4", "UINT4", "FLOAT4E2M1"), "2": ("INT2", "UINT2")}
    narrow = {name: int(bits) for bits, names in sizes.items() for name in names}
    bits = {}
    for name, number in onnx.TensorProto.DataType.items():
        if name not in ("UNDEFINED", "STRING"):
            bits[number] = narrow.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(number).itemsize
    return bits


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number of each field of a message, where it begins, where its value does, and where it ends."""
    at = begin
    while at < end:
        start = at
        key, at = _read_varint(data, at, end)
        kind, value = key & 7, at
        if not key >> 3:  # As in a file of zeros, of which each byte would be a field.
            raise DecodeError(f"Error parsing message: field number 0 at byte {start}")
        if kind == _VARINT:
            _, at = _read_varint(data, at, end)
        elif kind == _BYTES:
            size, value = _read_varint(data, at, end)
            at = value + size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise DecodeError(f"Error parsing message: wire type {kind} at byte {start}")
        if at > end:
            raise DecodeError(f"Error parsing message: it ends within the field at byte {start}")
        yield key >> 3, start, value, at


def _read_varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first; and where the next thing begins."""
    number = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise DecodeError(f"Error parsing message: no number ends at byte {at}")


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_BITS = _bits()
