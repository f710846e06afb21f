"""Where ONNX Runtime's CPU kernels want Q/DQ: around each operator that it has an integer kernel for.

ONNX Runtime replaces DQ → operator → Q by one integer operator (its selectors are listed in
onnxruntime/core/optimizer/qdq_transformer/selectors_actions). So a convolution needs Q behind it, in contrast to
TensorRT; a Relu or Clip before that Q vanishes in it. Chains of such operators stay in integers all the way.

- Conv, MatMul and Gemm with a constant weight are quantized wherever they stand; weights per output channel, biases
  in int32 with scale(data) * scale(weight).
- Add, Mul, Concat, pools, Sigmoid, LeakyRelu, and operators that only move data, are quantized where integers come in
  and an integer operator reads the result, so that nothing is rounded for nothing.
- Weights that leave room for sums of two in 16 bits (``u8s7``) are for what ONNX Runtime computes as a matrix product;
  depthwise convolutions have kernels of their own, which do not add in 16 bits, and keep full int8. They keep 8 bits
  too where others have weights of 4 (which leave room for sums of two): there are few of them.
- Arithmetic by scalars on an input of the model, such as a picture's scaling, goes into the input's Q where its scale
  allows (``calibration.precision.input_arithmetic``).
- A MatMul or Gemm whose result nobody reads in integers gives float, which the last layer of a classifier does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calibration.graph.editing import attribute_int, constant
from calibration.precision.hard_sigmoid_levels import hard_sigmoid_levels
from calibration.precision.input_arithmetic import input_arithmetic
from calibration.precision.placement import (
    FULL_BITS,
    NodeInput,
    PlacementContext,
    QdqPlacement,
    QuantizedBias,
    QuantizedTensor,
    QuantizedWeight,
    is_float_weight,
    is_plain,
    readers_of,
    weight_axis,
    why_no_weight_scale,
)
from calibration.precision.scale import DataType, Quantization, asymmetric

PRODUCTS = ("Conv", "MatMul", "Gemm")
"""Those with an integer kernel; ConvTranspose has none."""
MOVERS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "MaxPool")
"""Give back values of their first input: input and output have one scale and zero point."""
ARITHMETIC = ("Add", "Mul", "Concat", "Sigmoid", "HardSigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool")
"""Have an integer kernel with scales of their own for inputs and output; a HardSigmoid is just another scale."""
POOLS = ("AveragePool", "GlobalAveragePool")
ABSORBED = ("Relu", "Clip")


def place(context: PlacementContext) -> QdqPlacement:
    """Decide the placement for ONNX Runtime on a CPU.

    Raises:
        DataError: a tensor that must be quantized has no range.
    """
    integer = _integer_nodes(context)
    weights: list[QuantizedWeight] = []
    biases: list[QuantizedBias] = []
    tensors: dict[str, ir.Value] = {}
    for node in context.graph:
        if node.name not in integer:
            continue
        for value in _data_inputs(node):
            tensors.setdefault(value.name or "", value)
        if node.op_type in PRODUCTS:
            _place_constants(context, node, weights, biases)
        if node.op_type not in ("MatMul", "Gemm") or _is_read_by(_end(node), integer):
            tensors.setdefault(_end(node).name or "", _end(node))
    nodes = tuple(name for name, node in integer.items() if node.op_type in PRODUCTS)
    quantized = tuple(_tensor(context, value, integer) for value in tensors.values())
    return QdqPlacement("onnxruntime", quantized, tuple(weights), tuple(biases), nodes, tuple(context.notes.values()))


def _integer_nodes(context: PlacementContext) -> dict[str, ir.Node]:
    """The nodes that run in integers, by name, in topological order."""
    integer: dict[str, ir.Node] = {}
    quantized: set[str] = set()
    for node in context.graph:
        if node.op_type in (*PRODUCTS, "ConvTranspose"):
            reason = "the user excluded it" if context.excluded(node) else _why_not(context, node)
            if reason is not None:
                context.leave(node, reason)
                continue
            quantized.update(value.name or "" for value in _data_inputs(node))
        elif not _joins_in(context, node, quantized):
            continue
        integer[node.name or ""] = node
        quantized.add(_end(node).name or "")
    for name, node in reversed(list(integer.items())):
        if node.op_type not in (*PRODUCTS, *POOLS) and not _is_read_by(_end(node), integer):
            del integer[name]
    return integer


def _why_not(context: PlacementContext, node: ir.Node) -> str | None:
    """Why a product stays FP32; None if it is quantized."""
    data, weight = node.inputs[0], node.inputs[1]
    if node.op_type == "ConvTranspose" or node.domain not in ("", "ai.onnx"):
        return "ONNX Runtime has no integer kernel for it on the CPU"
    if not is_float_weight(weight):
        return "its weight is not a float32 constant"
    if (reason := why_no_weight_scale(weight)) is not None:
        return reason
    if not context.is_activation(data):
        return "its input is not float32 data"
    if not is_plain(node):
        return "it has alpha, beta or transA"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant(node.inputs[2])
        if bias is None or bias.ndim != 1:
            return "its bias is not one constant for each channel"
        if not np.isfinite(bias).all():
            return "its bias has values that are infinite or NaN, which no scale holds"
    for value in _touched(node):
        if (reason := context.why_no_scale(value, node)) is not None:
            return reason
    return None


def _touched(node: ir.Node) -> list[ir.Value]:
    """The activations whose scales a node needs."""
    return [*_data_inputs(node), _end(node)]


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs of an integer node that carry quantized data."""
    num_data = len(node.inputs) if node.op_type in ("Add", "Mul", "Concat") else 1
    return [value for value in node.inputs[:num_data] if value is not None]


