"""How a weight is rounded to 8 or 4 bits, and how much of that error the bias of its product takes back.

Rounding a weight to the nearest is best for the weight, not for the product: the errors of a sum that are multiplied by
similar values add up. What is done against it is free at run time.

- In a convolution the weights of one kernel, for one channel in and one out, multiply neighbours of one picture, which
  differ little. Those nearest to the middle between two integers are rounded the other way until the errors of the
  kernel add up to half a step at most (Guo et al., "SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian
  Approximation", ICLR 2022, its flips by kernel; those by channel made networks worse beside what follows).
- Where samples tell how what the weights multiply varies, the whole sum is rounded by it: ``calibration.weights.gptq``,
  whose codes a placement brings (``ChosenCodes``).
- What is left shifts the mean of each channel of the product by the error times the mean of the data, channel by
  channel of the data. The bias takes it back (Nagel et al., "Data-Free Quantization Through Weight Equalization and
  Bias Correction", ICCV 2019, with means that were measured).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.arrays import AnyArray, Floats
from calibration.graph.editing import attribute_int, constant, dimensions
from calibration.precision.placement import QuantizedWeight, is_plain
from calibration.precision.scale import (
    LARGEST_BIAS,
    LEVELS_OF_4_BITS,
    NUM_LEVELS,
    clipped_to_4_bits,
    quantized,
    scales_of_4_bits,
    spread_scales,
    weight_groups,
    weight_scales,
)

CONTRIBUTED, IN_8_BITS = "com.microsoft", 4
"""The domain of ONNX Runtime's own operators, and its ``accuracy_level`` in which data is rounded to 8 bits."""
UNSIGNED_MIDDLE = 8
"""What stands for 0 in 4 bits without a sign."""
NEARLY_HALF = 0.49
"""Steps from a code within which it is surely the nearest."""


_Floats32: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RoundedWeight:
    """A weight in integers."""

    integers: npt.NDArray[np.int16]
    """Within -127 to 127, or of 4 bits -7 to 7, in the weight's shape."""
    scales: _Floats32
    """(C,) along the axis, or (); (blocks, C) of a matrix in blocks."""
    values: _Floats32
    """The integers times their scales, in the weight's shape."""
    mean_shift: Floats | None
    """(C,): by how much rounding raises the mean of each channel of the product; None where it cannot be told."""


def rounded_weight(node: ir.Node, weight: QuantizedWeight) -> RoundedWeight:
    """Round a constant weight of a product, in the FP32 model."""
    array = constant(node.inputs[weight.reader.index])
    assert array is not None
    kernels = _kernels(node, weight, array)
    is_of_4, exact, chosen = weight.bits == 4, array, weight.chosen
    if is_of_4:
        exact = clipped_to_4_bits(array, weight.axis, weight.block) if weight.is_cut else array
        scales = scales_of_4_bits(exact, weight.axis, weight.block)
    else:
        scales = weight_scales(array, weight.axis, weight.in_pairs, flipped=kernels)
    if weight.data_scale:
        scales = np.maximum(scales, _scales_for_bias(node, weight))
    by_channel = spread_scales(scales, array.shape, weight.axis, weight.block)
    if chosen is not None:  # With other scales, which is rare, the nearest to what was chosen.
        exact = chosen.codes * spread_scales(chosen.scales, array.shape, weight.axis, weight.block)
    integers = quantized(exact, scales, weight.axis, weight.block, LEVELS_OF_4_BITS if is_of_4 else NUM_LEVELS)
    if kernels and chosen is None:
        integers = _with_kernel_sums(exact.astype(np.float64) / by_channel.astype(np.float64), integers)
    values = np.asarray(integers * by_channel, np.float32)
    return RoundedWeight(
        integers, scales, values, _mean_shift(node, weight, np.subtract(values, array, dtype=np.float64))
    )


def channels_in_4_bits(weight: _Floats32, means: Sequence[float]) -> tuple[npt.NDArray[np.int8], _Floats32, _Floats32]:
    """A weight (C, D, positions), one scale for each of C channels, of data with these means, (D,) or none known.

    Returns:
        The codes, in its shape; (C,) scales; and (C,) by how much rounding raises the mean of each channel.
    """
    exact = clipped_to_4_bits(weight, 0, 0)
    scales = scales_of_4_bits(exact, 0, 0)
    steps = spread_scales(scales, weight.shape, 0)
    codes = quantized(exact, scales, 0, 0, LEVELS_OF_4_BITS)
    if weight.shape[-1] > 1:
        codes = _with_kernel_sums(exact.astype(np.float64) / steps.astype(np.float64), codes)
    errors = np.subtract(codes * steps, weight, dtype=np.float64).sum(axis=-1)
    known = np.asarray(means, np.float64) if len(means) == weight.shape[1] else np.zeros(weight.shape[1])
    return codes.astype(np.int8), scales, np.asarray(errors @ known, np.float32)


