"""Strides of 1x1 convolutions, which leave out values computed before, moved up to where they are computed."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    attribute_ints,
    attribute_string,
    constant,
    dimensions,
    only_reader,
    rewritten,
    taken_names,
    unique,
)

BY_ELEMENT = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu")
"""What may lie between, if it reads nothing else but constants."""


def raise_strides(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Compute only what 1x1 convolutions with a stride read, as the first and the shortcut of a ResNet's stage do.

    Where all readers of a tensor are such convolutions of one stride, the stride goes up: through functions of single
    elements and sums of two tensors, to convolutions, whose stride it is multiplied into. A branch of a sum that
    others read too is thinned out by a MaxPool of kernel 1. The answers are the same bits.

    Returns the model, and how many strides were moved; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Conv", _raise_strides)


def _raise_strides(graph: ir.Graph) -> int:
    mover = _Mover(graph)
    nodes = [node for node in reversed(list(graph)) if node.op_type in ("Conv", *BY_ELEMENT, "Add")]
    return sum(mover.move(node.outputs[0]) for node in nodes)


class _Mover:
    """Moves strides up, one tensor that strided convolutions read at a time."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._taken = taken_names(graph)

    def move(self, value: ir.Value) -> bool:
        """Move the stride of all readers of a value up; False if they have none in common, or it leads nowhere."""
        readers = [use.node for use in value.uses()]
        strides = {_stride(use.node) if use.idx == 0 else None for use in value.uses()}
        if value.is_graph_output() or len(strides) != 1 or any(node.graph is not self._graph for node in readers):
            return False
        (stride,) = strides
        if stride is None or not self._leads_up(value):
            return False
        self._thin(value, stride)
        for reader in readers:
            reader.attributes["strides"] = ir.AttrInt64s("strides", [1] * len(stride))
        return True

    def _leads_up(self, value: ir.Value) -> bool:
        """Whether fewer values can be computed of a tensor that is thinned out: a way up ends in a convolution."""
        waiting = [value]
        while waiting:
            node = waiting.pop().producer()
            if node is None or node.domain not in ("", "ai.onnx") or node.graph is not self._graph:
                continue
            if node.op_type == "Conv" and attribute_string(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID"):
                return True
            waiting += [source for source in _ways_up(node) if source is not None and only_reader(source) is not None]
        return False

    def _thin(self, value: ir.Value, stride: tuple[int, ...]) -> None:
        """Let what produces a tensor compute each so many-th value alone."""
        waiting = [value]
        while waiting:
            thinned = waiting.pop()
            node = thinned.producer()
            assert node is not None
            thinned.shape = _thinned(thinned, stride)
            if node.op_type == "Conv":
                had = _strides(node, len(stride))
                node.attributes["strides"] = ir.AttrInt64s("strides", [a * b for a, b in zip(had, stride, strict=True)])
            ways = _ways_up(node)
            for index, source in enumerate(ways):
                assert source is not None
                if len(ways) == 1 or (only_reader(source) is not None and self._leads_up(source)):
                    waiting.append(source)
                else:
                    node.replace_input_with(index, self._picked(source, stride, node))

    def _picked(self, source: ir.Value, stride: tuple[int, ...], reader: ir.Node) -> ir.Value:
        """A MaxPool of kernel 1, which gives each so many-th value."""
        ones = ir.AttrInt64s("kernel_shape", [1] * len(stride))
        name = self._name(f"{source.name}_strided")
        attributes = [ones, ir.AttrInt64s("strides", list(stride))]
        pool = ir.Node("", "MaxPool", [source], attributes, name=self._name(f"{name}_pool"))
        pool.outputs[0].name, pool.outputs[0].type, pool.outputs[0].shape = name, source.type, _thinned(source, stride)
        self._graph.insert_before(reader, pool)
        return pool.outputs[0]

    def _name(self, name: str) -> str:
        name = unique(name, self._taken)
        self._taken.add(name)
        return name


def _ways_up(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """The inputs that a stride can be moved on to, as the node computes each value by itself; none of a convolution."""
    if node.op_type in BY_ELEMENT and all(each is None or constant(each) is not None for each in node.inputs[1:]):
        return tuple(node.inputs[:1])
    return tuple(node.inputs) if node.op_type == "Add" and _adds_alike(node) else ()


def _thinned(value: ir.Value, stride: tuple[int, ...]) -> ir.Shape | None:
    """The shape with each so many-th position alone."""
    if value.shape is None:
        return None
    sizes = [-(-size // step) if isinstance(size, int) else None for size, step in zip(value.shape[2:], stride)]
    return ir.Shape([*value.shape[:2], *sizes])


def _stride(node: ir.Node) -> tuple[int, ...] | None:
    """Of a 1x1 convolution without padding, where it is more than 1."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return None
    shape = dimensions(node.inputs[1])
    if shape is None or len(shape) < 3 or any(size != 1 for size in shape[2:]):
        return None
    is_bare = attribute_string(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    if not is_bare or any(attribute_ints(node, "pads")):
        return None
    stride = _strides(node, len(shape) - 2)
    return stride if max(stride) > 1 else None


def _strides(node: ir.Node, rank: int) -> tuple[int, ...]:
    return attribute_ints(node, "strides", (1,) * rank)


def _adds_alike(node: ir.Node) -> bool:
    """Whether an Add repeats nothing: both inputs are data of one shape."""
    first, second = node.inputs
    shapes = dimensions(first), dimensions(second)
    if first is second or None in shapes or constant(first) is not None or constant(second) is not None:
        return False
    return shapes[0] == shapes[1] and all(size is not None for size in (shapes[0] or ())[1:])
