"""Are the scales in a Q/DQ model those that its ranges say?"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from calibration.graph.external_data import array_of
from calibration.precision.hard_sigmoid_levels import hard_sigmoid_result
from calibration.precision.input_arithmetic import MOVERS, aligned
from calibration.precision.placement import PlacementTarget, span_in_model
from calibration.precision.placement_onnxruntime import MOVERS as GIVE_BACK
from calibration.precision.scale import DataType, Quantization, asymmetric, symmetric
from calibration.ranges.span import Span

CLOSE, CLOSE_IN_FP16 = 1e-5, 1e-3
"""Scales that differ by no more than this share are equal: tools round them in different orders."""


@dataclass(frozen=True)
class ScaleMismatch:
    """A quantized tensor whose scale is not what its range says."""

    node: str
    """The DequantizeLinear."""
    tensor: str
    scale: float
    expected: float

    def sentence(self) -> str:
        """Tensor, node, both scales."""
        return (
            f"tensor '{self.tensor}' is quantized (node '{self.node}') with scale {self.scale:.6g}, "
            f"{self.scale / self.expected:.3g} times the {self.expected:.6g} of its calibrated range"
        )


def scale_mismatches(model: onnx.ModelProto, spans: Mapping[str, Span]) -> Iterator[ScaleMismatch]:
    """Quantized tensors of a Q/DQ model whose scale is not that of their range, in the model's order.

    A larger scale is right if it is another tensor's: those that are joined, such as by Concat, share the largest. What
    only gives values of its data back, such as a MaxPool, has the scale of its data, whatever its own range is. Tensors
    without a range, and weights, are passed over.
    """
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output if name}
    mismatches: list[ScaleMismatch] = []
    fitting: list[float] = []
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in producers:
            continue
        quantize, actual = producers[node.input[0]], quantization(node, arrays)
        if _keeps_bytes(model, quantize, (producers, arrays)):
            continue
        source = quantize.input[0]
        tensor = node.output[0] if node.output[0] in spans else source
        if actual is None or source in arrays or tensor not in spans:
            continue
        if _given_back(quantize, producers, arrays) == actual:
            fitting.append(actual.scale)
            continue
        span = span_in_model(producers.get(source), spans[tensor])
        expected = [how.scale for how in _possible(span, actual, quantization(quantize, arrays))]
        is_half = arrays[node.input[1]].data_type == onnx.TensorProto.FLOAT16
        close = CLOSE_IN_FP16 if is_half else CLOSE
        if any(math.isclose(actual.scale, scale, rel_tol=close) for scale in expected):
            fitting.append(actual.scale)
        elif expected:
            mismatches.append(
                ScaleMismatch(node.name or f"DequantizeLinear_{node.output[0]}", tensor, actual.scale, expected[0])
            )
    for mismatch in mismatches:
        if mismatch.scale < mismatch.expected or not any(
            math.isclose(mismatch.scale, scale, rel_tol=CLOSE) for scale in fitting
        ):
            yield mismatch


def _given_back(
    quantize: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], arrays: Mapping[str, onnx.TensorProto]
) -> Quantization | None:
    """The levels of the data whose values are quantized again; None where that was computed with, or has none."""
    node = producers.get(_moved_from(quantize.input[0], producers, GIVE_BACK))
    return quantization(node, arrays) if node is not None and node.op_type == "DequantizeLinear" else None


def _moved_from(name: str, producers: Mapping[str, onnx.NodeProto], movers: Collection[str]) -> str:
    """The tensor that these operators made a tensor of; itself where none did."""
    while (node := producers.get(name)) is not None and node.op_type in movers:
        name = node.input[0]
    return name


def _keeps_bytes(
    model: onnx.ModelProto,
    last: onnx.NodeProto,
    by_name: tuple[Mapping[str, onnx.NodeProto], Mapping[str, onnx.TensorProto]],
) -> bool:
    """Whether what a DequantizeLinear reads are the bytes of an input, each a level of its own whatever the range.

    ``by_name``: the nodes that make tensors, and the constants.
    """
    producers, arrays = by_name
    if last.op_type == "QuantizeLinear" and ((how := quantization(last, arrays)) is None or how.scale != 1.0):
        return False
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    return inputs.get(_moved_from(last.input[0], producers, (*MOVERS, "Cast"))) == onnx.TensorProto.UINT8


def target_of(model: onnx.ModelProto) -> PlacementTarget:
    """Whom the Q/DQ nodes of a model are placed for: only TensorRT's are all int8 with zero points of 0."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and len(node.input) > 2 and node.input[2] in arrays:
            zero_point = arrays[node.input[2]]
            if zero_point.data_type != onnx.TensorProto.INT8 or array_of(zero_point).any():
                return "onnxruntime"
    return "tensorrt"


def quantization(node: onnx.NodeProto, arrays: Mapping[str, onnx.TensorProto]) -> Quantization | None:
    """Scale and zero point of a Q or DQ; None unless they are constants of 8 bits, one for the whole tensor."""
    if len(node.input) < 2 or node.input[1] not in arrays:
        return None
    scale = array_of(arrays[node.input[1]]).astype(np.float64)
    has_zero_point = len(node.input) > 2 and node.input[2] in arrays
    zero_point = array_of(arrays[node.input[2]]) if has_zero_point else np.zeros(1, np.uint8)
    if scale.size != 1 or zero_point.dtype not in (np.int8, np.uint8):
        return None
    dtype: DataType = "int8" if zero_point.dtype == np.int8 else "uint8"
    return Quantization(float(scale.ravel()[0]), int(zero_point.ravel()[0]), dtype)


def _possible(span: Span, actual: Quantization, before: Quantization | None) -> list[Quantization]:
    """What a range may become in the type that was found: the likelier first.

    ``before``: of the QuantizeLinear, which does an input's arithmetic where its scale is another.
    """
    both = [asymmetric(span, actual.dtype), symmetric(span)]
    if actual.dtype == "int8" and actual.zero_point == 0:
        both.reverse()
    if before is not None and before != actual:
        factor, shift = actual.scale / before.scale, (before.zero_point - actual.zero_point) * actual.scale
        both.insert(0, aligned(span, actual.dtype, factor, shift))
        both.append(hard_sigmoid_result(actual.dtype))
    return [how for how in both if how is not None]
