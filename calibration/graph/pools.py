"""Global means as pools, which runtimes have integer kernels for."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    attribute_int,
    constant,
    dimensions,
    rewritten,
    take_place,
    taken_names,
    unique,
)


def pool_means(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Write each ReduceMean over all positions of (N, C, …) data, as PyTorch exports a pool, as GlobalAveragePool.

    Those of a normalization (of layers, of instances) stay: a mean that is subtracted, or that is of squares.
    With ``keepdims = 0`` a Flatten follows. Returns the model, and how many there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "ReduceMean", _write_pools)


def _write_pools(graph: ir.Graph) -> int:
    taken = taken_names(graph)
    means = [node for node in graph if _is_global_mean(node)]
    for node in means:
        _write_pool(graph, node, taken)
    return len(means)


def _is_global_mean(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
        return False
    shape = dimensions(node.inputs[0])
    if shape is None or len(shape) < 3 or node.inputs[0].dtype != ir.DataType.FLOAT:
        return False
    axes = _axes(node)
    if axes is None or _normalizes(node, node.inputs[0]):
        return False
    return sorted(axis % len(shape) for axis in axes) == list(range(2, len(shape)))


def _normalizes(node: ir.Node, data: ir.Value) -> bool:
    """Whether a mean, or that of the squares beside it, is a normalization's."""
    producer = data.producer()
    if producer is not None and _is_square(producer):
        return True
    readers = [use.node for use in (*data.uses(), *node.outputs[0].uses())]
    return any(reader.op_type == "Sub" or _is_square(reader) for reader in readers)


def _is_square(node: ir.Node) -> bool:
    """Whether a node multiplies a value by itself."""
    if node.op_type == "Pow":
        exponent = constant(node.inputs[1])
        return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _axes(node: ir.Node) -> list[int] | None:
    """As an attribute, or from opset 18 on an input; None where they are not known, or left out."""
    if "axes" in node.attributes:
        return [int(axis) for axis in node.attributes["axes"].as_ints()]
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else [int(axis) for axis in array]


def _write_pool(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    data, mean = node.inputs[0], node.outputs[0]
    assert data is not None
    assert data.shape is not None
    pool = ir.Node("", "GlobalAveragePool", [data], name=node.name)
    nodes = [pool]
    pool.outputs[0].name = unique(f"{mean.name}_pool", taken)
    pool.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    pool.outputs[0].shape = ir.Shape([*data.shape[:2], *[1] * (len(data.shape) - 2)])
    if not attribute_int(node, "keepdims", 1):
        flatten = ir.Node("", "Flatten", [pool.outputs[0]], name=unique(f"{node.name}_Flatten", taken))
        flatten.outputs[0].name = unique(f"{mean.name}_flat", taken)
        nodes.append(flatten)
    taken |= {each.outputs[0].name or "" for each in nodes} | {each.name or "" for each in nodes}
    graph.insert_after(node, nodes)
    take_place(mean, nodes[-1].outputs[0])
    graph.remove(node, safe=True)
