"""What an ONNX model's nodes are to whoever is asked about them: names, what they read, what is a constant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from onnx import shape_inference

from engines.onnx_model import ONNX_DOMAINS, opset_of, read_model
from engines.support.answers import InputShapes, NodeAnswer, NodeState, SupportAnswer
from engines.support.partition import GraphStep, partition
from engines.support.work import dims_of, flops_of, with_shapes

RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
OF_SHAPES = ("Shape", "Size")
"""They depend on the shape of their input alone."""


@dataclass(frozen=True)
class Asked:
    """A model as it is asked about."""

    path: Path
    model: onnx.ModelProto
    """With the values of its weights as far as they lie in the file, and all types and shapes that can be inferred."""
    shapes: InputShapes

    @cached_property
    def nodes(self) -> list[onnx.NodeProto]:
        """In the file's order."""
        return list(self.model.graph.node)

    @property
    def opset(self) -> int:
        """Of ONNX's own operators; 0 if it names none."""
        return opset_of(self.model)

    @cached_property
    def types(self) -> dict[str, int]:
        """By tensor: its ``TensorProto.DataType``, where that is known."""
        types: dict[str, int] = {tensor.name: tensor.data_type for tensor in self.model.graph.initializer}
        for value in _values(self.model.graph):
            if value.type.tensor_type.elem_type:
                types[value.name] = value.type.tensor_type.elem_type
        return types

    @cached_property
    def ranks(self) -> dict[str, int]:
        """By tensor: how many dimensions it has, where that is known."""
        ranks = {tensor.name: len(tensor.dims) for tensor in self.model.graph.initializer}
        for value in _values(self.model.graph):
            if value.type.tensor_type.HasField("shape"):
                ranks[value.name] = len(value.type.tensor_type.shape.dim)
        return ranks

    @cached_property
    def infos(self) -> dict[str, onnx.ValueInfoProto]:
        """By tensor: its type and shape, as far as they are known; weights left out."""
        return {value.name: value for value in _values(self.model.graph) if value.type.WhichOneof("value")}

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto | None]:
        """Tensors that no input changes; None for one that is computed, whose values are not at hand."""
        graph = self.model.graph
        inputs = {value.name for value in graph.input}
        constants: dict[str, onnx.TensorProto | None] = {
            tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs
        }
        fixed = {value.name for value in _values(graph) if _is_fixed(value)}
        for node in graph.node:
            if is_folded(node, constants, fixed):
                tensor = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
                constants.update(dict.fromkeys(filter(None, node.output), tensor))
        return constants

    def answer(self, source: str, reasons: Mapping[int, str], notes: Iterable[str] = ()) -> SupportAnswer:
        """All nodes, with the reasons of those that are not taken, by number."""
        dims = dims_of(with_shapes(self.model, self.shapes).graph)
        constants = self.constants
        nodes = tuple(
            NodeAnswer(
                name_of(node),
                operator_of(node),
                _state(node, index in reasons, constants),
                _reason(node, reasons.get(index, ""), constants),
                flops=flops_of(node, dims),
            )
            for index, node in enumerate(self.nodes)
        )
        steps = [GraphStep(tuple(reads(node)), tuple(node.output)) for node in self.nodes]
        return SupportAnswer(source, nodes, partition(steps, nodes), notes=tuple(notes))


def asked_about(path: Path, shapes: InputShapes) -> Asked:
    """The ONNX model in ``path``.

    Raises:
        EngineError: see ``read_model``.
    """
    model = read_model(path)
    with suppress(shape_inference.InferenceError, RuntimeError, ValueError):  # Larger than 2 GiB, or wrong: then not.
        model = shape_inference.infer_shapes(model, data_prop=True)
    return Asked(path, model, shapes)


def is_folded(node: onnx.NodeProto, constants: Mapping[str, object], fixed: Iterable[str]) -> bool:
    """Whether what a node makes depends on no input: on constants alone, or on a shape that does not vary."""
    if node.op_type in RANDOM or any(attribute.HasField("g") for attribute in node.attribute):
        return False
    if node.op_type in OF_SHAPES and node.input and node.input[0] in fixed:
        return True
    return bool(node.output) and all(name in constants for name in node.input if name)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that it reads, those that bodies in it read from around them included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            inside = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            inside |= {name for inner in body.node for name in inner.output}
            for inner in body.node:
                yield from (name for name in reads(inner) if name not in inside)
            yield from (value.name for value in body.output if value.name not in inside)


def name_of(node: onnx.NodeProto) -> str:
    """Its own name, or that of the tensor that it makes."""
    return node.name or next(filter(None, node.output), node.op_type)


def operator_of(node: onnx.NodeProto) -> str:
    """With its domain, where that is not ONNX's."""
    return node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}"


def _state(node: onnx.NodeProto, is_refused: bool, constants: Mapping[str, object]) -> NodeState:
    if is_refused:
        return "unsupported"
    return "folded" if _is_constant(node, constants) else "runs"


def _reason(node: onnx.NodeProto, reason: str, constants: Mapping[str, object]) -> str:
    if reason and _is_constant(node, constants):
        return f"{reason}; what it reads does not vary: `trtforge export` computes it beforehand"
    return reason


def _is_constant(node: onnx.NodeProto, constants: Mapping[str, object]) -> bool:
    """Whether no input changes what it makes."""
    return bool(node.output) and all(name in constants for name in node.output if name)


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
