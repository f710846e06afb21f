"""A hard sigmoid in pieces, as Keras and others write it with a Relu6, as the one operator that it is."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

from calibration.graph.editing import constant, only_reader, rewritten

CLOSE = 1e-6
"""Relative: 1 / 6 in float32 is that near to a sixth."""


def write_hard_sigmoids(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Write each ``clip(x + b, 0, m) / m`` of numbers b and m as HardSigmoid: a pass over the data instead of three.

    The answers differ in the last bits, as of a product and a quotient.

    Returns the model, and how many there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Clip", _write)


def _write(graph: ir.Graph) -> int:
    return sum(_write_one(graph, node) for node in list(graph) if node.op_type == "Clip")


def _write_one(graph: ir.Graph, clip: ir.Node) -> bool:
    before = clip.inputs[0].producer() if clip.inputs[0] is not None else None
    behind = only_reader(clip.outputs[0])
    if before is None or behind is None or only_reader(before.outputs[0]) is not clip or clip.domain or behind.domain:
        return False
    low, high = ((_number(clip.inputs[index]) if len(clip.inputs) > index else None) for index in (1, 2))
    shift, factor = _operand(before, ("Add", "Sub")), _operand(behind, ("Mul", "Div"))
    if low != 0.0 or high is None or high <= 0.0 or shift is None or factor is None or not factor[1]:
        return False
    data = shift[0]
    added = shift[1] if before.op_type == "Add" else -shift[1]
    multiplied = factor[1] if behind.op_type == "Mul" else 1 / factor[1]
    if not math.isclose(multiplied * high, 1.0, rel_tol=CLOSE):
        return False
    settings = [ir.AttrFloat32("alpha", multiplied), ir.AttrFloat32("beta", multiplied * added)]
    node = ir.Node("", "HardSigmoid", [data], settings, name=behind.name)
    output, value = behind.outputs[0], node.outputs[0]
    value.type, value.shape = output.type, output.shape
    graph.insert_after(behind, node)
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    value.name, output.name = output.name, None
    for each in (behind, clip, before):
        graph.remove(each, safe=True)
    return True


def _operand(node: ir.Node, operators: tuple[str, ...]) -> tuple[ir.Value, float] | None:
    """The data and the number that a node computes of; a quotient's or difference's number comes second."""
    if node.op_type not in operators or node.domain not in ("", "ai.onnx"):
        return None
    for index in (1, 0) if node.op_type in ("Add", "Mul") else (1,):
        data, number = node.inputs[1 - index], _number(node.inputs[index])
        if data is not None and number is not None and constant(data) is None and data.dtype == ir.DataType.FLOAT:
            return data, number
    return None


def _number(value: ir.Value | None) -> float | None:
    """A constant of one element that has no more axes than any data."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim < 2 else None
