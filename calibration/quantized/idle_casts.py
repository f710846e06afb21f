"""Casts of values to the type that they have, as PyTorch's old exporter writes them between Q and DQ."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from calibration.graph.editing import attribute_int, rewritten


def drop_idle_casts(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Leave out each Cast to the type that its input has already; the answers are the same bits.

    Between a QuantizeLinear and a DequantizeLinear it keeps runtimes from fusing them, and TensorRT from reading them.

    Returns the model, and how many were left out; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Cast", _drop_idle_casts)


def _drop_idle_casts(graph: ir.Graph) -> int:
    num_dropped = 0
    for node in [node for node in graph if node.op_type == "Cast" and node.domain in ("", "ai.onnx")]:
        value, output = node.inputs[0], node.outputs[0]
        if value is None or value.dtype is None or int(value.dtype) != attribute_int(node, "to", 0):
            continue
        if output.is_graph_output() or not output.uses():
            continue
        ir.convenience.replace_all_uses_with(output, value)
        num_dropped += 1
    return num_dropped
