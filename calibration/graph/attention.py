"""Attention in a graph: softmax(query · keyᵀ · scale + mask) · value, and its scale where runtimes want it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    add_initializer,
    attribute_ints,
    constant,
    dimensions,
    is_constant,
    only_reader,
    rewritten,
    take_place,
    taken_names,
    unique,
)

AFTER_SOFTMAX = ("Cast", "Dropout", "Identity", "Where")
"""What may stand between a Softmax and the product with the values: PyTorch's Where makes 0 of NaN."""
BEFORE_SOFTMAX = ("Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Squeeze", "Sub", "Unsqueeze", "Where")
"""What may stand between the product with the keys and the Softmax: scales and masks."""
LAST_TWO = (0, 1, 3, 2)
"""A permutation that exchanges the last two of four axes."""
MOVES_WHOLE = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""A factor for all values may as well be multiplied before these."""


@dataclass(frozen=True)
class Attention:
    """The two products of one attention."""

    scores: ir.Node
    """MatMul of query and key, both data."""
    mixed: ir.Node
    """MatMul of the Softmax's output and the values."""

    @property
    def head_size(self) -> int | None:
        """Of the query, where it is known."""
        return _size(self.scores.inputs[0], -1)

    @property
    def lengths(self) -> tuple[int | None, int | None]:
        """Of the query and of the key, in steps, where they are known."""
        return _size(self.scores.outputs[0], -2), _size(self.scores.outputs[0], -1)


def attentions(graph: ir.Graph) -> Iterator[Attention]:
    """Each attention of a graph, in topological order of its Softmax."""
    for node in graph:
        if node.op_type == "Softmax" and node.domain in ("", "ai.onnx"):
            scores, mixed = _product_before(node.inputs[0]), _product_behind(node.outputs[0])
            if scores is not None and mixed is not None:
                yield Attention(scores, mixed)


