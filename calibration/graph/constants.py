"""What follows from constants is a constant: weights behind Transpose, Reshape, Cast, weight norms and the like."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from calibration.graph.editing import (
    add_initializer,
    closed,
    constant,
    dimensions,
    from_constants,
    holds_graph,
    is_constant,
    opened,
    take_place,
    value_names,
)

MOST_GROWTH = 2
"""Times the bytes of a node's inputs that its output may have: what only repeats values stays a node."""
SMALL_BYTES = 1 << 16
"""Up to here any output may grow."""
MOST_WORK, LEAST_WORK_BYTES = 16, 1 << 26
"""Times the bytes of all constants, and bytes, that are computed in all: each of a chain of nodes may double them."""
KEPT = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""Written precisions are not computed away."""

_LOG = logging.getLogger(__name__)


def fold_constants(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Compute what does not depend on the model's inputs, by onnx's reference implementation.

    Nodes with subgraphs, random ones, operators of other domains, Q/DQ, and what would make the file much larger stay;
    so does what the reference implementation cannot compute.

    Returns the model, and how many nodes went.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    fixed = from_constants(graph)
    opsets = dict(opened_model.opset_imports)
    taken = value_names(graph)
    num_folded = 0
    left = max(MOST_WORK * sum(map(_num_bytes, graph.initializers.values())), LEAST_WORK_BYTES)
    for node in list(graph):
        if not all(value.name in fixed for value in node.outputs) or not _can_be_computed(node):
            continue
        num_bytes = sum(map(_num_bytes, node.outputs))
        arrays = _computed(node, opsets) if num_bytes <= left else None
        if arrays is None:
            continue
        left -= num_bytes
        for output, array in zip(node.outputs, arrays):
            _replace(graph, output, array, taken)
        graph.remove(node, safe=True)
        num_folded += 1
    return (closed(opened_model), num_folded) if num_folded else (model, 0)


def _can_be_computed(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in KEPT or holds_graph(node):
        return False
    inputs = [value for value in node.inputs if value is not None]
    if not inputs or not all(map(is_constant, inputs)):
        return False
    _infer_filled(node)
    most = max(MOST_GROWTH * sum(map(_num_bytes, inputs)), SMALL_BYTES)
    return all(_num_bytes(output) <= most and math.isfinite(_num_bytes(output)) for output in node.outputs)


def _infer_filled(node: ir.Node) -> None:
    """The shape that a ConstantOfShape fills, which onnx infers only where it stands in the file as a constant."""
    sizes = constant(node.inputs[0]) if node.op_type == "ConstantOfShape" else None
    if sizes is not None and math.isinf(_num_bytes(node.outputs[0])):
        node.outputs[0].shape = ir.Shape([int(size) for size in sizes])


def _num_bytes(value: ir.Value) -> float:
    """By the inferred shape and type; infinite where these are not known."""
    shape = dimensions(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return math.inf
    sizes = [size for size in shape if size is not None]
    return math.prod(sizes) * value.dtype.itemsize if len(sizes) == len(shape) else math.inf


def _computed(node: ir.Node, opsets: dict[str, int]) -> list[npt.NDArray[Any]] | None:
    """The outputs; None if they cannot be computed, or are not what was inferred."""
    feed = {value.name or "": constant(value) for value in node.inputs if value is not None}
    names = [output.name or "" for output in node.outputs]
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(ir.to_proto(node), opsets=opsets).run(names, feed)
    except Exception as error:  # noqa: BLE001  # Whatever it cannot do stays in the graph.
        _LOG.debug("node '%s' is not computed: %s", node.name, error)
        return None
    arrays = [np.asarray(result) for result in results]
    for output, array in zip(node.outputs, arrays):
        if output.dtype is None or array.dtype != output.dtype.numpy() or array.shape != dimensions(output):
            return None
    return arrays


def _replace(graph: ir.Graph, output: ir.Value, array: npt.NDArray[Any], taken: set[str]) -> None:
    """An initializer in place of a node's output; of an output of the model, behind an Identity."""
    value = add_initializer(graph, f"{output.name}_value", array, taken)
    taken.add(value.name or "")
    if output.is_graph_output():
        identity = ir.Node("", "Identity", [value], name=f"{value.name}_identity")
        graph.append(identity)
        value = identity.outputs[0]
    take_place(output, value)