def packed_blocks(rounded: RoundedWeight, weight: QuantizedWeight) -> tuple[AnyArray, _Floats32]:
    """A matrix (K, C) of 4 bits as ONNX Runtime's MatMulNBits reads it.

    Returns:
        (C, blocks, block / 2) uint8, two codes in a byte, the first in its lower half, 8 for 0; (C * blocks,) scales.
    """
    groups = weight_groups(rounded.integers, weight.axis, weight.block) + UNSIGNED_MIDDLE  # (blocks, C, block)
    codes = np.moveaxis(groups, 1, 0).astype(np.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, np.ascontiguousarray(rounded.scales.T).reshape(-1)


def product_of_blocks(node: ir.Node, weight: QuantizedWeight, constants: Sequence[ir.Value]) -> ir.Node:
    """ONNX Runtime's own operator in the place of a MatMul with a matrix, without a name for its output.

    It rounds the data to 8 bits at each run, block by block.
    """
    shape = dimensions(node.inputs[1])
    assert shape is not None
    sizes = {"K": shape[0], "N": shape[1], "bits": weight.bits, "block_size": weight.block}
    attributes = [ir.AttrInt64(key, value or 0) for key, value in (sizes | {"accuracy_level": IN_8_BITS}).items()]
    return ir.Node(CONTRIBUTED, "MatMulNBits", [node.inputs[0], *constants], attributes, name=node.name)


def trainable(array: npt.NDArray[Any], rounded: RoundedWeight, weight: QuantizedWeight) -> _Floats32:
    """The weight of 4 bits as it was, as far as the nearest code of each is the one that rounding chose."""
    steps = spread_scales(rounded.scales, array.shape, weight.axis, weight.block)
    limit = LEVELS_OF_4_BITS * steps
    near = np.clip(array, rounded.values - NEARLY_HALF * steps, rounded.values + NEARLY_HALF * steps)
    return np.asarray(np.clip(near, -limit, limit), np.float32)


def _scales_for_bias(node: ir.Node, weight: QuantizedWeight) -> _Floats32:
    """The least scales of a weight, (C,) or (), with which the bias fits int32 in steps of data times weight."""
    array = constant(node.inputs[2])
    assert array is not None
    needed = np.abs(array.astype(np.float64)) / (weight.data_scale * LARGEST_BIAS)
    return np.asarray(needed if weight.axis is not None else needed.max(initial=0.0), np.float32)


def _kernels(node: ir.Node, weight: QuantizedWeight, array: npt.NDArray[Any]) -> bool:
    """Whether a convolution's kernels have more than one position."""
    return node.op_type == "Conv" and weight.keeps_sums and array[0, 0].size > 1


def _with_kernel_sums(exact: Floats, integers: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """(C, D, positions…): the integers, some of them rounded the other way, so that kernels keep their sums."""
    shape = integers.shape
    exact, integers = exact.reshape(*shape[:2], -1), integers.reshape(*shape[:2], -1)
    errors = integers - exact
    sums = errors.sum(axis=-1, keepdims=True)
    toward = np.sign(sums)
    order = np.argsort(-errors * toward, axis=-1, kind="stable")
    is_flipped = np.zeros(errors.shape, bool)
    np.put_along_axis(is_flipped, order, np.arange(errors.shape[-1]) < np.rint(np.abs(sums)), axis=-1)
    return np.asarray(integers - np.where(is_flipped, toward, 0), np.int16).reshape(shape)


def _mean_shift(node: ir.Node, weight: QuantizedWeight, error: Floats) -> Floats | None:
    """The weight's error times the means of what it is multiplied by, summed for each channel of the product."""
    means = np.asarray(weight.data_means, np.float64)
    if weight.reader.index != 1 or weight.axis is None or not means.size:
        return None
    if node.op_type == "Conv":
        num_groups = attribute_int(node, "group", 1)
        num_out, num_in = error.shape[:2]
        if means.size != num_in * num_groups or num_out % num_groups:
            return None
        of_group = np.repeat(means.reshape(num_groups, num_in), num_out // num_groups, axis=0)
        return np.asarray((error.reshape(num_out, num_in, -1).sum(axis=-1) * of_group).sum(axis=1))
    if node.op_type not in ("MatMul", "Gemm") or error.ndim != 2 or not is_plain(node):
        return None
    rows = error if weight.axis == 0 else error.T
    return np.asarray(rows @ means) if rows.shape[1] == means.size else None


@dataclass(frozen=True)
class Bias:
    """Where the bias of a product stands."""

    node: ir.Node
    """The product, or the Add behind a MatMul."""
    index: int
    """Of the node's input."""
    array: npt.NDArray[Any]
    """In the shape that it has there; zeros where there is none yet."""

    def shifted(self, shift: Floats) -> _Floats32:
        """The bias with a shift of each channel, (C,), taken back."""
        return np.asarray(self.array.astype(np.float64) - shift.reshape(self.array.shape), np.float32)


def bias_of(node: ir.Node, num_channels: int) -> Bias | None:
    """Where a product has its bias, or can have one; None where there is no place for it."""
    if node.op_type == "MatMul":
        return _bias_added(node, num_channels)
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = np.zeros(num_channels, np.float32) if value is None else constant(value)
    return Bias(node, 2, array) if array is not None and array.shape == (num_channels,) else None


def _bias_added(node: ir.Node, num_channels: int) -> Bias | None:
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add" or uses[0].node.graph != node.graph:
        return None
    index = 1 - uses[0].idx
    array = constant(uses[0].node.inputs[index])
    if array is None or array.size != num_channels or array.shape[-1:] != (num_channels,):
        return None
    return Bias(uses[0].node, index, array)


def mean_axes(nodes: Iterable[ir.Node], tensors: Collection[str]) -> dict[str, int]:
    """Which of these tensors a product with a constant weight reads as data -> the axis of it that its sums go over.

    Left out are those that products read along different axes.
    """
    axes: dict[str, set[int]] = {}
    for node in nodes:
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.domain in ("", "ai.onnx"):
            data, weight = node.inputs[0], node.inputs[1]
            if data is not None and data.name in tensors and constant(weight) is not None:
                axes.setdefault(data.name or "", set()).add(1 if node.op_type == "Conv" else -1)
    return {name: next(iter(each)) for name, each in axes.items() if len(each) == 1}
