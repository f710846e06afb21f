"""What a placement is: which tensors, weights and biases of a graph get Q/DQ. Deciding it is up to each target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.errors import DataError
from calibration.graph.editing import attribute_float, attribute_int, constant, is_constant
from calibration.precision.scale import NUM_LEVELS, SMALLEST_SCALE, Arithmetic, DataType, Quantization
from calibration.ranges.span import Span

PlacementTarget = Literal["tensorrt", "onnxruntime"]

RoundingMethod = Literal["squant", "nearest", "gptq"]
"""How weights are rounded: kernels keep their sums, each weight to the nearest, or by what the data says of sums."""

AttentionChoice = Literal["rest", "fused", "int8"]
"""``rest``: as what is not INT8, but where a model has no other products. ``fused``: INT8 where TensorRT has one kernel
for the whole of it."""

SmallProductChoice = Literal["rest", "int8"]
"""``rest``: as what is not INT8, but where a model has no other products."""

FIXED_SPANS = {"Softmax": Span(1.0, 0.0, 1.0)}
"""Operators whose outputs have a range by definition. Calibration would do harm: of attention, where most values are
next to 0, entropy keeps a half."""

RECURRENT = ("GRU", "LSTM", "RNN")
CONVOLUTIONS, MATRIX_PRODUCTS = ("Conv", "ConvTranspose"), ("MatMul", "Gemm")
PRODUCTS = (*CONVOLUTIONS, *MATRIX_PRODUCTS)
"""The operators that INT8 is about: their first input is data, the second a weight (or data, in a MatMul)."""


FULL_BITS = 8
"""Of weights, unless they are of 4 bits."""


@dataclass(frozen=True, eq=False)
class ChosenCodes:
    """The codes that a weight is rounded to."""

    codes: npt.NDArray[np.int16]
    """In the weight's shape."""
    scales: npt.NDArray[np.float32]
    """That they were chosen for; as in ``RoundedWeight``."""


@dataclass(frozen=True, eq=False)
class CodesByNode:
    """The codes of all weights that were chosen by data."""

    digest: str = ""
    """SHA-256 (hex) of what they were read from; empty: there are none."""
    by_node: Mapping[str, ChosenCodes] = field(default_factory=dict, repr=False)
    """By the name of the product."""


@dataclass(frozen=True)
class PlacementOptions:
    """What the user may choose."""

    target: PlacementTarget = "tensorrt"
    exclude: tuple[str, ...] = ()
    """Names or operator types of nodes that stay FP32."""
    arithmetic: Arithmetic = "u8s7"
    """For ``onnxruntime``: the default is right on any CPU; ``arithmetic_for`` finds the best one for a given CPU."""
    attention: AttentionChoice = "rest"
    """For ``tensorrt``: the products of query and key, and of attention and values."""
    small_products: SmallProductChoice = "rest"
    """For ``tensorrt``: matrix products with fewer terms or outputs than its INT8 kernels multiply at a time."""
    nearest: bool = False
    """Weights are rounded to the nearest and biases left alone, as where they were trained so."""
    weight_bits: int = FULL_BITS
    """8, or 4 for those weights for which the target has kernels."""
    block_size: int = 0
    """Weights of 4 bits in a row of a matrix product's sum that share a scale; 0: as the target has them by default."""
    rounding: RoundingMethod = "squant"
    """Of weights; ``gptq`` is that of ``chosen``, and others are rounded as by ``squant``."""
    chosen: CodesByNode | None = None
    """Codes of weights; not part of a stage's options, but read from one of its inputs."""


@dataclass(frozen=True)
class NodeInput:
    """One input of one node."""

    node: str
    index: int


