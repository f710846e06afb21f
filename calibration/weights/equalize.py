"""Cross-layer equalization: the channels between two products are scaled so that the weights of both are alike.

A Relu lets a positive factor through: what the first product's channel is divided by, the second one's is multiplied
with, and the function stays. With s = sqrt(r1 / r2), where r1 and r2 are the largest |weight| of a channel in the first
and in the second product, both have the same range, sqrt(r1 r2), so that no channel of a tensor with one scale is lost
beside another (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

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
from calibration.precision.placement import is_plain

PASSED = ("Relu", "LeakyRelu")
"""What may stand between: f(s x) = s f(x) for s > 0."""
PASSES = 30
"""Over all pairs, at most: a product in the middle of a chain belongs to two."""
SETTLED = 0.01
"""No factor differs from 1 by more: the channels are alike."""
LARGEST_FACTOR = 1e4

Wide = npt.NDArray[np.float64]


@dataclass
class _Product:
    """A convolution or matrix product with constant weights, which change here."""

    node: ir.Node
    weight: Wide
    bias: Wide | None
    output_axis: int
    input_axis: int
    """Of a depthwise convolution the same as ``output_axis``: each channel has its own."""

    def largest(self, axis: int) -> Wide:
        """(C,): the largest |weight| of each channel."""
        return np.asarray(np.abs(np.moveaxis(self.weight, axis, 0)).reshape(self.weight.shape[axis], -1).max(axis=1))

    def scale(self, axis: int, factors: Wide) -> None:
        """Multiply each channel."""
        shape = [1] * self.weight.ndim
        shape[axis] = -1
        self.weight = self.weight * factors.reshape(shape)


def equalize_layers(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Equalize all pairs of products with nothing but a Relu or LeakyRelu between them, which nobody else reads.

    Returns the model, and the number of pairs whose weights changed.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    products: dict[str, _Product] = {}
    pairs = [pair for node in graph if (pair := _pair(node, products)) is not None]
    changed: set[int] = set()
    for _ in range(PASSES):
        moved = {place for place, (first, second) in enumerate(pairs) if _equalized(first, second)}
        changed |= moved
        if not moved:
            break
    if not changed:
        return model, 0
    taken = value_names(graph)
    for product in {id(each): each for place in changed for each in pairs[place]}.values():
        _write(graph, product, taken)
    return closed(opened_model), len(changed)


def _pair(node: ir.Node, products: dict[str, _Product]) -> tuple[_Product, _Product] | None:
    first = _product(node, products)
    reader = None if first is None else only_reader(node.outputs[0])
    if reader is not None and reader.op_type in PASSED and reader.domain in ("", "ai.onnx"):
        reader = only_reader(reader.outputs[0])
    second = None if reader is None else _product(reader, products)
    if first is None or second is None or second.node.inputs[0] is None:
        return None
    same_size = first.weight.shape[first.output_axis] == second.weight.shape[second.input_axis]
    is_data = any(second.node.inputs[0] is value for value in _outputs_towards(node))
    return (first, second) if same_size and is_data and first is not second else None


def _outputs_towards(node: ir.Node) -> list[ir.Value]:
    """The output of a node, and that of its only reader."""
    reader = only_reader(node.outputs[0])
    return [node.outputs[0], *(reader.outputs if reader is not None else ())]


def _product(node: ir.Node, products: dict[str, _Product]) -> _Product | None:
    """The product of a node, if all that it computes with is its own; the same object for the same node."""
    name = node.name or ""
    if name not in products and (product := _read(node)) is not None:
        products[name] = product
    return products.get(name)


def _read(node: ir.Node) -> _Product | None:
    if node.op_type not in ("Conv", "Gemm") or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    weight = constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if weight is None or weight.dtype != np.float32 or (has_bias and (bias is None or bias.ndim != 1)):
        return None
    axes = _axes(node, weight)
    if axes is None:
        return None
    wide = None if bias is None else bias.astype(np.float64)
    return _Product(node, weight.astype(np.float64), wide, *axes)


def _axes(node: ir.Node, weight: npt.NDArray[Any]) -> tuple[int, int] | None:
    """The axes of output and input channels; None of what has none that are channels of one tensor alone."""
    if node.op_type == "Gemm":
        if not is_plain(node):
            return None
        return (0, 1) if attribute_int(node, "transB", 0) else (1, 0)
    groups = attribute_int(node, "group", 1)
    if groups == 1:
        return 0, 1
    return (0, 0) if weight.shape[:2] == (groups, 1) else None


def _equalized(first: _Product, second: _Product) -> bool:
    """Scale the channels between two products; whether anything changed that matters."""
    ours, theirs = first.largest(first.output_axis), second.largest(second.input_axis)
    live = (ours > 0) & (theirs > 0)  # A channel of zeros has nothing to be made alike.
    factors = np.ones_like(ours)
    factors[live] = np.clip(np.sqrt(theirs[live] / ours[live]), 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    if np.abs(factors - 1).max(initial=0.0) <= SETTLED:
        return False
    first.scale(first.output_axis, factors)
    if first.bias is not None:
        first.bias = first.bias * factors
    second.scale(second.input_axis, 1 / factors)
    return True


def _write(graph: ir.Graph, product: _Product, taken: set[str]) -> None:
    for index, array in ((1, product.weight), (2, product.bias)):
        if array is not None:
            value = product.node.inputs[index]
            name = unique(f"{value.name if value is not None else ''}_equalized", taken)
            taken.add(name)
            change_constant(graph, product.node, index, array.astype(np.float32), name)
