"""The grids of a model that came quantized: scale and zero point of each of its tensors, as the nodes write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.editing import attribute_int, constant, nodes_of, opened
from calibration.quantized.operators import INTEGER_OPERATORS, MICROSOFT

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
DOMAINS = ("", "ai.onnx", MICROSOFT)
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}
"""The smallest and largest integer of the types that are read; int32 is that of biases."""
MIDDLE = {"int8": 0, "uint8": 128, "int32": 0}
"""The zero point at which a type is int8 with zero point 0."""


@dataclass(frozen=True)
class Grid:
    """x = (q - zero_point) * scale, of a whole tensor or of each channel along ``axis``."""

    scale: npt.NDArray[Any]
    """(), or (C,); float32, or float16 where the rest of the model is."""
    zero_point: npt.NDArray[np.int64]
    """Of the shape of ``scale``."""
    dtype: str
    axis: int = 0

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether it is int8 with zero point 0, or uint8 with 128, which is the same with other integers."""
        return bool(np.all(self.zero_point == MIDDLE[self.dtype]))

    @property
    def is_per_tensor(self) -> bool:
        """Whether one scale is that of all values."""
        return self.scale.size == 1

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value, of a tensor with one scale."""
        low, high = ((limit - self.zero_point.item()) * float(self.scale.item()) for limit in LIMITS[self.dtype])
        return low, high

    def is_like(self, other: Grid) -> bool:
        """Whether integers mean the same on both."""
        same_axis = self.is_per_tensor or self.axis == other.axis
        return (
            self.dtype == other.dtype
            and same_axis
            and np.array_equal(self.scale.ravel(), other.scale.ravel())
            and np.array_equal(self.zero_point.ravel(), other.zero_point.ravel())
        )

    def along(self, array: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
        """Scales or zero points, in the shape in which a tensor of that rank is divided by them."""
        shape = [1] * rank
        if not self.is_per_tensor:
            shape[self.axis % rank] = -1
        return array.reshape(shape)

    def dequantized(self, integers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The values of integers, in the type of the scale; to the bit what DequantizeLinear gives."""
        differences = integers.astype(np.int64) - self.along(self.zero_point, integers.ndim)
        values = differences.astype(np.float32) * self.along(self.scale.astype(np.float32), integers.ndim)
        return np.asarray(values.astype(self.scale.dtype))


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether there are Q/DQ nodes, or operators that compute on integers of fixed scales."""
    return any(map(is_read, nodes_of(model.graph)))


def is_read(node: onnx.NodeProto) -> bool:
    """Whether a node is one of those: of ONNX, or of ONNX Runtime's quantizer."""
    return node.domain in DOMAINS and (node.op_type in (QUANTIZE, DEQUANTIZE) or node.op_type in INTEGER_OPERATORS)


def is_told_by_tensor(model: onnx.ModelProto) -> bool:
    """Whether each rounding stands in the model by itself: in Q/DQ nodes around FP32, in no operator on integers."""
    half = onnx.TensorProto.FLOAT16
    nodes = list(nodes_of(model.graph))
    casts = any(node.op_type == "Cast" and node.attribute[0].i == half for node in nodes)
    halves = casts or any(tensor.data_type == half for tensor in model.graph.initializer)
    return not halves and not any(node.op_type in INTEGER_OPERATORS for node in nodes)


def grid_of(node: ir.Node) -> Grid:
    """Of a QuantizeLinear or DequantizeLinear.

    Raises:
        ModelError: scale or zero point are computed, wrong, or of a type that is not read.
    """
    integers = node.outputs[0] if node.op_type == QUANTIZE else node.inputs[0]
    if block := attribute_int(node, "block_size", 0):
        raise ModelError(
            f"node '{node.name}' has a scale for each block of {block} values, one for a tensor or a channel "
            "is expected; quantize the model again without blocks"
        )
    scale, zero_point = (*node.inputs[1:3], None)[:2]
    return grid_from(node, (integers, scale, zero_point), attribute_int(node, "axis", 1))


