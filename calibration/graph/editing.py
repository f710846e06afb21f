"""What every rewriting pass does first and last: read, name the nodes, open the graph for editing, check the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnx_ir as ir
from onnx import numpy_helper
from onnx_ir.passes import common as passes

from calibration.errors import ModelError
from calibration.graph.external_data import LARGEST_BYTES, check_model, is_heavy, with_weights_of, without_weights

FIRST_IR_WITHOUT = 4
"""The first version of ONNX's format whose initializers need not be inputs."""
RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
)
"""Operators that draw numbers."""


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a unique name on each node, also in subgraphs; names that are unique already stay.

    A nameless node is called after its operator and first output, ``Conv_y``, so that the name does not change when
    other nodes come or go; a number is appended where that is taken.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = list(nodes_of(result.graph))
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    for node in nodes:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        first = next((name for name in node.output if name), "")
        node.name = unique(node.name or f"{node.op_type}_{first}".replace(":", "_"), taken)
        taken.add(node.name)
        seen.add(node.name)
    return result


def nodes_of(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph or a function and, each right after the node that holds it, of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from nodes_of(subgraph)


def rewritten(model: onnx.ModelProto, operator: str, rewrite: Callable[[ir.Graph], int]) -> tuple[onnx.ModelProto, int]:
    """Open a model with such an operator in its main graph, rewrite that, and close it again.

    Returns the model, and how many changes ``rewrite`` made; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    if not any(node.op_type == operator for node in model.graph.node):
        return model, 0
    opened_model = opened(model)
    num_changes = rewrite(opened_model.graph)
    return (closed(opened_model), num_changes) if num_changes else (model, 0)


def unique(name: str, taken: Collection[str]) -> str:
    """``name``, or the first of ``name_1``, ``name_2``, … that is not taken."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def without_weight_inputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model without its initializers among its inputs, where IR 3 and some exporters list them; and their number.

    Nobody feeds weights: runtimes take them as constants, and so does TensorRT.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    left = [value for value in model.graph.input if value.name not in weights]
    num_weights = len(model.graph.input) - len(left)
    if num_weights:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        del changed.graph.input[:]
        changed.graph.input.extend(left)
        changed.ir_version = max(model.ir_version, FIRST_IR_WITHOUT)
        return changed, num_weights
    return model, 0


def opened(model: onnx.ModelProto) -> ir.Model:
    """The model as an editable graph: functions inlined, nodes named, constants lifted, types and shapes inferred.

    Initializers are constants, also where they are listed as inputs.

    Raises:
        ModelError: it has sparse constants, or nodes that train.
    """
    sparse = [tensor.values.name for tensor in model.graph.sparse_initializer]
    for name in (*sparse, *(node.output[0] for node in nodes_of(model.graph) if _sparse_value(node))):
        raise ModelError(
            f"{model.graph.name}: constant '{name}' is sparse, dense ones are expected; `trtforge export` makes them so"
        )
    light = shapes_inferred(named(without_weight_inputs(without_functions(without_weights(model)))[0]))
    check_inference(light, model.graph.name)
    graph = ir.from_proto(light)
    for tensor in model.graph.initializer:
        if is_heavy(tensor):
            graph.graph.initializers[tensor.name].const_value = ir.from_proto(tensor)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    return graph


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions written out where they are called."""
    if not model.functions:
        return model
    return with_weights_of(model, onnx.inliner.inline_local_functions(without_weights(model)))


def check_inference(model: onnx.ModelProto, where: str) -> None:
    """That no node trains: what it answers depends on the batch or on chance, and rewriting would change it.

    Raises:
        ModelError: one does; ``where`` says which model this is.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes_of(model.graph):
        if node.domain in ("", "ai.onnx") and _trains(node, constants):
            raise ModelError(
                f"{where}: node '{node.name or node.output[0]}' ({node.op_type}) is in training mode, so that its "
                "answers depend on the batch or on chance; export the network in evaluation mode"
            )


def _trains(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """By ``training_mode``; before opset 14 by the outputs, and before opset 7 by ``is_test``."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "BatchNormalization":
        return bool(flags.get("training_mode")) or flags.get("is_test") == 0 or any(node.output[3:])
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in constants:
        return bool(numpy_helper.to_array(constants[node.input[2]]).any())
    return node.op_type == "Dropout" and flags.get("is_test") == 0


def without_sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its sparse constants written out, see ``onnx.SparseTensorProto``; itself if it has none.

    Raises:
        ModelError: one of them is larger than a file may be.
    """
    graphs = (model.graph, *model.functions)
    if not model.graph.sparse_initializer and not any(_sparse_value(n) for graph in graphs for n in nodes_of(graph)):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for sparse in result.graph.sparse_initializer:
        result.graph.initializer.append(_dense(sparse, sparse.values.name))
    del result.graph.sparse_initializer[:]
    for node in (node for graph in (result.graph, *result.functions) for node in nodes_of(graph)):
        if (value := _sparse_value(node)) is not None:
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", _dense(value, node.output[0])))
    return result


def _sparse_value(node: onnx.NodeProto) -> onnx.SparseTensorProto | None:
    """That of a Constant, which has one attribute."""
    has_it = node.op_type == "Constant" and any(attribute.HasField("sparse_tensor") for attribute in node.attribute)
    return node.attribute[0].sparse_tensor if has_it else None


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    values, dims = numpy_helper.to_array(sparse.values), tuple(sparse.dims)
    if math.prod(dims) * values.itemsize > LARGEST_BYTES:
        raise ModelError(
            f"the sparse constant '{name}' has {math.prod(dims) * values.itemsize >> 20} MiB where it is written out, "
            f"at most {LARGEST_BYTES >> 20} MiB fit one ONNX file; export the model without it"
        )
    places = numpy_helper.to_array(sparse.indices)  # (num,) of the flat tensor, or (num, rank).
    dense = np.zeros(dims, values.dtype)
    if places.ndim == 1:
        dense.reshape(-1)[places] = values
    else:
        dense[tuple(places.T)] = values
    return numpy_helper.from_array(dense, name)


def shapes_inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with what onnx can infer of types and shapes, from small constants too."""
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def closed(model: ir.Model) -> onnx.ModelProto:
    """The edited graph as ONNX: topologically sorted, without unused nodes and initializers, checked in full.

    Raises:
        ModelError: onnx's checker refuses it.
    """
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    proto = ir.to_proto(model)
    check_rewritten(proto)
    return proto


def check_rewritten(proto: onnx.ModelProto) -> None:
    """That onnx's checker takes a model in full.

    Raises:
        ModelError: it does not.
    """
    try:
        check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"{proto.graph.name}: onnx's checker refuses the rewritten model ({error}); report it"
        ) from error


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of an initializer that the caller of the model cannot override, else None."""
    return None if value is None or value.const_value is None or not is_constant(value) else value.const_value.numpy()


def is_constant(value: ir.Value) -> bool:
    """Whether ``constant`` has an array, which this does not read."""
    return value.const_value is not None and not value.is_graph_input()


def from_constants(graph: ir.Graph) -> frozenset[str]:
    """Names of the values that do not depend on the model's inputs: constants, and what is computed from them alone."""
    names = {value.name or "" for value in graph.initializers.values() if not value.is_graph_input()}
    for node in graph:
        if _is_fixed(node, names):
            names.update(value.name or "" for value in node.outputs)
    return frozenset(names)


def _is_fixed(node: ir.Node, names: Collection[str]) -> bool:
    """Whether a node, with all graphs inside it, reads values of these names alone and draws none."""
    if node.op_type in RANDOM or not all(value is None or (value.name or "") in names for value in node.inputs):
        return False
    for graph in _graphs_in(node):
        inner = {*names, *(value.name or "" for value in (*graph.inputs, *graph.initializers.values()))}
        for each in graph:
            if not _is_fixed(each, inner):
                return False
            inner.update(value.name or "" for value in each.outputs)
        if not inner.issuperset(value.name or "" for value in graph.outputs):
            return False
    return True


def _graphs_in(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def shape_born_values(graph: ir.Graph, fixed: Collection[str]) -> frozenset[str]:
    """Names of the values that follow from shapes alone, such as the grid that a detector's boxes are counted from.

    ``fixed``: the names ``from_constants`` has.
    """
    born: set[str] = set()
    for node in graph:
        inputs = [value.name or "" for value in node.inputs if value is not None and value.name not in fixed]
        if node.op_type in ("Shape", "Size") or (inputs and not holds_graph(node) and born.issuperset(inputs)):
            born.update(value.name or "" for value in node.outputs)
    return frozenset(born)


def holds_graph(node: ir.Node) -> bool:
    """Whether a node such as If or Loop has graphs of its own."""
    return next(_graphs_in(node), None) is not None


def dimensions(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape with None for what is not known; None if not even the rank is."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def add_initializer(
    graph: ir.Graph, name: str, array: npt.NDArray[Any], taken: Collection[str] | None = None
) -> ir.Value:
    """A new initializer, under ``name`` or the next free name after it.

    ``taken`` are the names of all values, for who knows them: to collect them takes a pass over the graph.
    """
    name = unique(name, value_names(graph) if taken is None else taken)
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def change_constant(graph: ir.Graph, node: ir.Node, index: int, array: npt.NDArray[Any], name: str) -> None:
    """Let a node read another constant: under the name it has where nobody else reads it, else as ``name``, a free one.

    A node that lacks the input gets it.
    """
    node.resize_inputs(max(len(node.inputs), index + 1))
    value = node.inputs[index]
    is_alone = value is not None and len(value.uses()) == 1 and not value.is_graph_output()
    if value is not None and is_alone and value.is_initializer() and not value.is_graph_input():
        value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)
    else:
        node.replace_input_with(index, add_initializer(graph, name, array, ()))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, in its own graph; None where others do, or the model gives it out."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader = next(iter(uses)).node
    return reader if reader.graph is value.graph else None


def take_place(output: ir.Value, value: ir.Value) -> None:
    """``value`` is read instead of ``output`` from now on, and has its name; so has an output of the model."""
    value.type = output.type or value.type
    value.shape = output.shape if output.shape is not None else value.shape
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    name, output.name = output.name, None
    value.name = name


def value_names(graph: ir.Graph) -> set[str]:
    """Names of all values of the graph and its subgraphs."""
    names = {value.name for value in (*graph.inputs, *graph.initializers.values()) if value.name}
    for node in graph.all_nodes():
        names.update(value.name for value in node.outputs if value.name)
    return names


def taken_names(graph: ir.Graph) -> set[str]:
    """Those names, and the ones of the graph's nodes: what nothing new may be called."""
    return value_names(graph) | {node.name or "" for node in graph}


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or ONNX's default for it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def attribute_ints(node: ir.Node, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """An attribute of several integers, or what stands for it where there is none."""
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def attribute_float(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or ONNX's default for it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def attribute_string(node: ir.Node, name: str, default: str) -> str:
    """A text attribute, or ONNX's default for it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def known_names(graph: ir.Graph) -> frozenset[str]:
    """What a user may call nodes by: their names and their operator types."""
    return frozenset(name for node in graph for name in (node.name, node.op_type) if name)
