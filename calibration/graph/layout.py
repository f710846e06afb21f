"""Transposes that bring a convolution's channels last, moved on until they meet those that bring them first again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    add_initializer,
    attribute_int,
    attribute_ints,
    constant,
    dimensions,
    rewritten,
    taken_names,
    unique,
)

SPATIAL = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""Have their channels first; only Transposes behind one of them are moved."""
BY_ELEMENT = (
    "Abs", "Add", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu", "Log",
    "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
)  # fmt: skip
"""Compute each value by itself, of the values at the same place in each input; of Clip, that is the first."""
REDUCING = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum")


def join_transposes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Compute what stands between convolutions with the channels first, as they do.

    Where a converter leaves it with the channels last, as tf2onnx does around MobileNetV3's hard swish, two Transposes
    stand around each convolution; batch norms, paddings and means are not what other rewrites look for. A Transpose to
    channels last is moved behind functions of single elements, Pad, Concat and means, and vanishes where it meets one
    back. The answers are the same bits but for means, which are summed in another order.

    Returns the model, and how many Transposes fewer it has; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Transpose", _join)


def _join(graph: ir.Graph) -> int:
    before = _num_transposes(graph)
    mover = _TransposeMover(graph)
    for node in list(graph):
        mover.visit(node)
    mover.remove_unread()
    return max(before - _num_transposes(graph), 0)


def _num_transposes(graph: ir.Graph) -> int:
    return sum(node.op_type == "Transpose" for node in graph)


class _TransposeMover:
    """Moves Transposes down a graph, from its first node to its last."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._taken = taken_names(graph)
        self._moved: set[ir.Node] = set()
        """What computes with the channels first now."""

    def visit(self, node: ir.Node) -> None:
        """Let a node compute before the Transposes that it reads, or drop it if it takes one back."""
        if node.domain not in ("", "ai.onnx"):
            return
        if node.op_type == "Transpose":
            self._drop(node)
        elif (permutation := self._permutation(node)) is not None:
            self._move_behind(node, permutation)

    def remove_unread(self) -> None:
        """Remove the Transposes that nobody reads any more."""
        for node in [each for each in reversed(list(self._graph)) if each.op_type == "Transpose"]:
            if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                self._graph.remove(node, safe=True)

    def _drop(self, node: ir.Node) -> None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or first.op_type != "Transpose" or first.inputs[0] is None or first.graph is not self._graph:
            return
        inner, outer = attribute_ints(first, "perm"), attribute_ints(node, "perm")
        is_back = bool(inner) and [inner[axis] for axis in outer] == list(range(len(inner)))
        if is_back and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], first.inputs[0])

    def _permutation(self, node: ir.Node) -> list[int] | None:
        """That of all Transposes that the node reads its data from, if it can compute before them."""
        values = _data(node)
        if values is None or len(node.outputs) != 1 or node.outputs[0].dtype is None:
            return None
        permutations = {tuple(self._to_last(value)) for value in values if constant(value) is None}
        if len(permutations) != 1 or not (permutation := list(next(iter(permutations)))):
            return None
        arrays = [array for value in values if (array := constant(value)) is not None]
        return permutation if all(array.ndim <= len(permutation) for array in arrays) else None

    def _to_last(self, value: ir.Value) -> Sequence[int]:
        """The permutation, if the value is one with the channels brought last; else nothing."""
        node = value.producer()
        if node is None or node.op_type != "Transpose" or node.inputs[0] is None or node.graph is not self._graph:
            return ()
        source = node.inputs[0].producer()
        if source is None or (source.op_type not in SPATIAL and source not in self._moved):
            return ()
        permutation = attribute_ints(node, "perm")
        rank = len(permutation)
        return permutation if rank > 3 and permutation == (0, *range(2, rank), 1) else ()

    def _move_behind(self, node: ir.Node, permutation: list[int]) -> None:
        """Compute of what the Transposes read, and transpose the result."""
        inverse = [permutation.index(axis) for axis in range(len(permutation))]
        values = _data(node)
        assert values is not None
        for index, value in enumerate(values):
            array, producer = constant(value), value.producer()
            if array is not None and array.ndim:
                wide = array.reshape((1,) * (len(permutation) - array.ndim) + array.shape).transpose(inverse)
                name = self._name(f"{value.name}_channels_first")
                node.replace_input_with(index, add_initializer(self._graph, name, wide, ()))
            elif array is None:
                assert producer is not None
                node.replace_input_with(index, producer.inputs[0])
        self._permute_settings(node, permutation)
        output = node.outputs[0]
        attribute = ir.AttrInt64s("perm", permutation)
        behind = ir.Node("", "Transpose", [output], [attribute], name=self._name(f"{node.name}_Transpose"))
        after = behind.outputs[0]
        after.type, after.shape = output.type, output.shape
        self._graph.insert_after(node, behind)
        ir.convenience.replace_all_uses_with(output, after, replace_graph_outputs=True)
        behind.replace_input_with(0, output)
        after.name, output.name = output.name, self._name(f"{output.name}_channels_first")
        output.shape = None if after.shape is None else ir.Shape([after.shape[axis] for axis in inverse])
        self._moved.add(node)

    def _permute_settings(self, node: ir.Node, permutation: list[int]) -> None:
        """The axes that a node names, in the order that its data has now."""
        rank = len(permutation)
        inverse = [permutation.index(axis) for axis in range(rank)]
        if node.op_type == "Concat":
            axis = attribute_int(node, "axis", 0) % rank
            node.attributes["axis"] = ir.AttrInt64("axis", permutation[axis])
        elif node.op_type == "Pad":
            pads = constant(node.inputs[1])
            assert pads is not None
            changed = pads.reshape(2, rank)[:, inverse].reshape(-1)
            node.replace_input_with(1, self._constant(f"{node.name}_pads", changed))
        elif node.op_type in REDUCING:
            axes = np.array([permutation[axis % rank] for axis in _axes(node)], np.int64)
            if "axes" in node.attributes:
                node.attributes["axes"] = ir.AttrInt64s("axes", sorted(axes.tolist()))
            else:
                node.replace_input_with(1, self._constant(f"{node.name}_axes", np.sort(axes)))

    def _constant(self, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> ir.Value:
        return add_initializer(self._graph, self._name(name), array, ())

    def _name(self, name: str) -> str:
        name = unique(name, self._taken)
        self._taken.add(name)
        return name


def _data(node: ir.Node) -> list[ir.Value] | None:
    """The inputs whose axes a node keeps; None if it is no node that a Transpose can be moved behind."""
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type == "Concat" or (node.op_type in BY_ELEMENT and node.op_type != "Clip"):
        return inputs
    if not inputs or any(constant(value) is None for value in inputs[1:]):
        return None
    if node.op_type == "Clip":
        is_known = all(dimensions(value) in ((), (1,)) for value in inputs[1:])
    elif node.op_type == "Pad":
        is_known = len(inputs) > 1 and len(node.inputs) < 4
    else:
        is_known = node.op_type in REDUCING and bool(attribute_int(node, "keepdims", 1) and _axes(node))
    return inputs[:1] if is_known else None


def _axes(node: ir.Node) -> list[int]:
    """Of a reduction; none if it is one of all."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return [] if array is None else [int(axis) for axis in array]
