"""Fold batch norms, and what converters leave of them, into the weights before them; make tensor names portable."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    add_initializer,
    attribute_float,
    attribute_int,
    check_rewritten,
    closed,
    constant,
    dimensions,
    known_names,
    only_reader,
    opened,
    take_place,
    unique,
    value_names,
)

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with a weight that a scale for each output channel can go into."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Affine:
    """y -> y * scale + shift, one value for each output channel, (C,)."""

    scale: Vector
    shift: Vector


def fold_batch_norm(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Fold into each convolution or matrix product the per-channel arithmetic that follows it.

    Folded are BatchNormalization, and Mul, Div, Add and Sub with a constant that has one value for each output
    channel, as long as nothing else reads what lies between. Weights are computed in float64 and stored in the type
    they had. A bias Add behind a MatMul stays, as MatMul has no bias. Identity nodes go.

    Returns the folded model, and how many nodes went into weights.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    _drop_identities(graph)
    num_folded = 0
    for node in list(graph):
        if node.op_type in PRODUCTS and node.domain in ("", "ai.onnx"):
            while _fold_next(graph, node):
                num_folded += 1
    return closed(opened_model), num_folded


def _drop_identities(graph: ir.Graph) -> None:
    """Identity nodes go, but for those that give an output what is an input, a constant, or another output.

    Those of a Scan, Loop or If stay: an output there must be a value of its own.
    """
    for node in list(graph):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        value, output = node.inputs[0], node.outputs[0]
        if not output.is_graph_output():
            output.replace_all_uses_with(value)
        elif value.producer() is None or value.is_graph_output() or value.graph is not graph:
            continue
        else:
            take_place(output, value)
        graph.remove(node, safe=True)


def portable_names(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with no ``:`` in any tensor name, and each changed name (new -> old).

    A trailing ``:0`` goes, any other ``:`` becomes ``_``; inputs and outputs of the model choose first, and a number
    is appended where a name is taken. Calibration caches of TensorRT and their readers split lines at ``:``.

    Raises:
        ModelError: onnx's checker refuses the model.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    edges = [value.name for value in (*result.graph.input, *result.graph.output)]
    names = list(dict.fromkeys([*edges, *_tensor_names(result.graph)]))
    taken = {name for name in names if ":" not in name}
    new_names: dict[str, str] = {}
    for name in names:
        if ":" in name:
            new_names[name] = unique(name.removesuffix(":0").replace(":", "_"), taken)
            taken.add(new_names[name])
    _rename(result.graph, new_names)
    check_rewritten(result)
    return result, {new: old for old, new in new_names.items()}


def join_bias(graph: ir.Graph, keep: Collection[str]) -> None:
    """Turn each MatMul of two dimensions, and the Add of its bias, into one Gemm with the name of the MatMul.

    Nodes whose name or operator type is in ``keep`` stay as they are.
    """
    for node in list(graph):
        product = _product(node) if node.op_type == "MatMul" and node.domain in ("", "ai.onnx") else None
        if product is None or product.bias_add is None or product.rank != 2 or product.weight.ndim != 2:
            continue
        if not {node.name, node.op_type, product.bias_add.name, product.bias_add.op_type}.isdisjoint(keep):
            continue
        bias = _bias(product)
        assert bias is not None
        value = add_initializer(graph, f"{product.end.name}_bias", bias.astype(product.weight.dtype))
        gemm = ir.Node("", "Gemm", [node.inputs[0], node.inputs[1], value], name=node.name)
        graph.insert_after(product.bias_add, gemm)
        gemm.outputs[0].name = f"{product.end.name}_gemm"
        _drop(graph, product.bias_add, gemm.outputs[0])
        graph.remove(node, safe=True)


def split_bias(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Turn a Gemm of data and a constant, not scaled, into a MatMul of its name, and an Add where it has a bias."""
    weight = constant(node.inputs[1])
    assert weight is not None
    matrix = node.inputs[1]
    if attribute_int(node, "transB", 0):
        matrix = add_initializer(graph, f"{node.inputs[1].name if node.inputs[1] else ''}_turned", weight.T)
    bias, name = node.inputs[2] if len(node.inputs) > 2 else None, node.name or ""
    product = ir.Node("", "MatMul", [node.inputs[0], matrix], name=name)
    product.outputs[0].name = unique(f"{node.outputs[0].name}_product", value_names(graph))
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    nodes = [product]
    if bias is not None:
        nodes.append(ir.Node("", "Add", [product.outputs[0], bias], name=unique(f"{name}_bias", known_names(graph))))
    graph.insert_before(node, nodes)
    take_place(node.outputs[0], nodes[-1].outputs[0])
    graph.remove(node, safe=True)
    return product


