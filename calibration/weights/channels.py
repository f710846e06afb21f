"""Channels that a depthwise convolution reads are scaled so that its data fills the eight bits in each of them.

A tensor has one scale, so that a channel whose values are a hundredth of the largest channel's is left with one or two
of 256 levels. Where a depthwise convolution alone reads the tensor, each channel can be multiplied by a factor of its
own and the convolution's weights divided by it: they have a scale for each channel anyway, and lose nothing. The factor
goes up into what made the tensor: a convolution's weights and bias, which have a scale for each channel too, or
constants that are multiplied and added. So it costs nothing at all, unlike equalization of dense layers
(``calibration.weights.equalize``), whose weights become coarser where the data becomes finer; and by how much channels
differ is measured on samples. Factors are powers of two, so that every product and sum in FP32 is the same number as
before, scaled: the function stays to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from calibration.arrays import AnyArray, Floats
from calibration.graph.editing import (
    attribute_int,
    change_constant,
    closed,
    constant,
    only_reader,
    opened,
    unique,
    value_names,
)
from calibration.weights.equalize import PASSED

LARGEST_FACTOR = 256.0
"""What is rarer is lost in eight bits; and FP16 keeps the weights on both sides."""


@dataclass(frozen=True)
class _Constant:
    """An input of a node that is multiplied by the factors, or divided by them."""

    node: ir.Node
    index: int
    axis: int | None
    """Of the channels in it; None: it is read for all channels, and becomes one value for each."""
    is_divided: bool = False


@dataclass(frozen=True)
class ScalableTensor:
    """What a depthwise convolution reads, and which constants change so that its channels do."""

    tensor: str
    num_channels: int
    rank: int
    changed: tuple[_Constant, ...]


def scalable_tensors(graph: ir.Graph) -> list[ScalableTensor]:
    """Those that a depthwise convolution alone reads, and that are made by what can take a factor for each channel."""
    made = (_scalable(node) for node in graph if node.op_type == "Conv" and node.domain in ("", "ai.onnx"))
    return [each for each in made if each is not None]


def tensors_to_scale(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors whose channels can be scaled."""
    return [each.tensor for each in scalable_tensors(opened(model).graph)]


def largest_by_channel(answers: Iterable[Mapping[str, AnyArray]], names: Iterable[str]) -> dict[str, Floats]:
    """(C,): the largest magnitude of each channel (axis 1) of these tensors, over all samples."""
    largest: dict[str, Floats] = {}
    for tensors in answers:
        for name in names:
            values = np.abs(tensors[name])
            each = values.max(axis=(0, *range(2, values.ndim)), initial=0.0).astype(np.float64)
            largest[name] = np.maximum(largest[name], each) if name in largest else each
    return largest


def factors_of(largest: Floats) -> Floats:
    """(C,): the powers of two that bring each channel next below the largest of all; 1 where a channel is 0.

    Args:
        largest: (C,) magnitudes; without a finite one above 0 nothing is scaled.
    """
    live = np.isfinite(largest) & (largest > 0)
    factors = np.ones_like(largest)
    if np.isfinite(largest).all() and live.any():
        factors[live] = 2.0 ** np.floor(np.log2(np.minimum(largest.max() / largest[live], LARGEST_FACTOR)))
    return factors


def scale_channels(model: onnx.ModelProto, largest: Mapping[str, Floats]) -> tuple[onnx.ModelProto, int]:
    """Scale the channels of the tensors of ``scalable_tensors``.

    Args:
        model: FP32; it is not changed.
        largest: tensor -> (C,) magnitude of each channel; others stay.

    Returns the model, and the number of tensors that changed; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    taken, num_changed = value_names(graph), 0
    for each in scalable_tensors(graph):
        factors = factors_of(largest[each.tensor]) if each.tensor in largest else np.ones(each.num_channels)
        if factors.shape != (each.num_channels,) or (factors == 1).all():
            continue
        for changed in each.changed:
            _scale(graph, changed, factors, each.rank, taken)
        num_changed += 1
    return (closed(opened_model), num_changed) if num_changed else (model, 0)


def _scale(graph: ir.Graph, changed: _Constant, factors: Floats, rank: int, taken: set[str]) -> None:
    value = changed.node.inputs[changed.index]
    array = constant(value)
    assert array is not None
    assert value is not None
    if changed.axis is None:
        factors = factors.reshape(-1, *[1] * (rank - 2))  # (C, 1, 1) beside (N, C, H, W).
    else:
        num = array.shape[changed.axis] // len(factors)  # A depthwise convolution may make several of each channel.
        factors = np.repeat(factors, num).reshape([-1 if axis == changed.axis else 1 for axis in range(array.ndim)])
    result = array / factors if changed.is_divided else array * factors
    name = unique(f"{value.name}_scaled", taken)
    taken.add(name)
    change_constant(graph, changed.node, changed.index, result.astype(array.dtype), name)
    if (after := changed.node.inputs[changed.index]) is not None:
        after.shape = ir.Shape(result.shape)


def _scalable(node: ir.Node) -> ScalableTensor | None:
    """Of a depthwise convolution."""
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    value = node.inputs[0]
    groups = attribute_int(node, "group", 1)
    if weight is None or value is None or weight.dtype != np.float32 or weight.ndim < 3:
        return None
    if groups == 1 or weight.shape[1] != 1 or weight.shape[0] % groups or only_reader(value) is not node:
        return None
    above = _above(value, groups, weight.ndim)
    if not above:
        return None
    return ScalableTensor(value.name or "", groups, weight.ndim, (_Constant(node, 1, 0, is_divided=True), *above))


def _above(value: ir.Value, num_channels: int, rank: int) -> tuple[_Constant, ...]:
    """What changes so that a tensor does; nothing if that cannot be."""
    changed: list[_Constant] = []
    while (node := value.producer()) is not None and node.domain in ("", "ai.onnx") and only_reader(value) is not None:
        if node.op_type == "Conv":
            weights = [_Constant(node, 1, 0), *([_Constant(node, 2, 0)] if _has_bias(node) else [])]
            arrays = [constant(node.inputs[each.index]) for each in weights]
            is_whole = all(a is not None and a.dtype == np.float32 and a.shape[0] == num_channels for a in arrays)
            return (*changed, *weights) if is_whole else ()
        if node.op_type in PASSED:
            above = node.inputs[0]
        elif node.op_type in ("Add", "Mul", "Div"):
            index = 1 if node.op_type == "Div" or constant(node.inputs[1]) is not None else 0
            array, above = constant(node.inputs[index]), node.inputs[1 - index]
            if array is None or not _is_for_all(array, num_channels, rank) or not _has_rank(above, rank):
                return ()
            changed.append(_Constant(node, index, None, is_divided=node.op_type == "Div"))
            if node.op_type != "Add":
                return tuple(changed)
        else:
            return ()
        if above is None:
            return ()
        value = above
    return ()


def _has_bias(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None


def _is_for_all(array: AnyArray, num_channels: int, rank: int) -> bool:
    """Whether a constant beside (N, C, …) still gives its shape with a factor for each channel in it."""
    channels = array.shape[array.ndim - rank + 1] if array.ndim >= rank - 1 else 1
    return array.dtype == np.float32 and array.ndim <= rank and channels in (1, num_channels)


def _has_rank(value: ir.Value | None, rank: int) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == rank
