"""Weights that lie on INT8 steps without Q/DQ nodes: TensorFlow computes FakeQuant of a weight away as it converts.

A channel's steps are its largest magnitude, divided by a whole number up to 127, where all of its weights are multiples
of that; quantized with it each weight is what it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.editing import add_initializer, attribute_int, closed, constant, opened, taken_names, unique
from calibration.quantized.grids import DEQUANTIZE, QUANTIZE, grid_of
from calibration.quantized.qdq_form import MOVERS

LARGEST = 127
MARGIN = 1e-3
"""In steps: what FP32 leaves of multiples that were computed in it is a hundredth of that."""
CHANNELS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 1}
"""The axis of a weight's output channels."""


def quantize_stepped_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Write Q/DQ for the weights of products with quantized data, where these lie on INT8 steps channel by channel.

    Returns the model, and how many weights.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    taken = taken_names(graph)
    num_written = 0
    for node in list(graph):
        if node.op_type not in CHANNELS or not _is_quantized(node.inputs[0]):
            continue
        weight = constant(node.inputs[1])
        if weight is None or weight.dtype != np.float32 or weight.ndim < 2:
            continue
        axis = CHANNELS[node.op_type] % weight.ndim
        if node.op_type == "Gemm" and attribute_int(node, "transB", 0):
            axis = 0
        if (steps := channel_steps(weight, axis)) is not None:
            _write(graph, node, steps, axis, taken)
            num_written += 1
    return (closed(opened_model), num_written) if num_written else (model, 0)


def channel_steps(weight: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float32] | None:
    """(C,): the step of each channel; None where one of them has none. A channel of zeros has 1."""
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    steps = np.ones(len(channels))
    for index, values in enumerate(channels):
        amax = np.abs(values).max(initial=0.0)
        if not amax:
            continue
        counts = np.arange(LARGEST, 0, -1)
        scaled = np.abs(values)[None, :64] * (counts / amax)[:, None]  # Few are enough to see that none is right.
        likely = counts[np.abs(scaled - np.rint(scaled)).max(axis=1) <= MARGIN]
        step = next((amax / count for count in likely if _are_multiples(values, amax / count)), None)
        if step is None:
            return None
        steps[index] = step
    return steps.astype(np.float32)


def _are_multiples(values: npt.NDArray[np.float64], step: float) -> bool:
    counts = values / step
    return bool(np.abs(counts - np.rint(counts)).max() <= MARGIN)


def _is_quantized(value: ir.Value | None) -> bool:
    """Whether data comes out of a DequantizeLinear of INT8 or UINT8, moved or not."""
    node = None if value is None else value.producer()
    if node is None:
        return False
    if node.op_type == DEQUANTIZE:
        try:
            return grid_of(node).dtype in ("int8", "uint8")
        except ModelError:  # As of FP8, with which an INT8 weight has nothing to do.
            return False
    return node.op_type in MOVERS and _is_quantized(node.inputs[0])


def _write(graph: ir.Graph, node: ir.Node, steps: npt.NDArray[np.float32], axis: int, taken: set[str]) -> None:
    weight = node.inputs[1]
    assert weight is not None
    constants = []
    for name, array in (("scale", steps), ("zero_point", np.zeros(len(steps), np.int8))):
        constants.append(add_initializer(graph, f"{weight.name}_{name}", array, taken))
        taken.add(constants[-1].name or "")
    value = weight
    for operator in (QUANTIZE, DEQUANTIZE):
        name = unique(f"{weight.name}_{operator}", taken)
        taken.add(name)
        written = ir.Node("", operator, [value, *constants], [ir.AttrInt64("axis", axis)], name=name)
        written.outputs[0].name = name
        graph.insert_before(node, written)
        value = written.outputs[0]
    node.replace_input_with(1, value)