@dataclass(frozen=True)
class _Product:
    """A convolution or matrix product with a constant weight and, for a MatMul, the Add that gives it its bias."""

    node: ir.Node
    weight: npt.NDArray[Any]
    num_channels: int
    rank: int
    """Of the output; for a MatMul of unknown output 1, so that no constant can widen it."""
    bias_add: ir.Node | None

    @property
    def end(self) -> ir.Value:
        """What the rest of the graph reads."""
        return (self.bias_add or self.node).outputs[0]


def _fold_next(graph: ir.Graph, node: ir.Node) -> bool:
    """Fold what follows the product ``node``; False if nothing can be folded (any more)."""
    product = _product(node)
    if product is None:
        return False
    follower = only_reader(product.end)
    affine = None if follower is None else _affine(follower, product)
    bias = _bias(product)
    if follower is None or affine is None or bias is None:
        return False
    weight, bias = _scaled(product, affine.scale), bias * affine.scale + affine.shift
    largest = float(np.finfo(product.weight.dtype).max)
    if not (np.abs(weight).max(initial=0.0) <= largest and np.abs(bias).max(initial=0.0) <= largest):
        return False
    if node.op_type == "MatMul" and product.bias_add is None and affine.shift.any():
        if follower.op_type != "BatchNormalization":
            return False
        _store_weight(graph, product, weight)
        _turn_into_add(graph, follower, product, bias)
        return True
    _store_weight(graph, product, weight)
    _store_bias(graph, product, bias)
    _drop(graph, follower, product.end)
    return True


def _product(node: ir.Node) -> _Product | None:
    weight = constant(node.inputs[1])
    if weight is None or not np.issubdtype(weight.dtype, np.floating) or weight.ndim < 2:
        return None
    rank, num_channels = weight.ndim, int(weight.shape[-1])
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute_int(node, "transB", 0)):
        num_channels = int(weight.shape[0])
    elif node.op_type == "ConvTranspose":
        num_channels = int(weight.shape[1]) * attribute_int(node, "group", 1)
    elif node.op_type == "MatMul":
        rank = len(dimensions(node.outputs[0]) or (None,))
    product = _Product(node, weight, num_channels, rank, None)
    reader = only_reader(node.outputs[0]) if node.op_type == "MatMul" else None
    if reader is not None and reader.op_type == "Add" and _affine(reader, product) is not None:
        return replace(product, bias_add=reader)
    return product


def _channel_vector(value: ir.Value | None, product: _Product) -> Vector | None:
    """The constant as (C,), if adding or multiplying it acts on each output channel alone and keeps the shape."""
    array = constant(value)
    if array is None or array.ndim > product.rank:
        return None
    channel_axis = 1 if product.node.op_type in ("Conv", "ConvTranspose") else product.rank - 1
    shape = (1,) * (product.rank - array.ndim) + array.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != channel_axis):
        return None
    if shape[channel_axis] not in (1, product.num_channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (product.num_channels,)).copy()


def _affine(node: ir.Node, product: _Product) -> _Affine | None:
    """What ``node`` does to the product's end, if that is one scale and shift for each channel."""
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, product)
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is product.end
    other = _channel_vector(node.inputs[1 if first else 0], product)
    if other is None:
        return None
    ones, zeros = np.ones_like(other), np.zeros_like(other)
    if node.op_type == "Div":
        return _Affine(1.0 / other, zeros) if first and other.all() else None
    if node.op_type == "Mul":
        return _Affine(other, zeros)
    if node.op_type == "Add":
        return _Affine(ones, other)
    return _Affine(ones, -other) if first else _Affine(-ones, other)


