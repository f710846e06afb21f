"""An ONNX model that torch computes, and can train: node after node, as ONNX defines each operator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import helper, numpy_helper

from engines.contract import Array
from engines.errors import EngineError
from engines.onnx_model import ONNX_DOMAINS
from engines.torch_graph.elementwise import ELEMENTWISE, Operator
from engines.torch_graph.library import load_torch
from engines.torch_graph.products import PRODUCTS
from engines.torch_graph.shapes import SHAPES

OPERATORS: dict[str, Operator] = {**ELEMENTWISE, **SHAPES, **PRODUCTS}
"""What can be trained through, by operator type."""
UNTRAINED = frozenset({"NonMaxSuppression", "NonZero", "OneHot", "Hardmax", "IsInf", "EyeLike", "Unique"})
"""Give out places, or truth, through which nothing is learned: onnx's own evaluator computes them."""

WEIGHTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "PRelu": (1,),
           "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2)}  # fmt: skip
"""The inputs of an operator that are trained, where they are constants of float32."""
MULTIPLIES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class TensorHook(Protocol):
    """What stands between a tensor and those that read it, such as fake quantization."""

    def read_inputs(self, node: str, values: Sequence[Any]) -> list[Any]:
        """What the inputs of a node get in the place of ``values``, which are None where there is none."""
        ...

    def given_out(self, name: str, value: Any) -> Any:
        """What the model gives out in the place of ``value``."""
        ...


@dataclass(frozen=True)
class _Node:
    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    compute: Callable[[Sequence[Any]], Any]
    dies: tuple[str, ...]
    """The tensors that nobody reads after it."""


class TorchNetwork:
    """An FP32 ONNX model in torch.

    Attributes:
        parameters: the weights that are trained, by the name of their initializer: float32 tensors that need gradients.
        inputs: names of the inputs that are fed.
        outputs: names of the outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """``model``: opset 13 or later, each node with a name of its own; weights in files by absolute paths.

        Raises:
            Unavailable: torch is not installed.
            EngineError: an operator cannot be computed here.
        """
        self._torch = load_torch()
        graph = model.graph
        arrays = {tensor.name: _weight(tensor) for tensor in graph.initializer}
        trained = trained_weights(graph, arrays)
        self.parameters: dict[str, Any] = {}
        self._constants: dict[str, Any] = {}
        for name, array in arrays.items():
            tensor: Any = self._torch.tensor(np.array(array)) if array.dtype.kind in "biuf" else array
            if name in trained:
                self.parameters[name] = tensor.requires_grad_()
            else:
                self._constants[name] = tensor
        self.inputs = tuple(value.name for value in graph.input if value.name not in arrays)
        self.outputs = tuple(value.name for value in graph.output)
        self._opset = next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), 13)
        self._nodes = self._compiled(graph)

    def __call__(
        self, feed: Mapping[str, Any], wanted: Sequence[str] = (), rounding: TensorHook | None = None
    ) -> dict[str, Any]:
        """Compute tensors by name.

        Args:
            feed: torch tensors by the names of the inputs.
            wanted: any tensors of the graph; the outputs if there are none.
            rounding: what stands between tensors and their readers.

        Raises:
            EngineError: a node cannot be computed.
        """
        values = {**self._constants, **self.parameters, **feed}
        keep = set(wanted or self.outputs)
        answers: dict[str, Any] = {}
        for node in self._nodes:
            inputs = [values[name] if name else None for name in node.inputs]
            if rounding is not None:
                inputs = rounding.read_inputs(node.name, inputs)
            results = self._computed(node, inputs)
            for name, result in zip(node.outputs, results):
                values[name] = result
            for name in node.dies:
                if name not in keep:
                    values.pop(name, None)
        for name in keep:
            value = values[name]
            answers[name] = rounding.given_out(name, value) if rounding is not None and name in self.outputs else value
        return answers

    def _computed(self, node: _Node, inputs: Sequence[Any]) -> tuple[Any, ...]:
        try:
            result = node.compute(inputs)
            results = result if isinstance(result, tuple) else (result,)
            if any(node.outputs[len(results) :]):
                raise NotImplementedError("its further outputs")
        except (NotImplementedError, RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            sentence = " ".join(str(error).split())
            raise EngineError(
                f"node '{node.name}' ({node.operator}): cannot be computed in torch ({sentence}); leave [tune] and "
                "[prune] out, or export the network without it"
            ) from error
        return results

    def arrays(self) -> dict[str, Array]:
        """The trained weights as they are now, by name."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.parameters.items()}

    def _compiled(self, graph: onnx.GraphProto) -> list[_Node]:
        last: dict[str, int] = {}
        for place, node in enumerate(graph.node):
            last.update(dict.fromkeys((*node.input, *node.output), place))
        lasting = {*self._constants, *self.parameters, ""}
        dies: list[list[str]] = [[] for _ in graph.node]
        for name, place in last.items():
            if name not in lasting:
                dies[place].append(name)
        reached = trained_through(graph, self.parameters)
        return [self._node(node, tuple(dies[place]), node.name in reached) for place, node in enumerate(graph.node)]

    def _node(self, node: onnx.NodeProto, dies: tuple[str, ...], is_reached: bool) -> _Node:
        attributes = {item.name: _plain(helper.get_attribute_value(item)) for item in node.attribute}
        attributes["num_results"] = sum(bool(name) for name in node.output)
        operator = OPERATORS.get(node.op_type) if node.domain in ONNX_DOMAINS else None
        if node.op_type == "Constant" and node.domain in ONNX_DOMAINS:
            value = self._torch.tensor(np.array(_constant_array(node)))
            return self._ready(node, attributes, lambda _inputs: value, dies)
        if operator is not None:
            torch = self._torch
            return self._ready(node, attributes, lambda inputs: operator(torch, inputs, attributes), dies)
        if (is_reached and node.op_type not in UNTRAINED) or node.domain not in ONNX_DOMAINS:
            raise EngineError(
                f"node '{node.name}' ({node.op_type}): cannot be trained through; leave [tune] and [prune] out, or "
                "export the network without it"
            )
        return self._ready(node, attributes, self._evaluated(node), dies)

    @staticmethod
    def _ready(
        node: onnx.NodeProto,
        attributes: Mapping[str, Any],
        compute: Callable[[Sequence[Any]], Any],
        dies: tuple[str, ...],
    ) -> _Node:
        return _Node(node.name, node.op_type, tuple(node.input), tuple(node.output), attributes, compute, dies)

    def _evaluated(self, node: onnx.NodeProto) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """A node by onnx's own evaluator, without gradients."""
        from onnx.reference import ReferenceEvaluator

        names = [name for name in node.input if name]
        graph = helper.make_graph(
            [node],
            "node",
            [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names)],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)])
        try:
            evaluator = ReferenceEvaluator(model)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise EngineError(
                f"node '{node.name}' ({node.op_type}): cannot be computed in torch; leave [tune] and [prune] out, or "
                "export the network without it"
            ) from error

        def compute(inputs: Sequence[Any]) -> tuple[Any, ...]:
            arrays = [x.detach().cpu().numpy() for x in inputs if x is not None]
            results = iter(evaluator.run(None, dict(zip(names, arrays))))
            return tuple(self._torch.tensor(np.asarray(next(results))) if name else None for name in node.output)

        return compute


