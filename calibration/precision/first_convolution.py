"""The convolution of a picture's few channels, computed over several columns at once, for ONNX Runtime's kernels.

Its integer kernel gathers the values under the kernel, channels first: three of a picture at a time are slow. In the
order of ONNX Runtime's kernels, channels last, a row of W columns of C channels is as well a row of W / g columns of
g * C channels, for nothing. A convolution of that, with the same weights at other places and zeros between, computes
all outputs that begin in one such column together, as more channels; and they are seen as columns again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
import onnx_ir as ir

from calibration.arrays import AnyArray
from calibration.graph.editing import (
    add_initializer,
    attribute_int,
    attribute_ints,
    attribute_string,
    constant,
    dimensions,
    only_reader,
    taken_names,
    unique,
)

MULTIPLE = 4
"""Of the number of channels, from where on the kernel is quick."""
MOST_MULTIPLICATIONS = 3.0
"""Times those of the convolution as it is, most of them by zero; beyond, nothing is won."""
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Permutations that bring channels last, and first."""


@dataclass(frozen=True)
class ColumnView:
    """How a convolution is computed over groups of columns."""

    num_columns: int
    """In a group."""
    num_outputs: int
    """Columns of the output that begin in one group."""
    stride: int
    """In groups."""
    left: int
    """Groups of zeros before the first."""
    width: int
    """Of the kernel, in groups."""
    shift: int
    """Columns by which the old kernel begins before its group's."""
    old_stride: int

    def weight(self, weight: AnyArray) -> AnyArray:
        """(O, C, H, W) -> (num_outputs * O, num_columns * C, H, width): the same numbers, zeros between."""
        num_out, num_in, height, old_width = weight.shape
        wide = np.zeros((self.num_outputs, num_out, self.num_columns, num_in, height, self.width), weight.dtype)
        for output in range(self.num_outputs):
            for column in range(old_width):
                at = output * self.old_stride + column - self.shift + self.left * self.num_columns
                wide[output, :, at % self.num_columns, :, :, at // self.num_columns] = weight[:, :, :, column]
        return wide.reshape(self.num_outputs * num_out, self.num_columns * num_in, height, self.width)


def column_view(node: ir.Node) -> ColumnView | None:
    """How a convolution can be computed over groups of columns; None if it cannot, or there is nothing to win."""
    data, weight = dimensions(node.inputs[0]), dimensions(node.inputs[1])
    if node.op_type != "Conv" or data is None or weight is None or len(data) != 4 or len(weight) != 4:
        return None
    num_in, width, kernel = weight[1], data[3], weight[3]
    if not num_in or not width or not kernel or num_in >= MULTIPLE or data[1] != num_in:
        return None
    pads, strides, dilations = (attribute_ints(node, name, default) for name, default in _ATTRIBUTES)
    is_plain = attribute_string(node, "auto_pad", "NOTSET") == "NOTSET" and attribute_int(node, "group", 1) == 1
    stride, num_columns = strides[1], MULTIPLE // gcd(MULTIPLE, num_in)
    fits = num_columns % stride == 0 or stride % num_columns == 0
    if not is_plain or not fits or dilations != (1, 1) or width % max(stride, num_columns):
        return None
    if (width + pads[1] + pads[3] - kernel) // stride + 1 != width // stride:
        return None
    num_outputs = max(num_columns // stride, 1)
    first, last = -pads[1], (num_outputs - 1) * stride + kernel - 1 - pads[1]
    left, wide = -(first // num_columns), last // num_columns - first // num_columns + 1
    if num_columns * wide > MOST_MULTIPLICATIONS * kernel:
        return None
    return ColumnView(num_columns, num_outputs, max(stride // num_columns, 1), left, wide, pads[1], stride)


_ATTRIBUTES = (("pads", (0, 0, 0, 0)), ("strides", (1, 1)), ("dilations", (1, 1)))


def widen_convolutions(graph: ir.Graph) -> int:
    """Compute the quantized convolutions of few channels over groups of columns; returns how many.

    The same bits, where products are added in 32 bits: those that a CPU adds in pairs in 16 bits are other pairs then.
    """
    convolutions = [node for node in graph if node.op_type == "Conv" and node.domain in ("", "ai.onnx")]
    return sum(_widen(graph, node) for node in convolutions)


def _widen(graph: ir.Graph, node: ir.Node) -> bool:
    view, pair = column_view(node), _pair_before(node)
    constants = [_dequantized(value) for value in node.inputs[1:] if value is not None]
    if view is None or pair is None or not all(constants):
        return False
    end = _end(node)
    if view.num_outputs > 1 and end is None:
        return False
    writer = _Writer(graph)
    (quantize, dequantize), weight = pair, constants[0][0]
    pads, strides = attribute_ints(node, "pads", (0,) * 4), attribute_ints(node, "strides", (1, 1))
    right = max(view.width - view.stride - view.left, 0)
    arrays = [view.weight(weight), *(np.tile(each[0], view.num_outputs) for each in constants[1:])]
    for index, (values, each) in enumerate(zip(arrays, constants, strict=True), start=1):
        tiled = [np.tile(array, view.num_outputs) if array.ndim else array for array in each[1:]]
        writer.store(node, index, [values, *tiled])
    new = {"kernel_shape": [weight.shape[2], view.width], "strides": [strides[0], view.stride]}
    new["pads"] = [pads[0], view.left, pads[2], right]
    node.attributes.update({name: ir.AttrInt64s(name, ints) for name, ints in new.items()})
    writer.group(quantize, dequantize, view.num_columns * weight.shape[1])
    if end is not None and view.num_outputs > 1:
        writer.spread(node, end, len(weight))
    return True


def _pair_before(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Q and DQ of a convolution's data, if nobody else reads them."""
    dequantize = node.inputs[0].producer() if node.inputs[0] is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.inputs[0] is None:
        return None
    quantize = dequantize.inputs[0].producer()
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    alone = only_reader(quantize.outputs[0]) is dequantize and only_reader(dequantize.outputs[0]) is node
    return (quantize, dequantize) if alone and _is_for_all(quantize) and _is_for_all(dequantize) else None


def _is_for_all(node: ir.Node) -> bool:
    """Whether a Q or DQ has one scale for the whole tensor."""
    scale = constant(node.inputs[1])
    return scale is not None and scale.size == 1


def _dequantized(value: ir.Value) -> list[AnyArray]:
    """Integers, scale and zero point of a constant, by its first axis or for all of it; empty if it is none."""
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or only_reader(value) is None:
        return []
    arrays = [array for each in producer.inputs if (array := constant(each)) is not None]
    by_channel = any(array.ndim for array in arrays[1:])
    if len(arrays) != 3 or (by_channel and attribute_int(producer, "axis", 1) != 0):
        return []
    return arrays


def _end(node: ir.Node) -> ir.Node | None:
    """The Q behind a convolution, or behind a Relu or Clip of it; None if there is none, or somebody else reads it."""
    reader = only_reader(node.outputs[0])
    if reader is not None and reader.op_type in ("Relu", "Clip"):
        bounds = [each for each in reader.inputs[1:] if each is not None]
        known = all((array := constant(each)) is not None and array.size == 1 for each in bounds)
        reader = only_reader(reader.outputs[0]) if known else None
    if reader is None or reader.op_type != "QuantizeLinear" or not _is_for_all(reader):
        return None
    return None if reader.outputs[0].is_graph_output() else reader


class _Writer:
    """Writes what a widened convolution needs around it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._taken = taken_names(graph)

    def store(self, node: ir.Node, index: int, arrays: list[AnyArray]) -> None:
        """Let a node read a constant of these integers, scale and zero point."""
        old = node.inputs[index]
        assert old is not None
        name = f"{old.name}_wide"
        inputs = [self._constant(name, array) for array in arrays]
        dequantize = self._node("DequantizeLinear", inputs, name, [ir.AttrInt64("axis", 0)])
        dequantize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        dequantize.outputs[0].shape = ir.Shape(arrays[0].shape)
        self._graph.insert_before(node, dequantize)
        node.replace_input_with(index, dequantize.outputs[0])

    def group(self, quantize: ir.Node, dequantize: ir.Node, num_channels: int) -> None:
        """See (N, C, H, W) behind a Q as groups of columns. What brought channels to the front before it goes."""
        source, name = quantize.inputs[0], f"{dequantize.outputs[0].name}_wide"
        assert source is not None
        turn = source.producer()
        nodes: list[ir.Node] = []
        if turn is not None and _turns(turn) == TO_FIRST and only_reader(source) is quantize:
            quantize.replace_input_with(0, turn.inputs[0])
            self._graph.remove(turn, safe=True)
        else:
            nodes.append(self._turned(quantize.outputs[0], TO_LAST, name))
        quantize.outputs[0].shape = None
        before = nodes[-1].outputs[0] if nodes else quantize.outputs[0]
        nodes += self._viewed(before, [0, 0, -1, num_channels], name)
        self._graph.insert_after(quantize, nodes)
        dequantize.replace_input_with(0, nodes[-1].outputs[0])
        self._rename(dequantize.outputs[0])

    def spread(self, node: ir.Node, quantize: ir.Node, num_channels: int) -> None:
        """See the groups of columns behind a convolution's Q as (N, C, H, W) again; who read it has the old name."""
        value, name = quantize.inputs[0], quantize.inputs[0].name or "" if quantize.inputs[0] is not None else ""
        readers = [use.node for use in quantize.outputs[0].uses()]
        turned = self._turned(quantize.outputs[0], TO_LAST, name)
        nodes = [turned, *self._viewed(turned.outputs[0], [0, 0, -1, num_channels], name)]
        for changed in dict.fromkeys((node.outputs[0], value, quantize.outputs[0])):
            assert changed is not None
            self._rename(changed)
        self._graph.insert_after(quantize, nodes)
        for reader in readers:
            reader.replace_input_with(0, nodes[-1].outputs[0])
        if len(readers) == 1 and not readers[0].outputs[0].is_graph_output():
            readers[0].outputs[0].name = name

    def _rename(self, value: ir.Value) -> None:
        """The value has no longer the shape that its name stands for."""
        value.name, value.shape = self._name(f"{value.name}_wide"), None

    def _viewed(self, value: ir.Value, shape: list[int], name: str) -> list[ir.Node]:
        """(N, H, W, C) in another shape, then channels first."""
        target = self._constant(f"{name}_shape", np.array(shape, np.int64))
        reshape = self._node("Reshape", [value, target], name, [])
        reshape.outputs[0].type = value.type
        return [reshape, self._turned(reshape.outputs[0], TO_FIRST, name)]

    def _turned(self, value: ir.Value, permutation: tuple[int, ...], name: str) -> ir.Node:
        node = self._node("Transpose", [value], name, [ir.AttrInt64s("perm", permutation)])
        node.outputs[0].type = value.type
        return node

    def _node(self, operator: str, inputs: list[ir.Value], name: str, attributes: list[ir.Attr]) -> ir.Node:
        node = ir.Node("", operator, inputs, attributes, name=self._name(f"{name}_{operator}"))
        node.outputs[0].name = self._name(f"{name}_{operator.lower()}")
        return node

    def _constant(self, name: str, array: AnyArray) -> ir.Value:
        return add_initializer(self._graph, self._name(name), array, ())

    def _name(self, name: str) -> str:
        name = unique(name, self._taken)
        self._taken.add(name)
        return name


def _turns(node: ir.Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose."""
    is_transpose = node.op_type == "Transpose" and node.domain in ("", "ai.onnx")
    return attribute_ints(node, "perm") if is_transpose else None
