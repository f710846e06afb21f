"""Reshapes that lead back to a shape that the values had before, as around Keras's squeeze and excitation."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from calibration.graph.editing import dimensions, rewritten

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Give another shape to the values, which stay in their order."""


def drop_views(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Leave out each Reshape whose result has the shape that the values had one or more views before.

    A channels-last runtime has to bring the values into the other order for each such view, and back behind it. Those
    between stay for whoever else reads them. The answers are the same bits.

    Returns the model, and how many Reshapes were left out; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Reshape", _drop_views)


def _drop_views(graph: ir.Graph) -> int:
    num_dropped = 0
    for node in [node for node in graph if _is_view(node) and node.op_type == "Reshape"]:
        output = node.outputs[0]
        source = _alike(node)
        if source is None or output.is_graph_output() or not output.uses():
            continue
        ir.convenience.replace_all_uses_with(output, source)
        num_dropped += 1
    return num_dropped


def _alike(node: ir.Node) -> ir.Value | None:
    """The first value before a view, and before those it reads, that has the shape of its result; None if none has."""
    value, alike = node.inputs[0], None
    while value is not None:
        if _have_one_shape(value, node.outputs[0]):
            alike = value
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and _is_view(producer) else None
    return alike


def _is_view(node: ir.Node) -> bool:
    return node.op_type in VIEWS and node.domain in ("", "ai.onnx")


def _have_one_shape(first: ir.Value, second: ir.Value) -> bool:
    """Whether values of equal number have the same shape: one dimension need not be known, it follows from the others.

    Names of dimensions are passed over: they may be no more than a ``?``.
    """
    before, after = dimensions(first), dimensions(second)
    if before is None or after is None or len(before) != len(after):
        return False
    pairs = list(zip(before, after, strict=True))
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return len(known) >= len(pairs) - 1 and all(a == b and a > 0 for a, b in known)