@dataclass(frozen=True)
class QuantizedTensor:
    """One Q/DQ pair behind an activation tensor."""

    tensor: str
    quantization: Quantization
    readers: tuple[NodeInput, ...]
    """Who reads the dequantized value; everybody else goes on reading the tensor itself."""
    is_output: bool = False
    """The model's output of this name is the dequantized value."""
    scale_of: str = ""
    """A name for the tensors that share this scale: what changes it for one must change it for all."""
    is_fixed: bool = False
    """The scale follows from the graph, such as that of a Softmax, and must stay as it is."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A constant with a scale of its own for each channel along ``axis``, or one for all."""

    tensor: str
    reader: NodeInput
    axis: int | None
    dtype: DataType
    in_pairs: bool = False
    """Two products of it are added in 16 bits, which its scales leave room for."""
    keeps_sums: bool = False
    """Rounding keeps the sums of a convolution's kernels, see ``calibration.precision.weights``."""
    data_means: tuple[float, ...] = ()
    """Of each channel of the data that it is multiplied by; none where they are not known."""
    bits: int = FULL_BITS
    block: int = 0
    """Rows of a matrix (K, C) that share a scale in each column; 0: all that ``axis`` says."""
    is_cut: bool = False
    """The largest values are cut where the rest is so much finer that the whole is nearer (of 4 bits)."""
    chosen: ChosenCodes | None = None
    """What it is rounded to, where that was chosen by data."""
    data_scale: float = 0.0
    """Of the data, where the bias is in int32 with a scale of data times weight; 0: there is no such bias."""


@dataclass(frozen=True)
class QuantizedBias:
    """A bias in int32 whose scale is that of the data times that of the weight of the same node."""

    tensor: str
    reader: NodeInput
    data: str


@dataclass(frozen=True)
class QdqPlacement:
    """The whole decision for one model and one target."""

    target: PlacementTarget
    tensors: tuple[QuantizedTensor, ...]
    weights: tuple[QuantizedWeight, ...]
    biases: tuple[QuantizedBias, ...]
    nodes: tuple[str, ...]
    """Names of the convolutions and matrix products whose inputs are all quantized, or whose weight is of 4 bits."""
    notes: tuple[str, ...]
    """Sentences: which convolutions and matrix products stay FP32, and why."""


@dataclass(frozen=True)
class PlacementContext:
    """What a placement is decided from: graph, ranges and options; and the notes that come up on the way."""

    graph: ir.Graph
    ranges: Mapping[str, Span]
    options: PlacementOptions
    fixed: frozenset[str]
    """Names of the values that do not depend on the model's inputs."""
    fixed_ranges: frozenset[str] = frozenset()
    """Names of the tensors that have a range by definition, see ``fixed_span``."""
    notes: dict[str, str] = field(default_factory=dict)
    """Node name -> why it stays FP32."""

    def nodes(self) -> Iterator[ir.Node]:
        """Nodes of the graph that are ONNX's own and not excluded, in topological order."""
        for node in self.graph:
            if node.domain in ("", "ai.onnx") and not self.excluded(node):
                yield node

    def excluded(self, node: ir.Node) -> bool:
        """Whether the user wants this node in FP32."""
        return node.op_type in self.options.exclude or node.name in self.options.exclude

    def is_activation(self, value: ir.Value | None) -> bool:
        """Whether a value is float32 data that depends on the model's inputs."""
        return value is not None and value.dtype in (None, ir.DataType.FLOAT) and value.name not in self.fixed

    def span(self, value: ir.Value, node: ir.Node) -> Span:
        """The range of an activation that ``node`` needs.

        Raises:
            DataError: calibration has none.
        """
        name = value.name or ""
        if name not in self.ranges:
            raise DataError(
                f"ranges: node '{node.name}' needs the range of '{name}', calibration has none; "
                "calibrate this model again, or exclude the node"
            )
        return self.ranges[name]

    def has_fixed_range(self, name: str) -> bool:
        """Whether a tensor's range follows from what makes it, and is not the user's."""
        return name in self.fixed_ranges and not (name in self.ranges and self.ranges[name].is_set)

    def why_no_scale(self, value: ir.Value, node: ir.Node) -> str | None:
        """Why an activation that ``node`` needs has no scale; None if it has one.

        Raises:
            DataError: calibration has no range of it.
        """
        span = self.span(value, node)
        if not span.is_finite:
            return f"'{value.name}' has values on the calibration data that are infinite or NaN, which no scale holds"
        return None if span.amax > 0.0 else f"'{value.name}' was 0 throughout calibration, which gives no scale"

    def leave(self, node: ir.Node, why: str) -> None:
        """Note that a node stays FP32; the first reason counts."""
        self.notes.setdefault(node.name or "", stays_fp32(node, why))