def _batch_norm(node: ir.Node, product: _Product) -> _Affine | None:
    """BatchNormalization in inference: (y - mean) / sqrt(variance + epsilon) * gamma + beta, channels on axis 1."""
    if attribute_int(node, "training_mode", 0) or any(output.uses() for output in node.outputs[1:]):
        return None
    if product.node.op_type == "MatMul" and product.rank != 2:
        return None
    arrays = [constant(value) for value in node.inputs[1:5]]
    vectors = [a.astype(np.float64) for a in arrays if a is not None and a.shape == (product.num_channels,)]
    if len(vectors) != 4 or node.inputs[0] is not product.end:
        return None
    gamma, beta, mean, variance = vectors
    scale = gamma / np.sqrt(variance + attribute_float(node, "epsilon", 1e-5))
    return _Affine(scale, beta - mean * scale)


def _bias(product: _Product) -> Vector | None:
    """The bias as (C,), zeros if there is none; None if it is not one constant for each channel."""
    node = product.node
    if product.bias_add is not None:
        vectors = (_channel_vector(value, product) for value in product.bias_add.inputs)
        return next(vector for vector in vectors if vector is not None)
    if node.op_type == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(product.num_channels)
    if node.op_type == "Gemm":
        vector = _channel_vector(node.inputs[2], product)
        return None if vector is None else vector * attribute_float(node, "beta", 1.0)
    array = constant(node.inputs[2])
    return None if array is None else array.astype(np.float64)


def _scaled(product: _Product, scale: Vector) -> npt.NDArray[np.float64]:
    """The weight with each output channel multiplied."""
    node, weight = product.node, product.weight.astype(np.float64)
    if node.op_type == "ConvTranspose":
        group = attribute_int(node, "group", 1)
        grouped = weight.reshape(group, -1, *weight.shape[1:])
        return (grouped * scale.reshape(group, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
    if node.op_type == "Conv" or attribute_int(node, "transB", 0):
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return weight * scale


def _store_weight(graph: ir.Graph, product: _Product, weight: npt.NDArray[np.float64]) -> None:
    _replace_constant(graph, product.node, 1, weight.astype(product.weight.dtype))


def _store_bias(graph: ir.Graph, product: _Product, bias: Vector) -> None:
    node, array = product.node, bias.astype(product.weight.dtype)
    if product.bias_add is not None:
        index = 1 if product.bias_add.inputs[0] is node.outputs[0] else 0
        _replace_constant(graph, product.bias_add, index, array)
    elif node.op_type != "MatMul":
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        _replace_constant(graph, node, 2, array)
        if node.op_type == "Gemm":
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def _replace_constant(graph: ir.Graph, node: ir.Node, index: int, array: npt.NDArray[Any]) -> None:
    """A new initializer ``w_folded`` in place of the input ``w``, which goes if nothing else reads it."""
    old = node.inputs[index]
    name = old.name if old is not None and old.name else f"{node.outputs[0].name}_bias"
    node.replace_input_with(index, None)
    if old is not None and not old.uses() and not old.is_graph_output():
        graph.initializers.pop(name)
    name = name if name.endswith("_folded") else f"{name}_folded"
    node.replace_input_with(index, add_initializer(graph, name, array))


def _turn_into_add(graph: ir.Graph, follower: ir.Node, product: _Product, bias: Vector) -> None:
    """The batch norm behind a MatMul becomes the Add of its bias."""
    value = add_initializer(graph, f"{product.end.name}_bias_folded", bias.astype(product.weight.dtype))
    add = ir.Node("", "Add", [product.end, value], name=follower.name)
    graph.insert_before(follower, add)
    _drop(graph, follower, add.outputs[0])


def _drop(graph: ir.Graph, follower: ir.Node, value: ir.Value) -> None:
    """Take ``follower`` out; ``value`` takes the place and the name of its output."""
    take_place(follower.outputs[0], value)
    graph.remove(follower, safe=True)


def _tensor_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer, *graph.output, *graph.value_info))
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for subgraph in _subgraphs(node):
            yield from _tensor_names(subgraph)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _rename(graph: onnx.GraphProto, new_names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.initializer, *graph.output, *graph.value_info):
        value.name = new_names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new_names.get(sparse.values.name, sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = new_names.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = new_names.get(entry.value, entry.value)
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        node.output[:] = [new_names.get(name, name) for name in node.output]
        for subgraph in _subgraphs(node):
            _rename(subgraph, new_names)
