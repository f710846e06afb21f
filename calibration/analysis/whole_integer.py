"""The network in integers throughout, rounded in float: each tensor that a full-integer runtime keeps, as LiteRT does.

Its files round each tensor that an operator makes: the operators of ONNX that one of TensorFlow Lite's computes at once
make one (a product, what is added to it and multiplied by constants, and its Relu or Clip), and what only moves values
rounds nothing again. Data is asymmetric in 8 bits and symmetric in 16 ("LiteRT 8-bit quantization specification"),
weights are symmetric in 8 bits or 4, with a scale for each channel or one for all. What XNNPACK and LiteRT's own
kernels make of sums, exact 32-bit integers that are rounded once by a fixed-point multiplier or a float, is within half
a level of each tensor: the steps that are drawn are farther apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from calibration.analysis.rounding import rounded_from_onnx
from calibration.graph.editing import attribute_int, constant, from_constants, opened
from calibration.precision.bounds import MOVING
from calibration.precision.dynamic import FoundScales
from calibration.precision.placement import (
    FULL_BITS,
    MATRIX_PRODUCTS,
    PRODUCTS,
    NodeInput,
    QdqPlacement,
    QuantizedTensor,
    QuantizedWeight,
    is_float_weight,
    readers_of,
    span_in_model,
    weight_axis,
)
from calibration.precision.scale import SMALLEST_SCALE, DataType, Quantization, asymmetric
from calibration.ranges.span import Span

MOVERS = (*MOVING, "MaxPool", "GlobalMaxPool", "Slice", "Gather", "Split", "Expand", "Tile", "Pad")
"""Give back values of their first input, in its scale."""
FUSED = ("Add", "Sub", "Mul", "Div", "BatchNormalization")
"""With constants, behind a product, they become its weight and bias."""
POOLS = ("AveragePool", "GlobalAveragePool")
"""Their results have the scale of their data, whose range is wider; a mean over a picture that is none of TensorFlow
Lite's pools has one of its own, but cannot be told from one in ONNX."""
ACTIVATIONS = ("Relu", "Clip")
BEFORE_ACTIVATIONS = (*PRODUCTS, *FUSED, *POOLS)
"""What an activation is computed with at once."""
LARGEST_OF_16_BITS = 32767


@dataclass(frozen=True)
class WholeInteger:
    """What such files are written with."""

    data_bits: int = 8
    """Of tensors: 8, or 16."""
    weight_bits: int = FULL_BITS
    """Of weights: 8; or 4 for those of matrix products and of convolutions that are not depthwise."""
    one_scale: tuple[str, ...] = ()
    """Operators whose weights have one scale, and not one for each channel."""


class WholeIntegerNetwork:
    """The network with the steps of all its tensors as inputs: one session for any ranges."""

    def __init__(self, model: onnx.ModelProto, options: WholeInteger, spans: Mapping[str, Span]) -> None:
        """``spans`` are any ranges of the model, of every tensor.

        Raises:
            ModelError: the result is not valid ONNX.
        """
        self._graph, self._options = opened(model).graph, options
        rounded = rounded_from_onnx(model, None, lambda graph: place_throughout(graph, options, spans))
        self.model, self._prefixes = rounded.model, dict(zip(rounded.placed, rounded.steps, strict=True))

    def steps(self, spans: Mapping[str, Span]) -> dict[str, Quantization]:
        """How each tensor is quantized with these ranges, by the prefix of its inputs; see ``steps_feed``.

        One that these ranges know to be 0 throughout has a step as small as there is.
        """
        zero = Quantization(SMALLEST_SCALE, 0, _dtype(self._options))
        placed = {
            each.tensor: each.quantization for each in place_throughout(self._graph, self._options, spans).tensors
        }
        return {prefix: placed.get(tensor, zero) for tensor, prefix in self._prefixes.items()}