def stays_fp32(node: ir.Node, why: str) -> str:
    """The sentence on a node that is not written in INT8."""
    return f"node '{node.name}' ({node.op_type}) stays FP32: {why}"


def recurrent_weights(graph: ir.Graph) -> Iterator[tuple[ir.Node, str]]:
    """Recurrent layers, and half a sentence on why their weights stay as they are."""
    for node in graph:
        if node.op_type in RECURRENT and node.domain in ("", "ai.onnx"):
            arrays = [constant(value) for value in node.inputs[1:3]]
            kib = sum(array.nbytes for array in arrays if array is not None) / 1024
            yield node, f"no recurrent layer is placed in INT8, so that its weights of {kib:,.0f} KiB stay"


def fixed_span(node: ir.Node | onnx.NodeProto | None) -> Span | None:
    """The range that what a node makes has by definition, whatever calibration saw of it."""
    return FIXED_SPANS.get(node.op_type) if node is not None and node.domain in ("", "ai.onnx") else None


def span_in_model(node: ir.Node | onnx.NodeProto | None, span: Span) -> Span:
    """The range that a placement takes for what a node makes: the user's, or that by definition, or ``span`` itself."""
    fixed = fixed_span(node)
    return span if fixed is None or span.is_set else replace(fixed, channel_means=span.channel_means)


def is_plain(node: ir.Node) -> bool:
    """Whether a product is data times weight plus bias, and nothing is scaled or turned."""
    scaled = attribute_float(node, "alpha", 1.0) != 1.0 or attribute_float(node, "beta", 1.0) != 1.0
    return not scaled and not attribute_int(node, "transA", 0)


def weight_axis(node: ir.Node) -> int | None:
    """The axis of a product's weight that counts output channels; None for one scale over the whole weight.

    The weight of a grouped ConvTranspose is (C_in, C_out / groups, …): its scales are shared by the groups. A MatMul
    of more than two dimensions has one weight for each batch, and one scale for all.
    """
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    if node.op_type == "Gemm":
        return 0 if attribute_int(node, "transB", 0) else 1
    weight = constant(node.inputs[1])
    return 1 if weight is not None and weight.ndim == 2 else None


def is_float_weight(value: ir.Value | None) -> bool:
    """Whether this is a constant of type float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT and is_constant(value)


def why_no_weight_scale(value: ir.Value | None) -> str | None:
    """Why a constant weight has no scale of INT8; None if it has one, or is no constant."""
    array = constant(value)
    if value is None or array is None:
        return None
    low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"its weight '{value.name}' has values that are infinite or NaN, which no scale holds"
    if 0.0 < max(-low, high) < SMALLEST_SCALE * NUM_LEVELS:
        return f"its weight '{value.name}' reaches {max(-low, high):.3g}, below what scales in float32 can hold"
    return None


def readers_of(value: ir.Value) -> tuple[NodeInput, ...]:
    """All readers of a value in its own graph, in topological order."""
    uses = [use for use in value.uses() if use.node.graph is value.graph and value.graph is not None]
    if len(uses) > 1:
        order = {id(node): index for index, node in enumerate(value.graph or ())}
        uses.sort(key=lambda use: (order[id(use.node)], use.idx))
    return tuple(NodeInput(use.node.name or "", use.idx) for use in uses)
