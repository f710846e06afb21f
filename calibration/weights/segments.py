"""Parts of a model between two nodes, to be run one after the other with all that is alive in between held."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx

from calibration.graph.watched_outputs import read_by, typed_values


class Segments:
    """The main graph of a model whose nodes are in topological order, as onnx demands it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Find who makes and reads what."""
        graph = model.graph
        self._model, self._types = model, typed_values(model)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self._reads = [read_by(node) for node in graph.node]
        self._makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
        inputs = (value.name for value in graph.input)
        self.inputs = tuple(name for name in inputs if name not in self._constants)

    def index_of(self, node: str) -> int:
        """The place of a node of this name."""
        return next(index for index, each in enumerate(self._model.graph.node) if each.name == node)

    def alive(self, index: int) -> tuple[str, ...] | None:
        """What was made before a node, or is an input, and is read there or later; None where a type is not known."""
        read = {name for reads in self._reads[index:] for name in reads}
        names = tuple(name for name in (*self.inputs, *self._makers) if name in read and self._is_made(name, index))
        return names if all(name in self._types for name in names) else None

    def _is_made(self, name: str, index: int) -> bool:
        return self._makers.get(name, -1) < index

    def between(
        self, begin: Sequence[str], wanted: Sequence[str], changed: Collection[onnx.TensorProto]
    ) -> onnx.ModelProto:
        """The nodes that make ``wanted`` of what is held at ``begin``, where these initializers ``changed``."""
        nodes, needed, left = set[int](), set[str](), list(wanted)
        while left:
            name = left.pop()
            if name in needed:
                continue
            needed.add(name)
            if name not in begin and name in self._makers:
                nodes.add(self._makers[name])
                left += self._reads[self._makers[name]]
        part, graph = onnx.ModelProto(), self._model.graph
        part.ir_version, part.graph.name = self._model.ir_version, graph.name
        part.opset_import.extend(self._model.opset_import)
        part.functions.extend(self._model.functions)
        part.graph.node.extend(graph.node[index] for index in sorted(nodes))
        constants = self._constants | {tensor.name: tensor for tensor in changed}
        part.graph.initializer.extend(tensor for name, tensor in constants.items() if name in needed)
        part.graph.sparse_initializer.extend(tensor for name, tensor in self._sparse.items() if name in needed)
        part.graph.input.extend(self._types[name] for name in begin if name in needed)
        part.graph.output.extend(self._types[name] for name in wanted if name not in begin)
        return part