def place_throughout(graph: ir.Graph, options: WholeInteger, spans: Mapping[str, Span]) -> QdqPlacement:
    """Where such a file rounds: every tensor that has a range above 0, unless it is one with the next, and weights."""
    fixed = from_constants(graph)
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    tensors = []
    for value in values:
        if value.dtype != ir.DataType.FLOAT or value.name in fixed or value.name not in spans:
            continue
        if _is_moved(value) or _goes_on(value):
            continue
        how = _quantization(_span(value, spans), options)
        if how is not None:
            is_output = value.is_graph_output() and not value.is_graph_input()
            tensors.append(QuantizedTensor(value.name or "", how, readers_of(value), is_output))
    weights = tuple(_weight(node, options) for node in _products(graph))
    return QdqPlacement("onnxruntime", tuple(tensors), weights, (), (), ())


def _span(value: ir.Value, spans: Mapping[str, Span]) -> Span:
    """The range that its scale is of: of an average pool's result that of its data."""
    producer = value.producer()
    if producer is not None and producer.op_type in POOLS and producer.inputs[0] is not None:
        return spans.get(producer.inputs[0].name or "", spans[value.name or ""])
    return span_in_model(producer, spans[value.name or ""])


def throughout(model: onnx.ModelProto, weight_bits: int, one_scale: tuple[str, ...]) -> FoundScales:
    """Dynamic-range INT8 as such files have it: all products with a constant weight, and their data.

    Of depthwise convolutions weights alone, which are restored for a kernel in FP32. One of a single channel cannot be
    told from a plain one, as which it counts: the bound is the looser for it.
    """
    options = WholeInteger(weight_bits=weight_bits, one_scale=one_scale)
    products = _products(opened(model).graph)
    weights = tuple(_weight(node, options) for node in products)
    return FoundScales(weights, frozenset(node.name or "" for node in products if not _is_depthwise(node)))


def _is_depthwise(node: ir.Node) -> bool:
    """Whether each group has one channel of the data."""
    weight = constant(node.inputs[1])
    return (
        node.op_type == "Conv" and attribute_int(node, "group", 1) > 1 and weight is not None and weight.shape[1] == 1
    )


def _products(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type in PRODUCTS and is_float_weight(node.inputs[1])]


def _quantization(span: Span, options: WholeInteger) -> Quantization | None:
    if not span.is_finite or span.amax == 0.0:
        return None
    if options.data_bits == FULL_BITS:
        return asymmetric(span, "int8")
    amax = max(abs(span.min), abs(span.max))  # Such data is not clipped: levels are many.
    return Quantization(float(np.float32(amax / LARGEST_OF_16_BITS)), 0, "int16") if amax else None


def _dtype(options: WholeInteger) -> DataType:
    return "int8" if options.data_bits == FULL_BITS else "int16"


def _weight(node: ir.Node, options: WholeInteger) -> QuantizedWeight:
    weight = node.inputs[1]
    assert weight is not None
    axis = None if node.op_type in options.one_scale else weight_axis(node)
    is_small = node.op_type in MATRIX_PRODUCTS or attribute_int(node, "group", 1) == 1
    bits = options.weight_bits if is_small else FULL_BITS
    reader = NodeInput(node.name or "", 1)
    return QuantizedWeight(weight.name or "", reader, axis, "int8", bits=bits, is_cut=bits != FULL_BITS)


def _is_moved(value: ir.Value) -> bool:
    """Whether its values are those of another tensor, which are rounded already."""
    producer = value.producer()
    return producer is not None and producer.op_type in MOVERS


def _goes_on(value: ir.Value) -> bool:
    """Whether the next operator is computed at once with the one that makes it."""
    producer, uses = value.producer(), value.uses()
    if producer is None or len(uses) != 1 or value.is_graph_output():
        return False
    reader = next(iter(uses)).node
    if reader.op_type in ACTIVATIONS:
        return producer.op_type in BEFORE_ACTIVATIONS
    others = [each for each in reader.inputs if each is not None and each is not value]
    is_constant = all(constant(each) is not None for each in others)
    return reader.op_type in FUSED and is_constant and _is_of_product(producer)


def _is_of_product(node: ir.Node) -> bool:
    """Whether it is a product, or what is added to one or multiplied with by constants."""
    if node.op_type in PRODUCTS:
        return True
    above = [value.producer() for value in node.inputs if value is not None and constant(value) is None]
    return node.op_type in FUSED and len(above) == 1 and above[0] is not None and _is_of_product(above[0])
