"""From a range to scale and zero point, and which 8-bit arithmetic a CPU does without harm."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calibration.ranges.span import Span

Arithmetic = Literal["u8s8", "u8s7", "u8u8", "s8s8"]
"""Activations, then weights: ``u8`` unsigned with a zero point, ``s8`` signed, ``s7`` signed in -64 … 64."""

DataType = Literal["int8", "uint8"]

NUM_LEVELS = 127
"""Largest magnitude of a symmetric int8 value; -128 is not used."""
LIMITS: dict[Arithmetic, int] = {"u8s8": 127, "u8s7": 64, "u8u8": 127, "s8s8": 127}
"""Largest magnitude of a quantized weight. Two products of u8 and s7 fit 16 bits: 2 * 255 * 64 = 32,640 < 32,767."""
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Smallest normal float32; TensorRT refuses a scale of 0, and 1 / scale must be finite."""

_X86 = frozenset({"x86_64", "amd64", "i686", "i386"})
_ARM = frozenset({"aarch64", "arm64", "armv7l", "armv8l"})
_X86_DOT = ("avx512_vnni", "avx_vnni")
_ARM_DOT = ("asimddp", "i8mm")


@dataclass(frozen=True)
class Quantization:
    """x ≈ (q - zero_point) * scale, for all values of a tensor."""

    scale: float
    """Exactly a float32."""
    zero_point: int
    dtype: DataType


def symmetric(span: Span) -> Quantization | None:
    """int8 with zero point 0: scale = amax / 127. None if all values are zero."""
    return Quantization(_float32(span.amax / NUM_LEVELS), 0, "int8") if span.amax > 0.0 else None


def asymmetric(span: Span, dtype: DataType) -> Quantization | None:
    """256 levels over the values seen, clipped to ±amax and always with 0 among them. None if all values are zero.

    Zero is one of the levels exactly, so that zero padding costs nothing. The scale is rounded so that the largest
    level does not exceed the largest value: ONNX Runtime drops a Clip only if no level lies beyond its bounds.
    """
    low = min(0.0, max(span.min, -span.amax))
    high = max(0.0, min(span.max, span.amax))
    if low == high:
        return None
    scale = _float32((high - low) / 255)
    if low == 0.0 and np.float32(scale) * np.float32(255) > np.float32(high):
        scale = float(np.nextafter(np.float32(scale), np.float32(0)))
    smallest = 0 if dtype == "uint8" else -128
    zero_point = smallest + round(-low / scale)
    return Quantization(scale, min(max(zero_point, smallest), smallest + 255), dtype)


def weight_scales(weight: npt.NDArray[Any], axis: int | None, limit: int) -> npt.NDArray[np.float32]:
    """Symmetric scales max|w| / limit: (C,) along ``axis``, or () for one scale. A channel of zeros gets scale 1."""
    others = None if axis is None else tuple(a for a in range(weight.ndim) if a != axis)
    amax = np.abs(weight.astype(np.float64)).max(axis=others, initial=0.0)
    scales = np.where(amax > 0.0, np.maximum(amax / limit, SMALLEST_SCALE), 1.0)
    return np.asarray(scales, np.float32)


def quantized(
    values: npt.NDArray[Any], scales: npt.NDArray[np.float32], axis: int | None, limit: int
) -> npt.NDArray[np.int64]:
    """round(values / scale), ties to even, clipped to ±limit."""
    shape = [1] * values.ndim
    if axis is not None:
        shape[axis] = -1
    divided = values.astype(np.float64) / scales.astype(np.float64).reshape(shape)
    return np.clip(np.rint(divided), -limit, limit).astype(np.int64)


def arithmetic_for(cpu_flags: Collection[str], machine: str) -> tuple[Arithmetic, str]:
    """The 8-bit arithmetic for ONNX Runtime on a CPU, and a sentence that says why.

    x86 without VNNI adds pairs of u8 * s8 products in 16 bits (``vpmaddubsw``), which saturates: 2 * 255 * 127 is
    beyond 32,767. With weights in -64 … 64 it cannot.

    Args:
        cpu_flags: as /proc/cpuinfo writes them; empty if they are not known.
        machine: as ``platform.machine()`` writes it.
    """
    if machine.lower() in _ARM:
        dot_flag = next((flag for flag in _ARM_DOT if flag in cpu_flags), "")
        with_what = (
            f"this Arm CPU has {dot_flag}" if dot_flag else "Arm adds pairs of s8 * s8 products without overflow"
        )
        return "s8s8", f"int8 activations and int8 weights: {with_what}, and signed is its fast path"
    dot_flag = next((flag for flag in _X86_DOT if flag in cpu_flags), "")
    if machine.lower() in _X86 and dot_flag:
        return "u8s8", f"uint8 activations and full int8 weights: this CPU has {dot_flag} and adds products in 32 bits"
    if machine.lower() in _X86 and cpu_flags:
        why = "this CPU has no VNNI and adds pairs of products in 16 bits, which full int8 would saturate"
    else:
        why = f"what this CPU ({machine or 'unknown'}) can do is not known, and these cannot saturate anywhere"
    return "u8s7", f"uint8 activations and weights in -64 … 64: {why}"


def _float32(value: float) -> float:
    return max(float(np.float32(value)), SMALLEST_SCALE)
