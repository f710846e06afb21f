"""Products by weights before the Transposes that PyTorch's attention has in front of them."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from calibration.graph.attention import permutation_of
from calibration.graph.editing import (
    constant,
    dimensions,
    is_constant,
    only_reader,
    rewritten,
    taken_names,
    unique,
)


def move_transposes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Multiply by weights, and add a bias, before a Transpose that leaves the last axis where it is, not behind it.

    The answers are the same bits. PyTorch's attention puts the steps first before it projects them; ONNX Runtime 1.32
    crashes on that in FP16, where the transpose of the batch, a cast and the product are fused.

    Returns the model, and how many products there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Transpose", moved_transposes)


def moved_transposes(graph: ir.Graph) -> int:
    """As ``move_transposes`` in a graph, of any precision: how many products there were."""
    taken = taken_names(graph)
    products = [node for node in graph if node.op_type == "MatMul" and node.domain in ("", "ai.onnx")]
    return sum(_move_behind(graph, node, taken) for node in products)


def _move_behind(graph: ir.Graph, product: ir.Node, taken: set[str]) -> bool:
    """Let a product read what a Transpose does, and transpose what it, or its bias, computes; False if it cannot."""
    data, weight = product.inputs
    first = None if data is None else data.producer()
    permutation = permutation_of(first)
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
