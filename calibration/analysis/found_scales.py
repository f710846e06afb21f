"""The network with scales of data that are found at each run, rounded in float: dynamic-range INT8.

Weights are rounded as they are going to be; data in front of a product of integers is rounded in 256 levels from its
own least to its own largest value, with 0 among them, as ONNX's DynamicQuantizeLinear has it. LiteRT's kernels do
alike, or in 255 levels up to the largest magnitude, which are up to twice as wide; so are those of a batch, which has
one range, for a sample of it that is small beside the others. So a step is drawn from 0.84 times that of the sample to
twice as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from calibration.analysis.rounding import Rounded
from calibration.graph.editing import (
    add_initializer,
    change_constant,
    closed,
    from_constants,
    opened,
    taken_names,
    unique,
)
from calibration.graph.fold import split_bias
from calibration.precision.dynamic import FoundScales, by_channel, in_blocks
from calibration.precision.placement import PRODUCTS, is_float_weight
from calibration.precision.scale import SMALLEST_SCALE
from calibration.precision.weights import rounded_weight

INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
OF_BLOCKS = "MatMulNBits"
"""ONNX Runtime's operator for weights of 4 bits."""


def with_found_scales(model: onnx.ModelProto, what: FoundScales) -> Rounded:
    """The FP32 model with that rounding; the tensors of the network keep their names.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    fixed, taken = from_constants(graph), taken_names(graph)
    nodes = {node.name or "": node for node in graph}
    values = [*graph.inputs, *(value for node in nodes.values() for value in node.outputs)]
    names = {v.name or "": v.name or "" for v in values if v.dtype == ir.DataType.FLOAT and v.name not in fixed}
    shares: dict[str, ir.Value] = {}
    rounded: dict[str, ir.Value] = {}
    for weight in what.weights:
        node = nodes[weight.reader.node]
        if weight.block and node.op_type == "Gemm":
            node = split_bias(graph, node)
        array = rounded_weight(node, weight).values
        name = unique(f"{weight.tensor}_rounded", taken)
        taken.add(name)
        change_constant(graph, node, weight.reader.index, array, name)
        data = node.inputs[0]
        if weight.reader.node in what.in_integers and data is not None:
            key = data.name or ""
            if key not in rounded:
                rounded[key], share = _rounded(graph, data, taken)
                shares[share.name or ""] = share
            node.replace_input_with(0, rounded[key])
    return Rounded(closed(opened_model), (), {}, names, names, {}, {}, tuple(shares))


def _rounded(graph: ir.Graph, data: ir.Value, taken: set[str]) -> tuple[ir.Value, ir.Value]:
    """The data in levels of its own range, and the input that says what part of the range a level is."""

    def named(suffix: str) -> str:
        name = unique(f"{data.name}_{suffix}", taken)
        taken.add(name)
        return name

    share = ir.Value(name=named("share"), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    graph.inputs.append(share)
    zero, smallest = (
        add_initializer(graph, named(word), np.array(number, np.float32), ())
        for word, number in (("zero", 0.0), ("smallest", SMALLEST_SCALE))
    )
    nodes: list[ir.Node] = []

    def node(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        listed = [ir.AttrInt64(name, number) for name, number in attributes.items()]
        made = ir.Node("", operator, list(inputs), listed, name=named(operator))
        made.outputs[0].name, made.outputs[0].type = named(operator.lower()), ir.TensorType(ir.DataType.FLOAT)
        nodes.append(made)
        return made.outputs[0]

    high = node("Max", node("ReduceMax", data, keepdims=0), zero)
    low = node("Min", node("ReduceMin", data, keepdims=0), zero)
    step = node("Max", node("Mul", node("Sub", high, low), share), smallest)
    result = node("Mul", node("Round", node("Div", data, step)), step)
    producer = data.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    return result, share


def found_scales_in(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> FoundScales:
    """Where a model in dynamic-range INT8 rounds what the FP32 model has, by the names of its tensors."""
    producers = {name: node for node in candidate.graph.node for name in node.output if name}
    integers = {tensor.name for tensor in candidate.graph.initializer if tensor.data_type in INTEGERS}
    known = {name for node in reference.graph.node for name in node.output}
    known |= {value.name for value in reference.graph.input}
    weights, in_integers = [], set()
    for node in opened(reference).graph:
        name, output = node.name or "", node.outputs[0].name or ""
        if node.op_type not in PRODUCTS or output not in producers or not is_float_weight(node.inputs[1]):
            continue
        behind = list(_behind(producers[output], producers, known))
        blocks = [attribute.i for each in behind for attribute in each.attribute if attribute.name == "block_size"]
        if any(each.op_type in ("DynamicQuantizeLinear", OF_BLOCKS) for each in behind):
            in_integers.add(name)
        elif not any(each.op_type == "Cast" and each.input[0] in integers for each in behind):
            continue
        weights.append(in_blocks(node, blocks[0]) if blocks else by_channel(node))
    return FoundScales(tuple(weights), frozenset(in_integers))


def _behind(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], known: Collection[str]
) -> Iterator[onnx.NodeProto]:
    """A node, and those above it up to the tensors that FP32 has."""
    yield node
    for name in node.input:
        if name in producers and name not in known:
            yield from _behind(producers[name], producers, known)
