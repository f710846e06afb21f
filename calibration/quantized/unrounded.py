"""A quantized model in FP32, without its rounding: what it would compute if it had infinitely many levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.editing import add_initializer, closed, constant, opened, take_place, taken_names, unique
from calibration.quantized.grids import DEQUANTIZE, QUANTIZE, Grid, grid_of, quantizers
from calibration.quantized.qdq_form import MOVERS, write_qdq

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without Q/DQ nodes; weights have the values that the file has.

    Weights that are stored as integers are what these mean, others are as they are stored. Of a tensor with another
    zero point than the middle the bounds stay, as a Clip: ONNX Runtime's quantizer leaves out a Relu or Clip in front
    of them, so that they may be the network's own. What is in FP16 becomes FP32.

    Raises:
        ModelError: see ``write_qdq``; or a tensor is quantized by channel, or read with another scale, in an unusual
            way.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    write_qdq(opened_model)
    taken = taken_names(graph)
    clipped: dict[ir.Node, ir.Value] = {}
    for node in list(quantizers(graph, DEQUANTIZE)):
        integers = node.inputs[0]
        assert integers is not None, "onnx's checker has seen it"
        array = constant(integers)
        if array is not None:
            values = grid_of(node).dequantized(array)
            _replace(graph, node, add_initializer(graph, f"{node.outputs[0].name}_values", values, taken), taken)
            continue
        quantize = integers.producer()
        if quantize is None or quantize.op_type != QUANTIZE:
            raise ModelError(
                f"node '{node.name}' (DequantizeLinear) reads '{integers.name}', which no QuantizeLinear gives; "
                "quantize the model again in the format QDQ"
            )
        grid = grid_of(quantize)
        if not grid.is_like(grid_of(node)):
            _replace(graph, node, _rescaled(graph, quantize, (grid, grid_of(node)), taken), taken)
            continue
        if quantize not in clipped:
            clipped[quantize] = _bounded(graph, quantize, grid, taken)
        _replace(graph, node, clipped[quantize], taken)
    _in_full(opened_model.graph)
    return closed(opened_model)


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value, taken: set[str]) -> None:
    """Everybody who read a node's output reads ``value``."""
    taken.add(value.name or "")
    output = node.outputs[0]
    if output.is_graph_output():
        identity = ir.Node("", "Identity", [value], name=unique(f"{output.name}_Identity", taken))
        graph.insert_before(node, identity)
        taken.add(identity.name or "")
        take_place(output, identity.outputs[0])
    else:
        ir.convenience.replace_all_uses_with(output, value)
    graph.remove(node, safe=True)


def _bounded(graph: ir.Graph, quantize: ir.Node, grid: Grid, taken: set[str]) -> ir.Value:
    """What a QuantizeLinear reads, within its bounds where these may be the network's own."""
    value = quantize.inputs[0]
    assert value is not None, "onnx's checker has seen it"
    if grid.is_symmetric or constant(value) is not None or _has_bounds(value, grid):
        return value
    if not grid.is_per_tensor:
        raise ModelError(
            f"node '{quantize.name}' has zero points for each channel of '{value.name}', one for all values is "
            "expected; quantize the model again"
        )
    return _node(graph, quantize, "Clip", (value, grid.bounds), taken)


def _has_bounds(value: ir.Value, grid: Grid) -> bool:
    """Whether values were brought within the same bounds already: by a node like that, and moved since."""
    producer = value.producer()
    while producer is not None and producer.op_type in MOVERS and producer.op_type not in ("Concat", "Pad"):
        value = producer.inputs[0]  # type: ignore[assignment]
        producer = value.producer()
    if producer is None or producer.op_type not in ("Clip", DEQUANTIZE):
        return False
    if producer.op_type == DEQUANTIZE:
        return grid_of(producer).is_like(grid)
    bounds = [constant(bound) for bound in producer.inputs[1:]]
    return [None if bound is None else float(bound) for bound in bounds] == [np.float32(b) for b in grid.bounds]


def _rescaled(graph: ir.Graph, quantize: ir.Node, grids: tuple[Grid, Grid], taken: set[str]) -> ir.Value:
    """What a value becomes that is quantized on one grid and read on another."""
    written, read = grids
    value = quantize.inputs[0]
    assert value is not None
    if not (written.is_per_tensor and read.is_per_tensor):
        raise ModelError(
            f"node '{quantize.name}': '{value.name}' is quantized by channel and read with other scales; quantize the "
            "model again"
        )
    value = _node(graph, quantize, "Clip", (value, written.bounds), taken)
    factor = float(read.scale.item()) / float(written.scale.item())
    shift = (int(written.zero_point.item()) - int(read.zero_point.item())) * float(read.scale.item())
    value = _node(graph, quantize, "Mul", (value, (factor,)), taken)
    return _node(graph, quantize, "Add", (value, (shift,)), taken)


def _node(
    graph: ir.Graph, before: ir.Node, op_type: str, inputs: tuple[ir.Value, Sequence[float]], taken: set[str]
) -> ir.Value:
    value, numbers = inputs
    name = unique(f"{value.name}_{op_type}", taken)
    taken.add(name)
    constants = []
    for index, number in enumerate(numbers):
        constants.append(add_initializer(graph, f"{name}_{index}", np.array(number, np.float32), taken))
        taken.add(constants[-1].name or "")
    node = ir.Node("", op_type, [value, *constants], name=name)
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    graph.insert_before(before, node)
    return node.outputs[0]


def _in_full(graph: ir.Graph) -> None:
    """FP32 for all that is FP16, outputs included; inputs keep their types, with a Cast."""
    for value in list(graph.initializers.values()):
        if value.dtype == HALF:
            array = constant(value)
            assert array is not None, "an initializer has one"
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            value.type = ir.TensorType(FULL)
    halves = [value for value in graph.inputs if value.dtype == HALF]
    for node in graph.all_nodes():
        for output in node.outputs:
            if output.dtype == HALF:
                output.type = ir.TensorType(FULL)
        attribute = node.attributes.get("to")
        if node.op_type == "Cast" and attribute is not None and attribute.as_int() == HALF:
            node.attributes["to"] = ir.AttrInt64("to", FULL)
        tensor = node.attributes.get("value")
        if node.op_type == "ConstantOfShape" and tensor is not None and tensor.as_tensor().dtype == HALF:
            full: npt.NDArray[Any] = tensor.as_tensor().numpy().astype(np.float32)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(full))
    for value in halves:
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", FULL)], name=f"{value.name}_Cast")
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(FULL), value.shape
        cast.outputs[0].name = f"{value.name}_full"
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        cast.replace_input_with(0, value)
        graph.insert_before(graph[0], cast)