def trained_weights(graph: onnx.GraphProto, arrays: Mapping[str, Array]) -> frozenset[str]:
    """Names of the constants that are trained: weights and biases of products, also where an Add is the bias."""
    producers = {name: node for node in graph.node for name in node.output}
    names: set[str] = set()
    for node in graph.node:
        if node.domain not in ONNX_DOMAINS:
            continue
        names.update(node.input[index] for index in WEIGHTS.get(node.op_type, ()) if index < len(node.input))
        if node.op_type == "Add":
            makers = [producers.get(name) for name in node.input]
            for other, name in zip(reversed(makers), node.input):
                if other is not None and other.op_type in MULTIPLIES:
                    names.add(name)
    return frozenset(
        name for name in names if name in arrays and arrays[name].dtype == np.float32 and arrays[name].ndim
    )


def trained_through(graph: onnx.GraphProto, parameters: Collection[str]) -> set[str]:
    """Names of the nodes whose answers depend on a trained weight."""
    reached, nodes = set(parameters), set()
    for node in graph.node:
        if any(name in reached for name in node.input):
            nodes.add(node.name)
            if node.op_type not in UNTRAINED:
                reached.update(name for name in node.output if name)
    return nodes


def _weight(tensor: onnx.TensorProto) -> Array:
    """The values, also of one that lies in a file, which it has the absolute path of."""
    places = [entry for entry in tensor.external_data if entry.key == "location"]
    if not places:
        return np.asarray(numpy_helper.to_array(tensor))
    path, near = Path(places[0].value), onnx.TensorProto()
    near.CopyFrom(tensor)
    for entry in near.external_data:
        entry.value = path.name if entry.key == "location" else entry.value
    return np.asarray(numpy_helper.to_array(near, str(path.parent)))


def _plain(value: Any) -> Any:
    """An attribute's value, text as such."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _constant_array(node: onnx.NodeProto) -> Array:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, np.int64 if attribute.name.startswith("value_int") else np.float32)
