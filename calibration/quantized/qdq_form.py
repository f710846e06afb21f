"""Integer operators written as Q/DQ around the operators that compute the same on floating-point numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.editing import (
    add_initializer,
    attribute_int,
    attribute_string,
    constant,
    dimensions,
    taken_names,
    unique,
)
from calibration.quantized.grids import DEQUANTIZE, DOMAINS, QUANTIZE, Grid, grid_from, grid_of
from calibration.quantized.operators import INTEGER_OPERATORS, MICROSOFT, IntegerOperator

MOVERS = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that give some of the values that they take, so that integers stay on their grid."""
SUFFIX = "_quantized"
"""What ONNX Runtime's quantizer appends to the name of a tensor."""
DROPPED = ("channels_last", "opset")
"""Attributes of ONNX Runtime's operators that ONNX's do not have."""
FIRST_SOFTMAX = 13
"""The opset from which on Softmax takes one axis."""


def write_qdq(model: ir.Model) -> int:
    """Bring all that is quantized to QuantizeLinear and DequantizeLinear, each integer tensor between two of them.

    ``QLinearConv`` and the like become DequantizeLinear, Conv, QuantizeLinear of the same scales, byte for byte; of
    MaxPool, Reshape and others that move integers, both stand around the operator. Nothing else changes.

    Returns the number of nodes that were rewritten.

    Raises:
        ModelError: something reads integers that cannot be written so.
    """
    return _QdqWriter(model).write()