def scale_queries(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Multiply the query, instead of the product of query and key, by the scale of attention.

    TensorRT asks for it, for its fused attention and so that FP16 does not overflow in the product
    (docs.nvidia.com, TensorRT, Fused Attention). A scale that meets the projection of the query can be folded into
    its weights.

    Returns the model, and how many scales there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Softmax", _scale_queries)


def transpose_keys(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Transpose keys by their last two axes, where they are reshaped to three for it, and back to a computed shape.

    So does torch's exporter write attention; its runtimes look for the Transpose at the product. The answers are the
    same bits.

    Returns the model, and how many keys there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Transpose", _transpose_keys)


def _scale_queries(graph: ir.Graph) -> int:
    taken = taken_names(graph)
    products = [each.scores for each in attentions(graph)]
    num_merged = sum(_scale_query_alone(graph, scores, taken) for scores in products)
    return num_merged + sum(_scale_query(graph, scores, taken) for scores in products)


def _scale_query_alone(graph: ir.Graph, scores: ir.Node, taken: set[str]) -> bool:
    """Where query and key are both multiplied by a root of the scale, multiply the query by it; False elsewhere."""
    query, key = (each.producer() if each is not None else None for each in scores.inputs)
    if query is None or key is None or query is key or query.graph is not graph or key.graph is not graph:
        return False
    if any(only_reader(node.outputs[0]) is not scores or node.op_type != "Mul" for node in (query, key)):
        return False
    places = [_scalar_input(node) for node in (query, key)]
    if None in places:
        return False
    first, second = (constant(node.inputs[place]) for node, place in zip((query, key), places) if place is not None)
    product = np.asarray(first, np.float32).reshape(()) * np.asarray(second, np.float32).reshape(())
    value = add_initializer(graph, unique(f"{query.name}_attention_scale", taken), np.asarray(product, np.float32), ())
    taken.add(value.name or "")
    query.replace_input_with(places[0] or 0, value)
    scores.replace_input_with(1, key.inputs[1 - (places[1] or 0)])
    graph.remove(key, safe=True)
    return True


def _scalar_input(node: ir.Node) -> int | None:
    """Which input of a Mul is one constant number of FP32 for all values of the other; None if neither is."""
    for place in (0, 1):
        array, other = constant(node.inputs[place]), node.inputs[1 - place]
        if array is not None and array.size == 1 and array.dtype == np.float32:
            shape = dimensions(other)
            return place if shape is not None and array.ndim <= len(shape) else None
    return None


def _scale_query(graph: ir.Graph, scores: ir.Node, taken: set[str]) -> bool:
    """Move the scale behind a product to its query; False if there is none."""
    product = scores.outputs[0]
    follower = only_reader(product)
    factor = None if follower is None else _factor(follower, product)
    query = scores.inputs[0]
    if follower is None or factor is None or query is None or query.dtype != ir.DataType.FLOAT:
        return False
    scaled = _earliest(query)
    name = unique(f"{scaled.name}_scaled", taken)
    node_name = unique(f"{scaled.name}_scale", taken)
    value = add_initializer(graph, unique(f"{scaled.name}_attention_scale", taken), np.asarray(factor, np.float32))
    readers = list(scaled.uses()) if scaled is not query else [use for use in scaled.uses() if use == (scores, 0)]
    node = ir.Node("", "Mul", [scaled, value], name=node_name)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, scaled.type, scaled.shape
    taken |= {name, node_name, value.name or ""}
    producer = scaled.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    for use in readers:
        use.node.replace_input_with(use.idx, node.outputs[0])
    take_place(follower.outputs[0], product)
    graph.remove(follower, safe=True)
    return True


def _earliest(query: ir.Value) -> ir.Value:
    """The value before all that only moves the query, and that nothing else reads."""
    value = query
    while (producer := value.producer()) is not None and producer.op_type in MOVES_WHOLE:
        source = producer.inputs[0]
        if source is None or only_reader(value) is None or source.dtype != ir.DataType.FLOAT:
            break
        if only_reader(source) is None:
            break
        value = source
    return value


def _factor(node: ir.Node, product: ir.Value) -> float | None:
    """What a Mul or Div multiplies the product by, if that is one constant for all its values."""
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2 or node.inputs[0] is node.inputs[1]:
        return None
    index = 1 if node.inputs[0] is product else 0
    array = constant(node.inputs[index])
    if array is None or array.size != 1 or array.dtype != np.float32 or array.ndim > len(dimensions(product) or ()):
        return None
    number = float(array.reshape(-1)[0])
    if node.op_type == "Div":
        number = 1 / number if index == 1 and number else np.nan
    return number if np.isfinite(np.float32(number)) else None


def _product_before(value: ir.Value | None) -> ir.Node | None:
    """The product of two tensors of data whose scores a Softmax reads."""
    waiting, seen = [value], set[ir.Node]()
    while waiting:
        last = waiting.pop()
        node = last.producer() if last is not None else None
        if node is None or node in seen or node.domain not in ("", "ai.onnx"):
            continue
        seen.add(node)
        if node.op_type == "MatMul" and not any(each is None or is_constant(each) for each in node.inputs):
            return node
        if node.op_type in BEFORE_SOFTMAX:
            sources = node.inputs if node.op_type in ("Add", "Mul", "Sub", "Where") else node.inputs[:1]
            waiting += reversed(sources)
    return None


def _product_behind(value: ir.Value) -> ir.Node | None:
    """The product with the values that reads the output of a Softmax as its first input."""
    waiting, seen = [value], set[ir.Node]()
    while waiting:
        last = waiting.pop()
        behind = []
        for node, index in last.uses():
            if node in seen or node.graph is not value.graph or node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "MatMul" and index == 0 and node.inputs[1] is not None:
                return node if not is_constant(node.inputs[1]) else None
            if node.op_type in AFTER_SOFTMAX:
                seen.add(node)
                behind.append(node.outputs[0])
        waiting += reversed(behind)
    return None


def _size(value: ir.Value | None, axis: int) -> int | None:
    shape = dimensions(value)
    return shape[axis] if shape is not None and len(shape) >= 2 else None


def permutation_of(node: ir.Node | None) -> tuple[int, ...]:
    """Of a Transpose; nothing for any other node."""
    if node is None or node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
        return ()
    return attribute_ints(node, "perm")


def _transpose_keys(graph: ir.Graph) -> int:
    taken = taken_names(graph)
    views = [node for node in graph if node.op_type == "Reshape" and node.domain in ("", "ai.onnx")]
    return sum(_transpose_key(graph, node, taken) for node in views)


def _transpose_key(graph: ir.Graph, view: ir.Node, taken: set[str]) -> bool:
    """Reshape before the Transpose, to a shape that is written; False if it cannot be."""
    source = view.inputs[0]
    first = None if source is None else source.producer()
    if source is None or first is None or first.graph is not graph or permutation_of(first) != (0, 2, 1):
        return False
    before, after = dimensions(source), dimensions(view.outputs[0])
    if before is None or after is None or len(after) != 4 or None in after[2:] or before[1:] != after[2:]:
        return False
    sizes = [-1 if size is None else size for size in after]
    if sizes.count(-1) > 1 or 0 in sizes or view.outputs[0].is_graph_output():
        return False
    key = first.inputs[0]
    swapped = np.array([sizes[axis] for axis in LAST_TWO], np.int64)
    shape = add_initializer(graph, unique(f"{view.name}_shape", taken), swapped, ())
    heads = ir.Node("", "Reshape", [key, shape], name=unique(f"{view.name}_heads", taken))
    result = view.outputs[0]
    assert result.shape is not None
    heads.outputs[0].name = unique(f"{result.name}_heads", taken)
    heads.outputs[0].type = result.type
    heads.outputs[0].shape = ir.Shape([result.shape[axis] for axis in LAST_TWO])
    turned = ir.Node("", "Transpose", [heads.outputs[0]], [ir.AttrInt64s("perm", LAST_TWO)])
    turned.name = unique(f"{view.name}_Transpose", taken)
    turned.outputs[0].name = unique(f"{result.name}_transposed", taken)
    turned.outputs[0].type, turned.outputs[0].shape = result.type, result.shape
    taken |= {each.name or "" for each in (shape, heads, turned, heads.outputs[0], turned.outputs[0])}
    graph.insert_after(view, [heads, turned])
    take_place(result, turned.outputs[0])
    graph.remove(view, safe=True)
    return True
