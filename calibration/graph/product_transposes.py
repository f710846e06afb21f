"""Transposes around matrix products, as PyTorch's attention has them, where runtimes expect none."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    add_initializer,
    constant,
    dimensions,
    is_constant,
    only_reader,
    rewritten,
    take_place,
    unique,
    value_names,
)

LAST_TWO = (0, 1, 3, 2)


def move_transposes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Multiply by weights, and add a bias, before a Transpose that leaves the last axis where it is, not behind it.

    The answers are the same bits. PyTorch's attention puts the steps first before it projects them; ONNX Runtime 1.32
    crashes on that in FP16, where the transpose of the batch, a cast and the product are fused.

    Returns the model, and how many products there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Transpose", moved_transposes)


def transpose_keys(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Transpose keys by their last two axes, where they are reshaped to three for it, and back to a computed shape.

    So does torch's exporter write attention; its runtimes look for the Transpose at the product. The answers are the
    same bits.

    Returns the model, and how many keys there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Transpose", _transpose_keys)


def moved_transposes(graph: ir.Graph) -> int:
    """As ``move_transposes`` in a graph, of any precision: how many products there were."""
    taken = value_names(graph) | {node.name or "" for node in graph}
    products = [node for node in graph if node.op_type == "MatMul" and node.domain in ("", "ai.onnx")]
    return sum(_move_behind(graph, node, taken) for node in products)


def _move_behind(graph: ir.Graph, product: ir.Node, taken: set[str]) -> bool:
    """Let a product read what a Transpose does, and transpose what it, or its bias, computes; False if it cannot."""
    data, weight = product.inputs
    first = None if data is None else data.producer()
    permutation = _permutation(first)
    if first is None or first.graph is not graph or weight is None or not is_constant(weight):
        return False
    rank = len(permutation)
    is_swap = rank > 2 and permutation[-1] == rank - 1 and list(permutation) != list(range(rank))
    if not is_swap or len(dimensions(weight) or ()) != 2:
        return False
    nodes = [product, *_bias(product)]
    output = nodes[-1].outputs[0]
    if any(dimensions(node.outputs[0]) is None for node in nodes):
        return False
    product.replace_input_with(0, first.inputs[0])
    behind = ir.Node("", "Transpose", [output], [ir.AttrInt64s("perm", permutation)])
    behind.name = unique(f"{product.name}_Transpose", taken)
    after = behind.outputs[0]
    after.type, after.shape = output.type, output.shape
    graph.insert_after(nodes[-1], behind)
    ir.convenience.replace_all_uses_with(output, after, replace_graph_outputs=True)
    behind.replace_input_with(0, output)
    after.name, output.name = output.name, unique(f"{output.name}_untransposed", taken)
    taken |= {behind.name, output.name}
    for node in nodes:
        value = node.outputs[0]
        assert value.shape is not None
        value.shape = ir.Shape([value.shape[permutation.index(axis)] for axis in range(rank)])
    return True


def _bias(product: ir.Node) -> list[ir.Node]:
    """The Add of one number for each column that alone reads the product; none if something else does."""
    reader = only_reader(product.outputs[0])
    if reader is None or reader.op_type != "Add" or reader.domain not in ("", "ai.onnx"):
        return []
    added = constant(reader.inputs[1] if reader.inputs[0] is product.outputs[0] else reader.inputs[0])
    return [reader] if added is not None and added.ndim <= 1 else []


def _permutation(node: ir.Node | None) -> tuple[int, ...]:
    """Of a Transpose; nothing for any other node."""
    if node is None or node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
        return ()
    attribute = node.attributes.get("perm")
    return tuple(attribute.as_ints()) if attribute is not None else ()


def _transpose_keys(graph: ir.Graph) -> int:
    taken = value_names(graph) | {node.name or "" for node in graph}
    views = [node for node in graph if node.op_type == "Reshape" and node.domain in ("", "ai.onnx")]
    return sum(_transpose_key(graph, node, taken) for node in views)


def _transpose_key(graph: ir.Graph, view: ir.Node, taken: set[str]) -> bool:
    """Reshape before the Transpose, to a shape that is written; False if it cannot be."""
    source = view.inputs[0]
    first = None if source is None else source.producer()
    if source is None or first is None or first.graph is not graph or _permutation(first) != (0, 2, 1):
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
