"""A hard sigmoid of an integer tensor, which a QuantizeLinear of another scale computes by itself.

``clip(alpha * x + beta, 0, 1)`` in 254 steps is ``round(x * 254 * alpha) + 254 * beta``, and 8 bits end where it does:
at 0, and at 255, a step beyond 1. So DequantizeLinear takes 254.5 steps for 1, and the end is off by half a step.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calibration.graph.editing import add_initializer, attribute_float, only_reader, value_names
from calibration.precision.scale import DataType, Quantization

NUM_STEPS = 254
CLOSE = 1e-4
"""In steps: so near ``254 * beta`` must be to an integer."""


def hard_sigmoid_levels(node: ir.Node | None, dtype: DataType) -> tuple[Quantization, Quantization] | None:
    """How the input is quantized to be the result, and how the result is dequantized; None if that cannot be."""
    if node is None or node.op_type != "HardSigmoid" or node.domain not in ("", "ai.onnx"):
        return None
    alpha, beta = attribute_float(node, "alpha", 0.2), attribute_float(node, "beta", 0.5)
    begin = NUM_STEPS * beta
    if alpha <= 0.0 or not 0 <= begin <= NUM_STEPS or abs(begin - round(begin)) > CLOSE:
        return None
    least = int(np.iinfo(dtype).min)
    before = Quantization(float(np.float32(1 / (NUM_STEPS * alpha))), least + round(begin), dtype)
    return before, hard_sigmoid_result(dtype)


def hard_sigmoid_result(dtype: DataType) -> Quantization:
    """How the result of each hard sigmoid is dequantized."""
    return Quantization(float(np.float32(1 / (NUM_STEPS + 0.5))), int(np.iinfo(dtype).min), dtype)


def absorb_hard_sigmoids(graph: ir.Graph) -> int:
    """Let each QuantizeLinear of a hard sigmoid read the sigmoid's own dequantized input; returns how many do."""
    num_absorbed = 0
    taken = value_names(graph)
    for node in [each for each in graph if each.op_type == "HardSigmoid"]:
        quantize, data = only_reader(node.outputs[0]), node.inputs[0]
        before = data.producer() if data is not None else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or before is None:
            continue
        dequantize = only_reader(quantize.outputs[0])
        dtype = quantize.outputs[0].dtype
        levels = hard_sigmoid_levels(node, "int8" if dtype == ir.DataType.INT8 else "uint8")
        if before.op_type != "DequantizeLinear" or dequantize is None or levels is None:
            continue
        name = node.outputs[0].name or ""
        quantize.replace_input_with(0, data)
        how = levels[0]
        arrays = {"scale": np.array(how.scale, np.float32), "zero_point": np.array(how.zero_point, how.dtype)}
        for index, (word, array) in enumerate(arrays.items(), start=1):
            value = add_initializer(graph, f"{name}_steps_{word}", array, taken)
            taken.add(value.name or "")
            quantize.replace_input_with(index, value)
        graph.remove(node, safe=True)
        dequantize.outputs[0].name = name
        num_absorbed += 1
    return num_absorbed
