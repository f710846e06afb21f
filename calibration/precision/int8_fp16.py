"""FP16 types for what is not INT8 in a Q/DQ model: FP16 scales, opset 19; for strongly typed networks of TensorRT.

Under strong typing a DequantizeLinear gives the type of its scale, so that FP32 scales leave all but INT8 in FP32. FP16
scales are valid from opset 19 on. A scale that FP16 holds with lost digits, or as 0 (which TensorRT rejects), keeps its
layer in FP32: the product and the nodes that quantize what goes into it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from calibration.errors import ModelError
from calibration.graph.editing import constant, named, opened
from calibration.graph.external_data import with_weights_of, without_weights
from calibration.graph.opset import converter_words, opset_of
from calibration.precision.fp16 import FP16_MAX, FP16_TINY, fp16_from_onnx, weights_beyond_fp16

FIRST_OPSET = 19
"""Of FP16 scales; tf2onnx writes up to 18."""
IR_VERSION = 9
"""The one that came with it."""

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class TypedInt8:
    """The model, and sentences about the layers that stay FP32."""

    model: onnx.ModelProto
    notes: tuple[str, ...]


def typed_int8_from_qdq(model: onnx.ModelProto, keep_fp32: Collection[str]) -> TypedInt8:
    """The Q/DQ model with FP16 types for all that is not INT8; inputs and outputs stay FP32.

    Args:
        model: with int8 Q/DQ nodes and FP32 scales; it is not changed. Opset 13 or later.
        keep_fp32: names of nodes that stay FP32, with the nodes that quantize what goes into them.

    Raises:
        ModelError: ``keep_fp32`` names no node, or the model cannot be brought to opset 19.
    """
    raised = _raised(named(model))
    graph = opened(raised).graph
    weights = weights_beyond_fp16(raised)
    beyond = {
        node.name or "": weights[name] for node in graph for name in _quantizers_of(node) if name in weights
    } | dict(_scales_beyond(graph))
    full_nodes = {*keep_fp32, *beyond}
    around = {name for node in graph if node.name in full_nodes for name in _quantizers_of(node)}
    notes = tuple(f"node '{name}' stays FP32: {reason}" for name, reason in beyond.items())
    return TypedInt8(fp16_from_onnx(raised, keep_fp32={*full_nodes, *around}), notes)


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset 19 or later."""
    opset = opset_of(model)
    if opset >= FIRST_OPSET:
        return model
    try:
        raised = with_weights_of(model, version_converter.convert_version(without_weights(model), FIRST_OPSET))
    except Exception as error:  # It raises RuntimeError and its own kind, which has no name in Python.
        raise ModelError(
            f"the model cannot be brought from opset {opset} to {FIRST_OPSET}, which FP16 scales need "
            f"({converter_words(error)}); "
            'export it with opset 17 or 18, or take rest = "fp32"'
        ) from error
    raised.ir_version = max(raised.ir_version, IR_VERSION)
    return raised


def _scales_beyond(graph: ir.Graph) -> Iterator[tuple[str, str]]:
    """Names of the nodes that read a quantized value whose scale FP16 cannot hold, and the reason."""
    for node in graph:
        if node.op_type in _QUANTIZERS:
            continue
        for name, array in _scales_of(node):
            small, large = float(array.min()), float(array.max())
            if small < FP16_TINY:
                yield node.name or "", f"the scale '{name}' is {small:.2g}, FP16 loses digits below {FP16_TINY:.2g}"
                break
            if large > FP16_MAX:
                yield node.name or "", f"the scale '{name}' is {large:.4g}, FP16 ends at {FP16_MAX:.0f}"
                break


def _scales_of(node: ir.Node) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of the scales of what a node reads dequantized."""
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[1] is None:
            continue
        array = constant(producer.inputs[1])
        if array is not None and array.size and array.dtype == np.float32:
            yield producer.inputs[1].name or "", array


def _quantizers_of(node: ir.Node) -> Iterator[str]:
    """Names of the DequantizeLinear nodes that a node reads, and of the QuantizeLinear nodes before them."""
    if node.op_type in _QUANTIZERS:
        return
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        while producer is not None and producer.op_type in _QUANTIZERS:
            yield producer.name or ""
            before = producer.inputs[0]
            producer = before.producer() if before is not None else None
