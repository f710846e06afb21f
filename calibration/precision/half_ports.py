"""Which inputs and outputs of a node can be FP16."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from calibration.graph.editing import attribute_string, holds_graph

_FLOAT = ir.DataType.FLOAT
_DATA_ONLY = ("Resize", "Upsample")
"""Only their first input becomes FP16: the others are coordinates and scales."""
_FULL = ("GridSample", "RoiAlign", "MaxRoiPool", "BitCast", "MeanVarianceNormalization")
"""FP32 as a whole: read coordinates, which FP16 holds coarsely, beside data of one type; or FP32's bits; or have no
definition for FP16 that onnx's checker takes."""
_SCATTERS = ("ScatterND", "ScatterElements")
"""With a reduction, ONNX Runtime has them in FP32 alone."""


@dataclass(frozen=True)
class Ports:
    """The inputs and outputs of one node that are FP16."""

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


def half_ports(node: ir.Node, opset: int, graph: ir.Graph) -> Ports:
    """The inputs and outputs of a node that ONNX allows to be FP16; none if it has to stay FP32."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    if holds_graph(node) or not all(isinstance(v.type, ir.TensorType) and v.dtype is not None for v in values):
        return Ports()
    if node.domain == "ai.onnx.ml" or (node.domain in ("", "ai.onnx") and _stays_full(node)):
        return Ports()
    if any(value.is_graph_output() and value not in graph.outputs for value in node.outputs):
        return Ports()
    if node.op_type == "Cast" and node.domain in ("", "ai.onnx"):
        return Ports(outputs=frozenset({0}) if node.outputs[0].dtype == _FLOAT else frozenset())
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return Ports()
    both = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if {"tensor(float)", "tensor(float16)"} <= set(constraint.allowed_type_strs)
    }
    inputs = {
        index: schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        for index, value in enumerate(node.inputs)
        if value is not None and value.dtype == _FLOAT and (index == 0 or node.op_type not in _DATA_ONLY)
    }
    outputs = {
        index: schema.outputs[min(index, len(schema.outputs) - 1)].type_str
        for index, value in enumerate(node.outputs)
        if value.dtype == _FLOAT
    }
    bound = set(inputs.values()) & both
    if any(variable in both - bound for variable in outputs.values()):
        return Ports()
    return Ports(
        frozenset(index for index, variable in inputs.items() if variable in bound),
        frozenset(index for index, variable in outputs.items() if variable in bound),
    )


def _stays_full(node: ir.Node) -> bool:
    """Whether a node of ONNX is FP32 as a whole, whatever ONNX allows."""
    if node.op_type in _SCATTERS:
        return attribute_string(node, "reduction", "none") != "none"
    return node.op_type in _FULL