def _end(node: ir.Node) -> ir.Value:
    """The tensor that Q stands behind: the node's output, or that of the Relu or Clip which alone reads it."""
    output = node.outputs[0]
    uses = output.uses()
    if node.op_type in MOVERS or len(uses) != 1 or output.is_graph_output():
        return output
    reader = next(iter(uses)).node
    bounds_known = all(v is None or constant(v) is not None for v in reader.inputs[1:])
    if reader.op_type in ABSORBED and reader.graph is node.graph and bounds_known:
        return reader.outputs[0]
    return output


def _joins_in(context: PlacementContext, node: ir.Node, quantized: set[str]) -> bool:
    """Whether a node with an integer kernel gets all its data in integers."""
    if node.op_type not in (*MOVERS, *ARITHMETIC) or context.excluded(node) or node.domain not in ("", "ai.onnx"):
        return False
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    if node.op_type == "HardSigmoid" and hard_sigmoid_levels(node, _dtype(context)) is None:
        return False
    if not all(value.name in quantized and context.is_activation(value) for value in _data_inputs(node)):
        return False
    return all(context.why_no_scale(value, node) is None for value in _touched(node))


def _is_read_by(value: ir.Value, integer: dict[str, ir.Node]) -> bool:
    """Whether an integer node takes this value as data."""
    uses = value.uses()
    return any(use.node.name in integer and value in _data_inputs(use.node) for use in uses)


def _place_constants(
    context: PlacementContext, node: ir.Node, weights: list[QuantizedWeight], biases: list[QuantizedBias]
) -> None:
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    arithmetic = context.options.arithmetic
    dtype: DataType = "uint8" if arithmetic == "u8u8" else "int8"
    name = node.name or ""
    is_small = node.op_type == "Conv" and not _is_depthwise(node)
    bits = context.options.weight_bits if is_small else FULL_BITS
    in_pairs = arithmetic == "u8s7" and not _is_depthwise(node) and bits == FULL_BITS
    reader, axis = NodeInput(name, 1), weight_axis(node)
    weights.append(QuantizedWeight(weight.name or "", reader, axis, dtype, in_pairs, bits=bits))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        biases.append(QuantizedBias(bias.name or "", NodeInput(name, 2), data.name or ""))


def _is_depthwise(node: ir.Node) -> bool:
    """One channel in and one out for each group: such kernels multiply in 16 and add in 32 bits on any CPU."""
    weight = constant(node.inputs[1])
    return node.op_type == "Conv" and weight is not None and weight.shape[:2] == (attribute_int(node, "group", 1), 1)


def _dtype(context: PlacementContext) -> DataType:
    """Of activations."""
    return "int8" if context.options.arithmetic == "s8s8" else "uint8"


def _tensor(context: PlacementContext, value: ir.Value, integer: dict[str, ir.Node]) -> QuantizedTensor:
    source = value
    producer = source.producer()
    while producer is not None and producer.name in integer and producer.op_type in MOVERS:
        assert producer.inputs[0] is not None
        source = producer.inputs[0]
        producer = source.producer()
    dtype = _dtype(context)
    span, before = context.ranges[source.name or ""], input_arithmetic(source, context.excluded)
    quantization = asymmetric(span, dtype) if before is None else before.quantization(span, dtype)
    if (levels := hard_sigmoid_levels(source.producer(), dtype)) is not None:
        quantization = levels[1]
    assert isinstance(quantization, Quantization)
    is_output = value.is_graph_output() and not value.is_graph_input()  # An input that is given out stays as it came.
    name = source.name or ""
    is_fixed = before is not None or levels is not None or context.has_fixed_range(name)
    return QuantizedTensor(value.name or "", quantization, readers_of(value), is_output, name, is_fixed)
