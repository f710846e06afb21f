"""A network as its graph and its weights, each with a digest: whether two ONNX files differ in weights alone.

Weights are what a refit can bring into an engine: floating point, and integers of 8 bits or less. All else that a
model holds, such as the axes of a Slice, the shape of a Reshape or a zero point, decides what is built, and is graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import external_data_helper, helper, numpy_helper

from engines.errors import EngineError
from engines.onnx_model import node_name, read_model

GRAPH = "graph"
"""Where an engine's record has the network that it was built from, if it can be refitted."""
NUM_DIGITS = 16
"""Of a node's digest, hexadecimal: enough to tell nodes of one network apart."""
WEIGHT_TYPES = frozenset(
    value
    for name, value in onnx.TensorProto.DataType.items()
    if name.startswith(("FLOAT", "BFLOAT", "DOUBLE")) or name in ("INT8", "UINT8", "INT4", "UINT4")
)
GRID_OPERATORS = ("QuantizeLinear", "DequantizeLinear")
ZERO_POINT = 2
"""The place of the zero point among the inputs of these."""
NAMES_IN_NUMPY = {"FLOAT": "float32", "DOUBLE": "float64"}
"""Of ONNX's types; the others have the same name there."""
NUM_NAMED = 3
"""So many weights are named in a sentence; of the rest there is the number."""


@dataclass(frozen=True)
class NetworkWeight:
    """One tensor of weights."""

    dtype: str
    """numpy's name for it."""
    shape: tuple[int, ...]
    sha256: str
    """Of its values, hexadecimal, in whatever way the file keeps them."""

    def text(self) -> str:
        """For a sentence: ``float32 (8, 3)``."""
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class NetworkGraph:
    """A network, taken apart."""

    nodes: tuple[tuple[str, str, str], ...]
    """Name, operator and digest of each node and of what stands before the nodes (opsets, inputs), in the file's order;
    what is in a body of a loop or a branch counts for its node."""
    weights: Mapping[str, NetworkWeight]
    """By the name of the initializer, or of the output of a Constant."""
    readers: Mapping[str, tuple[tuple[str, str], ...]]
    """Name and operator of the nodes that read a weight; of those in bodies the outer ones."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the graph without its weights' values; their names, types and shapes count."""
        sha = hashlib.sha256()
        for part in (*self.nodes, *((name, each.text(), "") for name, each in sorted(self.weights.items()))):
            sha.update("\0".join(part).encode() + b"\n")
        return sha.hexdigest()

    def record(self) -> dict[str, Any]:
        """As it stands in an engine's record; ``graph_from_record`` is the inverse."""
        weights = {name: [each.dtype, list(each.shape), each.sha256] for name, each in self.weights.items()}
        readers = {name: [list(pair) for pair in pairs] for name, pairs in self.readers.items()}
        return {"digest": self.digest, "nodes": list(map(list, self.nodes)), "weights": weights, "readers": readers}

    def changed_from(self, before: NetworkGraph) -> tuple[str, ...]:
        """Names of the weights whose values are others than in a network of the same graph."""
        old = before.weights
        return tuple(name for name, each in self.weights.items() if name in old and each.sha256 != old[name].sha256)


