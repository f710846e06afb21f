"""Which weights of a product are set to zero: of each output channel those that matter least.

What a weight matters is |weight| times the root mean square of the input channel that it multiplies (Sun et al., "A
Simple and Effective Pruning Approach for Large Language Models", ICLR 2024), compared within one output channel. One
threshold for a whole network would empty whole layers, whose weights have another size after batch norms are folded.

The pattern 2:4 is that of NVIDIA's sparse tensor cores: two zeros in each four neighbours along the input channels, for
each output channel and each position of a kernel (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from calibration.arrays import AnyArray, Bools, Floats
from calibration.graph.editing import attribute_int, constant, opened
from calibration.precision.placement import PRODUCTS, is_float_weight, weight_axis

Pattern = Literal["any", "2:4"]
GROUP, ZEROS = 4, 2
"""Of the pattern 2:4."""


@dataclass(frozen=True)
class Prunable:
    """A weight that can be pruned."""

    node: str
    tensor: str
    output_axis: int
    input_axis: int
    data: str
    """The tensor that it multiplies."""
    data_axis: int
    """The axis of ``data`` that has the input channels."""


@dataclass(frozen=True)
class PrunableWeights:
    """The weights of a model that can be pruned, by tensor, and sentences on those that stay dense."""

    weights: Mapping[str, Prunable]
    notes: tuple[str, ...]


def prunable_weights(model: onnx.ModelProto, exclude: Collection[str], pattern: Pattern) -> PrunableWeights:
    """The constant weights of convolutions and matrix products, but for depthwise ones, which have few each.

    Args:
        model: FP32.
        exclude: names and operator types of nodes that stay dense.
        pattern: 2:4 needs a multiple of four input channels.
    """
    weights: dict[str, Prunable] = {}
    notes: list[str] = []
    for node in opened(model).graph:
        if node.op_type not in PRODUCTS or node.domain not in ("", "ai.onnx"):
            continue
        weight = _prunable(node)
        if weight is None or node.op_type in exclude or node.name in exclude:
            continue
        shape = constant(node.inputs[1]).shape  # type: ignore[union-attr]  # ``_prunable`` has seen it.
        num_inputs = shape[weight.input_axis]
        if pattern == "2:4" and num_inputs % GROUP:
            notes.append(
                f"node '{node.name}' has {num_inputs} input channels, 2:4 needs a multiple of {GROUP}: it stays dense"
            )
        else:
            weights.setdefault(weight.tensor, weight)
    return PrunableWeights(weights, tuple(notes))


def _prunable(node: ir.Node) -> Prunable | None:
    data, value = node.inputs[0], node.inputs[1]
    weight = constant(value) if is_float_weight(value) else None
    axis = weight_axis(node)
    if weight is None or data is None or value is None or axis is None or weight.ndim < 2:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        if attribute_int(node, "group", 1) > 1 and (node.op_type != "Conv" or weight.shape[1] == 1):
            return None  # Depthwise: a few weights for each channel.
        return Prunable(node.name or "", value.name or "", axis, 1 - axis, data.name or "", 1)
    if node.op_type == "Gemm" and attribute_int(node, "transA", 0):
        return None
    return Prunable(node.name or "", value.name or "", axis, 1 - axis, data.name or "", -1)


def mask_of(weight: AnyArray, how: Prunable, data_rms: Floats | None, share: float, pattern: Pattern) -> Bools:
    """False where a weight becomes zero, in the weight's shape.

    Args:
        weight: the weight.
        how: its axes.
        data_rms: (C_in,) root mean square of each input channel; None where it is not known, and all count the same.
        share: of each output channel's weights that becomes zero, rounded down; for ``2:4`` it is a half.
        pattern: ``any`` or ``2:4``.
    """
    rows = np.moveaxis(np.abs(weight.astype(np.float64)), (how.output_axis, how.input_axis), (0, 1))
    if data_rms is not None and len(data_rms) % rows.shape[1] == 0:
        by_group = np.asarray(data_rms).reshape(-1, 1, rows.shape[1], *[1] * (rows.ndim - 2))
        rows = (rows.reshape(len(by_group), -1, *rows.shape[1:]) * by_group).reshape(rows.shape)
    keeps = _two_of_four(rows) if pattern == "2:4" else _largest(rows, share)
    return np.asarray(np.moveaxis(keeps, (0, 1), (how.output_axis, how.input_axis)))


def _largest(rows: Floats, share: float) -> Bools:
    flat = rows.reshape(len(rows), -1)
    num_zeros = int(share * flat.shape[1])
    ranks = np.argsort(np.argsort(flat, axis=1, kind="stable"), axis=1)
    return np.asarray(ranks >= num_zeros).reshape(rows.shape)


def _two_of_four(rows: Floats) -> Bools:
    groups = np.moveaxis(rows, 1, -1)
    fours = groups.reshape(*groups.shape[:-1], -1, GROUP)
    ranks = np.argsort(np.argsort(fours, axis=-1, kind="stable"), axis=-1)
    return np.asarray(np.moveaxis((ranks >= ZEROS).reshape(groups.shape), -1, 1))