class _QdqWriter:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._taken = taken_names(self._graph)
        self._grids: dict[ir.Value, Grid] = {}
        self._scales: dict[ir.Value, tuple[ir.Value, ir.Value | None]] = {}
        """Of integer tensors the values that their nodes name, so that these stay the same."""
        self._floats: dict[ir.Value, ir.Value] = {}
        """What an integer tensor is once it is dequantized."""

    def write(self) -> int:
        num_written = 0
        for node in list(self._graph):
            if node.op_type in (QUANTIZE, DEQUANTIZE) and node.domain == MICROSOFT:
                node.domain = ""  # The same, in the domain of ONNX Runtime.
            if node.op_type == QUANTIZE and node.domain in DOMAINS:
                self._note(node.outputs[0], grid_of(node), node.inputs[1:])
            elif node.op_type == DEQUANTIZE and node.domain in DOMAINS:
                data = node.inputs[0]
                assert data is not None, "onnx's checker has seen it"
                maker = data.producer()
                if maker is not None and data not in self._grids and constant(data) is None:
                    raise ModelError(
                        f"node '{node.name}' (DequantizeLinear) reads integers that node '{maker.name}' "
                        f"({maker.op_type}) computes; run `trtforge export` on the model, which computes what follows "
                        "from constants, or quantize it again in the format QDQ"
                    )
                self._note(data, self._grids.get(data, grid_of(node)), node.inputs[1:])
            elif node.op_type in INTEGER_OPERATORS and node.domain in DOMAINS:
                self._write_operator(node, INTEGER_OPERATORS[node.op_type])
                num_written += 1
            elif any(value in self._grids for value in node.inputs if value is not None):
                self._write_mover(node)
                num_written += 1
        return num_written

    def _note(self, value: ir.Value, grid: Grid, constants: Any) -> None:
        self._grids.setdefault(value, grid)
        scale, zero_point = (*constants, None)[:2]
        assert scale is not None, "it was read"
        self._scales.setdefault(value, (scale, zero_point))

    def _write_operator(self, node: ir.Node, operator: IntegerOperator) -> None:
        """Floating-point operator between DequantizeLinears and a QuantizeLinear."""
        triples = operator.triples(node)
        has_output = len(triples) > len(operator.starts(node))
        for triple, start in zip(triples, (*operator.starts(node), operator.output)):
            value, scale, zero_point = triple
            assert value is not None, "onnx's checker has seen it"
            assert scale is not None, "it was read"
            self._note(value, grid_from(node, triple, operator.axis(node, start)), (scale, zero_point))
        _check(node, operator)
        inputs = [node.inputs[index] for index in operator.plain]
        inputs += [self._dequantized(value, node) for value, _, _ in triples[: len(triples) - has_output]]
        if operator.bias is not None and operator.bias < len(node.inputs):
            inputs.append(self._bias(node, operator.bias, [self._grids_of(triples[i][0]) for i in (0, 1)]))
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = [each for name, each in node.attributes.items() if name not in DROPPED]
        written = self._node(operator.floating, inputs, node, attributes)
        self._graph.insert_before(node, written)
        self._quantize(node, written, 0, is_integer=has_output)
        self._graph.remove(node, safe=True)

    def _grids_of(self, value: ir.Value | None) -> Grid:
        assert value is not None
        return self._grids[value]

    def _write_mover(self, node: ir.Node) -> None:
        """DequantizeLinear, the operator, QuantizeLinear, all of one grid."""
        data = node.inputs[0]
        is_moved = node.op_type in MOVERS and node.domain in ("", "ai.onnx") and data in self._grids
        if is_moved and (node.op_type, len(node.outputs)) == ("MaxPool", 2):
            is_moved = False
        if is_moved and node.op_type == "Resize":
            is_moved = attribute_string(node, "mode", "nearest") == "nearest"
        if node.op_type == "Concat":
            grids = [self._grids.get(value) for value in node.inputs if value is not None]
            is_moved = is_moved and all(grid is not None and grid.is_like(self._grids_of(data)) for grid in grids)
        if not is_moved or not self._grids_of(data).is_per_tensor:
            integers = next(value for value in node.inputs if value is not None and value in self._grids)
            raise ModelError(
                f"node '{node.name}' ({node.op_type}) computes on the integers of '{integers.name}', of which no "
                "DequantizeLinear comes before it; quantize the model again in the format QDQ"
            )
        assert data is not None
        inputs = list(node.inputs)
        for index in range(len(inputs) if node.op_type == "Concat" else 1):
            inputs[index] = self._dequantized(inputs[index], node)
        if node.op_type == "Pad":
            inputs = self._padded(node, inputs, self._grids[data])
        written = self._node(node.op_type, inputs, node, list(node.attributes.values()), len(node.outputs))
        self._graph.insert_before(node, written)
        for index, output in enumerate(node.outputs):
            self._note(output, self._grids[data], self._scales[data])
            self._quantize(node, written, index, is_integer=True)
        self._graph.remove(node, safe=True)

    def _padded(self, node: ir.Node, inputs: list[ir.Value | None], grid: Grid) -> list[ir.Value | None]:
        """Inputs of a Pad of floating-point numbers: the integer that it pads with as what it means."""
        if attribute_string(node, "mode", "constant") != "constant":
            return inputs
        value = node.inputs[2] if len(node.inputs) > 2 else None
        integer = np.zeros((), np.int64) if value is None else constant(value)
        if integer is None:
            raise ModelError(
                f"node '{node.name}' (Pad) pads integers with a number that is computed; quantize the model again in "
                "the format QDQ"
            )
        padding = add_initializer(self._graph, f"{node.name}_value", grid.dequantized(integer).reshape(()), self._taken)
        self._taken.add(padding.name or "")
        return [*inputs[:2], *[None] * (2 - len(inputs)), padding, *inputs[3:]]

    def _dequantized(self, value: ir.Value | None, reader: ir.Node) -> ir.Value:
        """The floating-point numbers of an integer tensor, by one DequantizeLinear for all."""
        assert value is not None
        if value not in self._floats:
            scale, zero_point = self._scales[value]
            inputs = [value, scale] if zero_point is None else [value, scale, zero_point]
            axis = [] if self._grids[value].is_per_tensor else [ir.AttrInt64("axis", self._grids[value].axis)]
            name = self._name((value.name or "").removesuffix(SUFFIX) + "_dequantized")
            node = ir.Node("", DEQUANTIZE, inputs, axis, name=name)
            node.outputs[0].name = name
            self._graph.insert_before(reader, node)
            self._floats[value] = node.outputs[0]
        return self._floats[value]

    def _quantize(self, node: ir.Node, written: ir.Node, index: int, *, is_integer: bool) -> None:
        """What was written gives what the node gave, integers where it gave such."""
        output = node.outputs[index]
        last = written.outputs[index]
        if is_integer:
            name = output.name or ""
            last.name = self._name(name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else f"{name}_float")
            scale, zero_point = self._scales[output]
            inputs = [last, scale] if zero_point is None else [last, scale, zero_point]
            quantize = ir.Node("", QUANTIZE, inputs, name=self._name(f"{name}_QuantizeLinear"))
            self._graph.insert_before(node, quantize)
            last = quantize.outputs[0]
            last.type = output.type
            self._grids[last], self._scales[last] = self._grids[output], self._scales[output]
        ir.convenience.replace_all_uses_with(output, last, replace_graph_outputs=True)
        last_name, output.name = output.name, None
        last.name = last_name

    def _bias(self, node: ir.Node, index: int, grids: list[Grid]) -> ir.Value | None:
        """The int32 bias, whose scale is the product of the other two, behind a DequantizeLinear."""
        bias = node.inputs[index]
        if bias is None:
            return None
        data, weight = grids
        scale = np.asarray(data.scale.reshape(()) * weight.scale, weight.scale.dtype)
        scale = scale.reshape(()) if scale.size == 1 else scale
        constants = (
            self._constant(f"{bias.name}_scale", scale),
            self._constant(f"{bias.name}_zero_point", np.zeros(scale.shape, np.int32)),
        )
        self._note(bias, Grid(scale, np.zeros(scale.shape, np.int64), "int32", 0), constants)
        return self._dequantized(bias, node)

    def _constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        value = add_initializer(self._graph, name, array, self._taken)
        self._taken.add(value.name or "")
        return value

    def _node(
        self, op_type: str, inputs: list[ir.Value | None], old: ir.Node, attributes: list[ir.Attr], num_outputs: int = 1
    ) -> ir.Node:
        name = self._name(f"{old.name}_{op_type}" if op_type != old.op_type else old.name or op_type)
        return ir.Node("", op_type, inputs, attributes, name=name, num_outputs=num_outputs)

    def _name(self, name: str) -> str:
        name = unique(name, self._taken)
        self._taken.add(name)
        return name


def _check(node: ir.Node, operator: IntegerOperator) -> None:
    if attribute_int(node, "channels_last", 0):
        raise ModelError(
            f"node '{node.name}' ({node.op_type}) has its channels last, which ONNX's operators do not; quantize "
            "the model again without that"
        )
    if operator.floating == "Softmax" and attribute_int(node, "opset", FIRST_SOFTMAX) < FIRST_SOFTMAX:
        shape = dimensions(node.inputs[0])
        axis = attribute_int(node, "axis", -1)
        if shape is None or axis % len(shape) != len(shape) - 1:
            raise ModelError(
                f"node '{node.name}' ({node.op_type}) is a Softmax over several axes; export the model in opset "
                f"{FIRST_SOFTMAX} or later, and quantize it again"
            )
