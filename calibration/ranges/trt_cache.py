"""TensorRT's calibration cache, of any generation up to 10: a header and each tensor's scale, exact to the bit.

    TRT-8502-EntropyCalibration2
    input_1:0: 3c010a14

After the header, a line per tensor: its name, colon and space, and the bits of its scale, amax / 127, as eight hex
digits of a big-endian IEEE 754 float32: NVIDIA's ``samples/sampleINT8/README.md`` in TensorRT 5.1 to 8.4. Names may
have colons, so that a line is split at its last ``": "``. The number in the header is the version of TensorRT that
wrote it, as in ``NvInferVersion.h``: 8.5.2 is 8502, 10.3.0 is 100300. TensorRT ignores a cache of another version.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from calibration.errors import DataError

CacheAlgorithm = Literal["EntropyCalibration2", "EntropyCalibration", "MinMaxCalibration", "LegacyCalibration"]

ALGORITHMS: tuple[CacheAlgorithm, ...] = (
    "EntropyCalibration2", "EntropyCalibration", "MinMaxCalibration", "LegacyCalibration",
)  # fmt: skip
MARK = "TRT-"
NEWEST_MAJOR = 10
"""TensorRT 11 has no calibrators, and so no caches."""

_HEADER = re.compile(rf"{MARK}(\d{{4}}|\d{{6}})-({'|'.join(ALGORITHMS)})")
_BITS = re.compile(r"[0-9a-fA-F]{8}")


@dataclass(frozen=True)
class Cache:
    """What a calibration cache says."""

    header: str
    """Its first line, such as ``TRT-8502-EntropyCalibration2``."""
    scales: Mapping[str, float]
    """Tensor name -> amax / 127, exactly a float32, in the order of the file."""


def cache_from_bytes(data: bytes, where: str) -> Cache:
    """Read a cache; ``where`` names it in errors.

    Raises:
        DataError: no header, a line that is damaged or cut off, a tensor twice, or a scale that is not a positive
            finite number; the message names the line.
    """
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{where}, line {line}: is not UTF-8 text; restore the file, or calibrate again") from error
    header = lines[0].rstrip("\r")
    if not _HEADER.fullmatch(header):
        raise DataError(
            f"{where}, line 1: is '{_shown(header)}', a header such as {header_for('8.5.2', 'EntropyCalibration2')} is "
            "expected; give a calibration cache of TensorRT"
        )
    scales: dict[str, float] = {}
    for number, text in enumerate(lines[1:], 2):
        if line_text := text.rstrip("\r"):
            name, scale = _parsed(line_text, f"{where}, line {number}")
            if name in scales:
                raise DataError(f"{where}, line {number}: has tensor '{name}' again; remove one of the two lines")
            scales[name] = scale
    return Cache(header, scales)


def bytes_from_cache(cache: Cache) -> bytes:
    """Write a cache, the tensors in the order of ``scales``.

    Raises:
        DataError: a name would not be read back, or a scale is not a positive finite float32.
    """
    lines = [cache.header]
    for name, scale in cache.scales.items():
        if not name or name != "".join(name.splitlines()):
            raise DataError(f"tensor {name!r}: has no name that fits a line of a calibration cache; rename it")
        if not 0.0 < scale < math.inf or struct.unpack(">f", struct.pack(">f", scale))[0] != scale:
            raise DataError(f"tensor '{name}': its scale is {scale}, a positive float32 is expected; calibrate again")
        lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    return ("\n".join(lines) + "\n").encode("utf-8")


def header_for(version: str, algorithm: CacheAlgorithm) -> str:
    """The header that this version of TensorRT, such as ``8.5.2`` or ``10.3.0.30``, takes for its own.

    Raises:
        DataError: the version is not three or more numbers, or has no calibration caches.
    """
    if not re.fullmatch(r"\d+(\.\d{1,2}){2}(\.\d+)*", version):
        raise DataError(
            f"TensorRT version '{version}': three numbers such as 8.5.2 are expected, as a cache is read by that very "
            "version alone; see `dpkg -l libnvinfer8` or tensorrt.__version__"
        )
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    if major > NEWEST_MAJOR:
        raise DataError(f"TensorRT version {version}: reads no calibration caches, 10 was the last; convert to Q/DQ")
    return f"{MARK}{major * (10000 if major >= 10 else 1000) + minor * 100 + patch}-{algorithm}"


def algorithm_of(header: str) -> CacheAlgorithm:
    """The calibrator that a cache's header names."""
    return next(name for name in ALGORITHMS if header.endswith(f"-{name}"))


def _parsed(line: str, where: str) -> tuple[str, float]:
    name, colon, bits = line.rpartition(": ")
    if not colon or not name or not _BITS.fullmatch(bits):
        raise DataError(
            f"{where}: is '{_shown(line)}', a tensor's name, a colon and eight hex digits are expected; "
            "the file is damaged or cut off: restore it"
        )
    scale: float = struct.unpack(">f", bytes.fromhex(bits))[0]
    if not 0.0 < scale < math.inf:
        raise DataError(
            f"{where}: the scale of tensor '{name}' is {scale}, a positive finite number is expected; "
            "remove the line, and the tensor stays FP32"
        )
    return name, scale


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
