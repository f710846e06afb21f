"""Activations in pieces: a hard sigmoid, written with a Relu6, as one operator; a GELU in those that runtimes know."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    add_initializer,
    constant,
    only_reader,
    rewritten,
    take_place,
    taken_names,
    unique,
)

CLOSE = 1e-6
"""Relative: 1 / 6 in float32 is that near to a sixth, and the root of 2."""


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
    graph.insert_after(behind, node)
    take_place(behind.outputs[0], node.outputs[0])
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


def write_gelus(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Write ``x / 2 * erfc(-x / √2)``, and ``1 + erf(x * √½)`` in such a product, as ``x / 2 * (1 + erf(x / √2))``.

    So written it is one operator for runtimes that have one: a pass over the data where there had been five. As erf is
    odd, 1 - erf(-z) is 1 + erf(z) to the bit; the answers differ in the last bits, as of a product and a quotient.

    Returns the model, and how many there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Erf", _write_gelus)


def _write_gelus(graph: ir.Graph) -> int:
    taken, numbers = taken_names(graph), _Numbers(graph)
    return sum(_write_gelu(numbers, node, taken) for node in list(graph) if node.op_type == "Erf" and not node.domain)


class _Numbers:
    """The constants of all GELUs, once there is one."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    @cached_property
    def root(self) -> ir.Value:
        return add_initializer(self.graph, "root_of_two", np.array(math.sqrt(2), np.float32))

    @cached_property
    def one(self) -> ir.Value:
        return add_initializer(self.graph, "one_of_gelu", np.array(1.0, np.float32))


def _write_gelu(numbers: _Numbers, erf: ir.Node, taken: set[str]) -> bool:
    total = only_reader(erf.outputs[0])
    data, factor = _scaled(erf.inputs[0])
    if (
        total is None
        or data is None
        or data.dtype != ir.DataType.FLOAT
        or _number(total.inputs[1 - _index(total, erf)]) != 1.0
    ):
        return False
    if total.op_type == "Sub" and _index(total, erf) == 1:
        factor = -factor
    elif total.op_type != "Add":
        return False
    before = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    is_known = total.op_type == "Add" and before is not None and before.op_type == "Div" and before.inputs[0] is data
    if is_known or not math.isclose(factor, math.sqrt(0.5), rel_tol=CLOSE) or not _is_half_of_product(total, data):
        return False
    quotient = _node("Div", [data, numbers.root], data, taken)
    argument = _node("Erf", [quotient.outputs[0]], data, taken)
    added = _node("Add", [argument.outputs[0], numbers.one], data, taken)
    numbers.graph.insert_after(total, [quotient, argument, added])
    take_place(total.outputs[0], added.outputs[0])
    for node in (total, erf):
        numbers.graph.remove(node, safe=True)
    _remove_unread(numbers.graph, before)
    return True


def _node(operator: str, inputs: list[ir.Value], data: ir.Value, taken: set[str]) -> ir.Node:
    """A node whose result is as large as ``data``."""
    name = unique(f"{data.name}_gelu_{operator}", taken)
    taken.add(name)
    node = ir.Node("", operator, inputs, name=name)
    node.outputs[0].type, node.outputs[0].shape, node.outputs[0].name = data.type, data.shape, name
    return node


def _scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """What a tensor is a multiple of, and by how much."""
    factor = 1.0
    while value is not None and (node := value.producer()) is not None and not node.domain:
        number = _number(node.inputs[1]) if node.op_type in ("Mul", "Div") else None
        if node.op_type == "Neg":
            factor, value = -factor, node.inputs[0]
        elif number:
            factor, value = factor * (number if node.op_type == "Mul" else 1 / number), node.inputs[0]
        elif node.op_type == "Mul" and (number := _number(node.inputs[0])) is not None:
            factor, value = factor * number, node.inputs[1]
        else:
            break
    return value, factor


def _is_half_of_product(total: ir.Node, data: ir.Value) -> bool:
    """Whether what is read of the sum is its product with half of the data, in one step or in two."""
    product = only_reader(total.outputs[0])
    if product is None or product.op_type != "Mul" or product.domain:
        return False
    other = product.inputs[1 - _index(product, total)]
    if other is data:
        half = only_reader(product.outputs[0])
        return half is not None and half.op_type == "Mul" and 0.5 in (_number(half.inputs[0]), _number(half.inputs[1]))
    return _scaled(other) == (data, 0.5)


def _index(reader: ir.Node, node: ir.Node) -> int:
    """Which of a reader's inputs a node gives."""
    return next((index for index, value in enumerate(reader.inputs) if value is node.outputs[0]), 0)


def _remove_unread(graph: ir.Graph, node: ir.Node | None) -> None:
    """Take out a node that nobody reads, and those that it alone read."""
    while node is not None and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        data = next((value for value in node.inputs if value is not None and value.producer() is not None), None)
        graph.remove(node, safe=True)
        node = data.producer() if data is not None else None