def graph_from_record(record: Mapping[str, Any]) -> NetworkGraph:
    """What an engine's record has of the network that it was built from.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    nodes = tuple((str(name), str(operator), str(digest)) for name, operator, digest in record["nodes"])
    weights = {
        str(name): NetworkWeight(str(dtype), tuple(map(int, shape)), str(sha256))
        for name, (dtype, shape, sha256) in record["weights"].items()
    }
    readers = {
        str(name): tuple((str(reader), str(operator)) for reader, operator in pairs)
        for name, pairs in record["readers"].items()
    }
    return NetworkGraph(nodes, weights, readers)


def network_graph(path: Path) -> NetworkGraph:
    """The network in an ONNX file; each of its weights is read once.

    Raises:
        EngineError: it is no ONNX file, or its weights cannot be read.
    """
    model = read_model(path)
    taken = _Taken(path)
    try:
        names = taken.scope(model.graph, {}, "")
        called = [(node_name(node), node) for node in model.graph.node]
        nodes = [(name, node.op_type, taken.digest_of(node, names, name)) for name, node in called]
    except (OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        words = " ".join(str(error).split())
        raise EngineError(f"{path}: its weights cannot be read ({words}); export it again") from error
    readers = {name: tuple(dict.fromkeys(pairs)) for name, pairs in taken.readers.items()}
    outputs = _ends("output", model.graph.output)
    return NetworkGraph((*_heads(model), *nodes, *outputs), taken.weights, readers)


def _heads(model: onnx.ModelProto) -> Iterator[tuple[str, str, str]]:
    """What stands before the nodes."""
    for entry in model.opset_import:
        yield "", f"opset {entry.domain or 'ai.onnx'} {entry.version}", ""
    for function in model.functions:
        yield "", f"function '{function.name}'", _sha(function.SerializeToString(deterministic=True))[:NUM_DIGITS]
    initialized = {tensor.name for tensor in model.graph.initializer}
    yield from _ends("input", [value for value in model.graph.input if value.name not in initialized])


def _ends(word: str, values: Iterable[onnx.ValueInfoProto]) -> Iterator[tuple[str, str, str]]:
    for value in values:
        yield value.name, word, _sha(_type_text(value).encode())[:NUM_DIGITS]


def first_difference(before: NetworkGraph, after: NetworkGraph) -> str:
    """The first node, or else weight, in which two networks differ, as the end of a sentence; empty if there is none.

    Values of weights do not count.
    """
    for old, new in zip(before.nodes, after.nodes):
        if old != new:
            if old[:2] == new[:2]:
                return f"{_node_text(new)} differs in its attributes, names or constants"
            return f"{_node_text(new)} stands where the engine has {_node_text(old)}"
    num_before, num_after = len(before.nodes), len(after.nodes)
    if num_after != num_before:
        longer, more = (after, "is not in the engine") if num_after > num_before else (before, "is missing")
        return f"{_node_text(longer.nodes[min(num_before, num_after)])} {more}"
    if missing := [name for name in before.weights if name not in after.weights]:
        return f"weights {names_text(missing)} are missing"
    if unknown := [name for name in after.weights if name not in before.weights]:
        return f"weights {names_text(unknown)} are not in the engine"
    for name, weight in after.weights.items():
        if weight.text() != before.weights[name].text():
            return f"weight '{name}' is {weight.text()}, the engine has {before.weights[name].text()}"
    return ""


def names_text(names: Sequence[str]) -> str:
    """Some names for a sentence, and how many there are more."""
    first = ", ".join(f"'{name}'" for name in names[:NUM_NAMED])
    return first if len(names) <= NUM_NAMED else f"{first} and {len(names) - NUM_NAMED} more"


class _Taken:
    """What a walk through a model has taken out of it."""

    def __init__(self, path: Path) -> None:
        self._folder = str(path.parent)
        self.weights: dict[str, NetworkWeight] = {}
        self.readers: dict[str, list[tuple[str, str]]] = {}

    def scope(self, graph: onnx.GraphProto, outer: Mapping[str, str], where: str) -> dict[str, str]:
        """What a name in a graph stands for: an initializer that is weights by its key, another by its digest."""
        zero_points = {
            node.input[ZERO_POINT]
            for node in graph.node
            if node.op_type in GRID_OPERATORS and len(node.input) > ZERO_POINT
        }
        names = dict(outer)
        for tensor in graph.initializer:
            is_weight = tensor.data_type in WEIGHT_TYPES and tensor.name not in zero_points
            names[tensor.name] = self._taken(tensor, tensor.name, where) if is_weight else self._digest(tensor)
        for node in graph.node:
            for tensor in filter(None, [_weight_of_constant(node, zero_points)]):
                names[node.output[0]] = self._taken(tensor, node.output[0], where)
        return names

    def digest_of(self, node: onnx.NodeProto, names: Mapping[str, str], reader: str) -> str:
        """Of a node without weights; whoever reads a weight is noted under the outermost node's name."""
        sha = hashlib.sha256()
        for part in (node.op_type, node.domain, node.name, *node.input, "", *node.output):
            sha.update(part.encode() + b"\0")
        for name in node.input:
            key = names.get(name, "")
            if key in self.weights:
                self.readers.setdefault(key, []).append((reader, node.op_type))
            else:
                sha.update(key.encode() + b"\0")
        is_weight = bool(node.output) and names.get(node.output[0], "") in self.weights
        for attribute in sorted(node.attribute, key=lambda each: each.name):
            sha.update(b"" if is_weight else self._attribute(attribute, names, reader))
        return sha.hexdigest()[:NUM_DIGITS]

    def _attribute(self, attribute: onnx.AttributeProto, names: Mapping[str, str], reader: str) -> bytes:
        kinds = onnx.AttributeProto
        head = f"{attribute.name} {attribute.type}".encode()
        if attribute.type == kinds.TENSOR:
            return head + self._digest(attribute.t).encode()
        if attribute.type in (kinds.GRAPH, kinds.GRAPHS):
            bodies = [attribute.g] if attribute.type == kinds.GRAPH else list(attribute.graphs)
            return head + "".join(self._body(body, names, reader) for body in bodies).encode()
        return head + bytes(attribute.SerializeToString(deterministic=True))

    def _body(self, graph: onnx.GraphProto, outer: Mapping[str, str], reader: str) -> str:
        names = self.scope(graph, outer, reader)
        ends = "".join(f"{value.name} {_type_text(value)} " for value in (*graph.input, *graph.output))
        return ends + "".join(self.digest_of(node, names, reader) for node in graph.node)

    def _taken(self, tensor: onnx.TensorProto, name: str, where: str) -> str:
        """The key of a weight; one in a body that is called as another outside has the node's name before it."""
        key = f"{where}/{name}" if name in self.weights else name
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        dtype = NAMES_IN_NUMPY.get(kind, kind.lower())
        self.weights[key] = NetworkWeight(dtype, tuple(tensor.dims), _sha(self._bytes(tensor)))
        return key

    def _digest(self, tensor: onnx.TensorProto) -> str:
        return _sha(f"{tensor.data_type} {list(tensor.dims)} ".encode() + self._bytes(tensor))

    def _bytes(self, tensor: onnx.TensorProto) -> bytes:
        if external_data_helper.uses_external_data(tensor):
            whole = onnx.TensorProto()
            whole.CopyFrom(tensor)
            external_data_helper.load_external_data_for_tensor(whole, self._folder)
            return bytes(whole.raw_data)
        if tensor.data_type == onnx.TensorProto.STRING:
            return bytes(b"\0".join(tensor.string_data))
        values: bytes = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        return values


def _weight_of_constant(node: onnx.NodeProto, zero_points: set[str]) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.output[0] in zero_points:
        return None
    tensors = list(_tensors(node))
    return tensors[0] if tensors and tensors[0].data_type in WEIGHT_TYPES else None


def _tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.name == "value":
            yield attribute.t
        elif attribute.name == "value_float":
            yield helper.make_tensor("", onnx.TensorProto.FLOAT, (), [attribute.f])
        elif attribute.name == "value_floats":
            yield helper.make_tensor("", onnx.TensorProto.FLOAT, (len(attribute.floats),), attribute.floats)


def _type_text(value: onnx.ValueInfoProto) -> str:
    """Type and dimensions, those that are known; what the others are called has no effect."""
    tensor = value.type.tensor_type
    sizes = [str(d.dim_value) if d.HasField("dim_value") else "?" for d in tensor.shape.dim]
    return f"{value.type.WhichOneof('value')} {tensor.elem_type} {','.join(sizes)}"


def _node_text(node: tuple[str, str, str]) -> str:
    name, operator, _ = node
    if not name:
        return operator
    return f"{operator} '{name}'" if operator in ("input", "output") else f"node '{name}' ({operator})"


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