def grid_from(node: ir.Node, values: tuple[ir.Value | None, ir.Value | None, ir.Value | None], axis: int = 1) -> Grid:
    """Of the integers, the scale and the zero point that a node has beside each other.

    Raises:
        ModelError: as ``grid_of``.
    """
    integers, scale_value, zero_value = values
    scale, zero_point = constant(scale_value), constant(zero_value)
    for value, array in ((scale_value, scale), (zero_value, zero_point)):
        if value is not None and array is None:
            raise ModelError(
                f"node '{node.name}': its scale or zero point '{value.name}' is computed, a constant is expected; run "
                "`trtforge export` on it, or quantize the model again with scales that calibration fixes"
            )
    if scale is None:
        raise ModelError(f"node '{node.name}' ({node.op_type}) has no scale; export the model again")
    dtype = _type_of(node, integers, zero_point)
    finite = scale.astype(np.float64)
    if not (np.isfinite(finite).all() and (finite > 0).all()):
        worst = finite[~(np.isfinite(finite) & (finite > 0))].ravel()[0]
        raise ModelError(
            f"node '{node.name}' ({node.op_type}) has the scale {worst:g}, a positive number is expected; quantize the "
            "model again"
        )
    zeros = np.zeros(scale.shape, np.int64) if zero_point is None else zero_point.astype(np.int64)
    if zeros.size not in (1, scale.size) or scale.ndim > 1:
        raise ModelError(
            f"node '{node.name}' ({node.op_type}) has scales {scale.shape} and zero points {zeros.shape}, one for the "
            "tensor or one for each channel are expected; quantize the model again"
        )
    return Grid(
        scale, np.broadcast_to(zeros.reshape(-1) if scale.ndim else zeros.reshape(()), scale.shape), dtype, axis
    )


def _type_of(node: ir.Node, integers: ir.Value | None, zero_point: npt.NDArray[Any] | None) -> str:
    """The integer type, by the zero point, by what was inferred, or as ONNX has it without either."""
    inferred = None if integers is None or integers.dtype is None else integers.dtype.name.lower()
    name = inferred if zero_point is None else zero_point.dtype.name
    name = name or "uint8"
    if name not in LIMITS or (name == "int32" and node.op_type == QUANTIZE):
        raise ModelError(
            f"node '{node.name}' ({node.op_type}) is of {name.upper()}, of quantized models INT8 and UINT8 are taken; "
            "quantize it to these, or give the FP32 model"
        )
    return name


def check_quantized(model: onnx.ModelProto) -> None:
    """That all that is quantized can be read, and takes and gives floating-point numbers outside.

    Raises:
        ModelError: something cannot.
    """
    graph = opened(model).graph
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype is not None and value.dtype.name.lower() in ("int8", "uint8") and _is_scaled(value):
            raise ModelError(
                f"'{value.name}' is an {value.dtype.name} input or output with a scale, floating-point numbers are "
                "expected there; export the model so that it quantizes its inputs and dequantizes its outputs itself"
            )
    inner = {id(node) for node in graph.all_nodes()} - {id(node) for node in graph}
    has_activations = False
    for node in graph.all_nodes():
        if node.domain not in DOMAINS:
            continue
        if node.op_type in INTEGER_OPERATORS:
            has_activations = True
            for triple in INTEGER_OPERATORS[node.op_type].triples(node):
                grid_from(node, triple)
        elif node.op_type in (QUANTIZE, DEQUANTIZE):
            if id(node) in inner:
                raise ModelError(
                    f"node '{node.name}' ({node.op_type}) is in the body of a Loop, Scan or If, where it is not read; "
                    "quantize the model without these"
                )
            grid_of(node)
            has_activations |= node.op_type == QUANTIZE and constant(node.inputs[0]) is None
    if not has_activations:
        raise ModelError(
            f"{graph.name}: has weights in INT8 alone and computes in floating point, so that it is no INT8 model; "
            "give the FP32 model"
        )


def _is_scaled(value: ir.Value) -> bool:
    """Whether integers outside of the model have a scale in it."""
    producer = value.producer()
    makes = producer is not None and producer.op_type in (QUANTIZE, *INTEGER_OPERATORS)
    return makes or any(use.node.op_type in (DEQUANTIZE, *INTEGER_OPERATORS) for use in value.uses())


def quantizers(graph: ir.Graph, operator: str) -> Iterator[ir.Node]:
    """The nodes of the main graph that are a QuantizeLinear, or a DequantizeLinear."""
    return (node for node in graph if node.op_type == operator and node.domain in DOMAINS)
