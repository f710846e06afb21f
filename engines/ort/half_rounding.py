"""FP16 as a file has it, on a CPU: computed in FP32, with every tensor of 16 bits rounded to them.

ONNX Runtime has next to no kernels of FP16 for x86. It puts a Cast before and behind each node, and takes away those
that meet (its insert-cast transformer, which no option turns off), so that a chain of nodes is computed in FP32 without
any rounding between them: 130 dB from FP32 with the same weights, where rounding leaves 60, and what overflows stays
finite. Casts that are in the file stay, with all graph optimizations; so here the rounding is in the file.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx
from onnx import shape_inference

if TYPE_CHECKING:
    from collections.abc import Mapping

FULL, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
COMMUTE = ("Relu", "Clip")
"""Give the same whether they or the rounding come first: it is monotone, and their bounds are in FP16."""
GATES = ("Sigmoid", "HardSigmoid")
"""Times what they read they are swish and its kin, one operation to every engine."""


def with_rounding_written(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The network in FP32, with two Casts where a node gives FP16; inputs and outputs keep their names and types.

    The model is changed, so that its weights are not in memory twice, unless None is returned.

    A convolution or product and the activation behind it are rounded once, as every engine fuses them, and so is swish.
    Weights stay in FP16 in the model, with a Cast behind them that sessions fold. None where types cannot be told:
    branches, loops, functions, and operators that onnx does not know.
    """
    if model.functions or any(_is_nested(node) for node in model.graph.node):
        return None
    try:
        types = _types(shape_inference.infer_shapes(model).graph)
    except shape_inference.InferenceError:
        return None
    if any(name and name not in types for node in model.graph.node for name in node.output):
        return None
    nodes, unrounded = list(model.graph.node), _rounded_by_reader(model.graph)
    del model.graph.node[:], model.graph.value_info[:]
    writer = _Writer(model.graph, types)
    for name in dict.fromkeys(value.name for value in (*model.graph.input, *model.graph.initializer)):
        if types.get(name) == HALF:
            writer.cast(name, writer.full(name), FULL)
    for node in nodes:
        writer.write(node, unrounded)
    return model


class _Writer:
    """Appends to a graph; of a tensor in FP16, its values in FP32 have a name of their own."""

    def __init__(self, graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
        self._graph, self._types = graph, types
        self._names: dict[tuple[str, str], str] = {}

    def full(self, name: str) -> str:
        """What the tensor is called in FP32: itself, if it is in no 16 bits."""
        return self._other(name, "in_fp32") if self._types.get(name) == HALF else name

    def write(self, node: onnx.NodeProto, unrounded: frozenset[str]) -> None:
        """The node on values in FP32, and its outputs rounded but for these."""
        written = self._graph.node.add()
        written.CopyFrom(node)
        written.input[:] = [self.full(name) for name in node.input]
        for index, name in enumerate(node.output):
            if self._types.get(name) != HALF:
                continue
            if name in unrounded:
                written.output[index] = self.full(name)
                continue
            if not _gives_half(node):
                written.output[index] = self._other(name, "unrounded")
                self.cast(written.output[index], name, HALF)
            self.cast(name, self.full(name), FULL)

    def cast(self, source: str, target: str, to: int) -> None:
        """From one name to another, with one type or the other."""
        self._graph.node.append(onnx.helper.make_node("Cast", [source], [target], to=to))

    def _other(self, name: str, kind: str) -> str:
        if (name, kind) not in self._names:
            other = f"{name}_{kind}"
            while other in self._types:
                other += "_"
            self._names[name, kind] = other
        return self._names[name, kind]


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values if value.type.HasField("tensor_type")}
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    return {name: kind for name, kind in types.items() if kind}


def _rounded_by_reader(graph: onnx.GraphProto) -> frozenset[str]:
    """Tensors that one node alone reads, whose output is rounded instead."""
    num_readers = Counter(name for node in graph.node for name in node.input)
    num_readers.update(value.name for value in graph.output)
    read = [node.input[0] for node in graph.node if node.op_type in COMMUTE]
    gates = {node.output[0]: node.input[0] for node in graph.node if node.op_type in GATES}
    factors = [tuple(node.input) for node in graph.node if node.op_type == "Mul"]
    read += [gate for pair in factors for gate, other in (pair, pair[::-1]) if gates.get(gate, "") == other]
    made = {name for node in graph.node if not _gives_half(node) for name in node.output}
    return frozenset(name for name in read if num_readers[name] == 1 and name in made)


def _gives_half(node: onnx.NodeProto) -> bool:
    """Whether an attribute says that the output is FP16, whatever its inputs are."""
    return any(
        (attribute.name in ("to", "dtype") and attribute.i == HALF) or attribute.t.data_type == HALF
        for attribute in node.attribute
    )


def _is_nested(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
