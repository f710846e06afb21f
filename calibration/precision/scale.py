"""From a range to scale and zero point, and which 8-bit arithmetic a CPU does without harm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calibration.ranges.span import Span

Arithmetic = Literal["u8s8", "u8s7", "u8u8", "s8s8"]
"""Activations, then weights: ``u8`` unsigned with a zero point, ``s8`` signed, ``s7`` signed, with two neighbours of
one sign that add up to 128 at most, which is seven bits at worst."""

DataType = Literal["int8", "uint8", "int16"]
"""``int16``: of data where LiteRT has it, in no Q/DQ model."""

ROWS = 256
"""Channels of a weight that are looked at together."""
NUM_LEVELS = 127
"""Largest magnitude of a symmetric int8 value; -128 is not used."""
LARGEST_PAIR = 128
"""Of the sum of two neighbouring weights of one sign: 255 * 128 = 32,640 fits 16 bits, up to 32,767."""
LARGEST_BIAS = 2**30
"""Largest magnitude of a bias in int32: half of what fits, the other half is for the sum it is added to."""
LEVELS_OF_4_BITS = 7
"""Largest magnitude of a symmetric int4 value; -8 is not used."""
LEAST_CLIP, NUM_CLIPS = 0.8, 11
"""Scales of 4 bits are tried with which so much of the largest weight is kept, up to all of it. On three networks of
convolutions what answers lost (by divergence) was 0.68, 1.06 and 0.62 of that without; from a half on it was more."""
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


def limits(span: Span) -> tuple[float, float]:
    """The values seen, clipped to ±amax and always with 0 among them."""
    return min(0.0, max(span.min, -span.amax)), max(0.0, min(span.max, span.amax))


def asymmetric(span: Span, dtype: DataType) -> Quantization | None:
    """256 levels over the values seen, clipped to ±amax and always with 0 among them. None if all values are zero.

    Zero is one of the levels exactly, so that zero padding costs nothing. The scale is rounded so that the largest
    level does not exceed the largest value: ONNX Runtime drops a Clip only if no level lies beyond its bounds.
    """
    low, high = limits(span)
    if low == high:
        return None
    scale = _float32((high - low) / 255)
    if low == 0.0 and np.float32(scale) * np.float32(255) > np.float32(high):
        scale = float(np.nextafter(np.float32(scale), np.float32(0)))
    smallest = 0 if dtype == "uint8" else -128
    zero_point = smallest + round(-low / scale)
    return Quantization(scale, min(max(zero_point, smallest), smallest + 255), dtype)


def weight_scales(
    weight: npt.NDArray[Any], axis: int | None, in_pairs: bool = False, flipped: bool = False
) -> npt.NDArray[np.float32]:
    """Symmetric scales max|w| / 127: (C,) along ``axis``, or () for one scale. A channel of zeros gets scale 1.

    With ``in_pairs`` they are as large as ``LARGEST_PAIR`` asks for. To a pair rounding adds at most 1, and at most 2
    where weights may be rounded the other way, ``flipped``.
    """
    others = None if axis is None else tuple(a for a in range(weight.ndim) if a != axis)
    low, high = weight.min(axis=others, initial=0.0), weight.max(axis=others, initial=0.0)
    amax = np.maximum(-low, high).astype(np.float64)
    largest = _largest_pairs(weight, axis) if in_pairs else 0.0
    steps = np.maximum(amax / NUM_LEVELS, largest / (LARGEST_PAIR - (2 if flipped else 1)))
    scales = np.where(amax > 0.0, np.maximum(steps, SMALLEST_SCALE), 1.0)
    return np.asarray(scales, np.float32)


def scales_of_4_bits(weight: npt.NDArray[Any], axis: int | None, block: int) -> npt.NDArray[np.float32]:
    """Symmetric scales max|w| / 7: (C,) along ``axis``, or () for one, or (blocks, C) for a matrix (K, C) in blocks.

    A group of zeros gets scale 1.
    """
    groups = weight_groups(weight, axis, block)
    amax = np.abs(groups).max(axis=-1, initial=0.0).astype(np.float64)
    scales = np.where(amax > 0.0, np.maximum(amax / LEVELS_OF_4_BITS, SMALLEST_SCALE), 1.0)
    return np.asarray(scales, np.float32)


def clipped_to_4_bits(weight: npt.NDArray[Any], axis: int | None, block: int) -> npt.NDArray[np.float32]:
    """The weight with its largest values cut where the squared error of rounding all of a group to 4 bits is least."""
    groups = weight_groups(weight, axis, block).astype(np.float64)
    amax = np.abs(groups).max(axis=-1, initial=0.0)
    best, least = amax.copy(), np.full(amax.shape, np.inf)
    for share in np.linspace(1.0, LEAST_CLIP, NUM_CLIPS):
        steps = np.maximum(amax * share / LEVELS_OF_4_BITS, SMALLEST_SCALE)[..., None]
        rounded = np.clip(np.rint(groups / steps), -LEVELS_OF_4_BITS, LEVELS_OF_4_BITS) * steps
        errors = np.square(groups - rounded).sum(axis=-1)
        best, least = np.where(errors < least, amax * share, best), np.minimum(errors, least)
    limit = spread_scales(best, weight.shape, axis, block)
    return np.asarray(np.clip(weight, -limit, limit), np.float32)


def weight_groups(weight: npt.NDArray[Any], axis: int | None, block: int) -> npt.NDArray[Any]:
    """Weights that share a scale along the last axis: (C, n), (n,) or (blocks, C, block), the last filled with 0."""
    if block:
        missing = -len(weight) % block
        padded = np.pad(weight, ((0, missing), (0, 0)))
        return np.moveaxis(padded.reshape(-1, block, weight.shape[1]), 1, -1)
    return weight.reshape(-1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def spread_scales(scales: npt.NDArray[Any], shape: Sequence[int], axis: int | None, block: int = 0) -> npt.NDArray[Any]:
    """One number for each group in a shape that multiplies the weight."""
    if block:
        return np.repeat(scales, block, axis=0)[: shape[0]]
    return scales.reshape([-1 if at == axis else 1 for at in range(len(shape))])


def _largest_pairs(weight: npt.NDArray[Any], axis: int | None) -> npt.NDArray[np.float64]:
    """(C,) or (): the largest sum of two neighbours of one sign.

    Neighbours are what ``vpmaddubsw`` adds: the first and second weight of a sum, the third and fourth, and so on. Sums
    of ONNX Runtime's convolutions are in the order of (position of the kernel, input channel). Both count where the
    number of input channels is odd: pairs across positions, and pairs that begin again at each.
    """
    if axis is None:
        return np.asarray(_pairs(weight.swapaxes(-1, -2) if weight.ndim > 1 else weight).max(initial=0.0))
    channels = np.moveaxis(np.moveaxis(weight, axis, 0), 1, -1)
    largest = np.zeros(len(channels))
    for begin in range(0, len(channels), ROWS):  # Five copies of a weight may be more than there is memory for.
        rows = channels[begin : begin + ROWS]
        for pairs in (_pairs(rows), _pairs(rows.reshape(len(rows), -1))):
            part = largest[begin : begin + ROWS]
            np.maximum(part, pairs.reshape(len(rows), -1).max(axis=1, initial=0.0), out=part)
    return largest


def _pairs(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(…, K) -> (…, K / 2 rounded up): sums of two, of the positive or of the negative ones, whichever is larger."""
    rows = rows.astype(np.float64)
    even = np.concatenate([rows, np.zeros((*rows.shape[:-1], rows.shape[-1] % 2))], axis=-1)
    pairs = even.reshape(*rows.shape[:-1], -1, 2)
    return np.asarray(np.maximum(np.maximum(pairs, 0).sum(axis=-1), np.maximum(-pairs, 0).sum(axis=-1)))


def quantized(
    values: npt.NDArray[Any],
    scales: npt.NDArray[np.float32],
    axis: int | None,
    block: int = 0,
    num_levels: int = NUM_LEVELS,
) -> npt.NDArray[np.int16]:
    """round(values / scale), ties to even, clipped to ±127, or to as many levels."""
    by_group = spread_scales(scales.astype(np.float64), values.shape, axis, block)
    divided = np.divide(values, by_group, dtype=np.float64)
    np.clip(np.rint(divided, out=divided), -num_levels, num_levels, out=divided)  # A weight may have a gigabyte.
    return np.asarray(divided, np.int16)


def arithmetic_for(cpu_flags: Collection[str], machine: str) -> tuple[Arithmetic, str]:
    """The 8-bit arithmetic for ONNX Runtime on a CPU, and a sentence that says why.

    x86 without VNNI adds pairs of u8 * s8 products in 16 bits (``vpmaddubsw``), which saturates: 2 * 255 * 127 is
    beyond 32,767. With two neighbouring weights that add up to 128 at most it cannot.

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
    return "u8s7", f"uint8 activations, and int8 weights of which two neighbours add up to 128 at most: {why}"


def _float32(value: float) -> float:
    return max(float(np.float32(value)), SMALLEST_SCALE)
