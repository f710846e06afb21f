"""Weights of 4 bits in a quantized `.tflite` file, rounded otherwise than ai-edge-quantizer rounds them.

Its own choices of scales look at single weights. What a sum over a kernel loses, and what the bias can take back, is
known where the network is calibrated; so codes and scales are handed in, and biases change with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.litert.file_bytes import packed, unpacked

WeightArray: TypeAlias = npt.NDArray[np.float32]
RoundWeight: TypeAlias = Callable[[str, WeightArray], tuple[npt.NDArray[np.int8], WeightArray, WeightArray]]
"""(name of the data, (C, D, positions) weight of C channels out and D in) -> its codes, (C,) scales, and (C,) by how
much the means of the product rise."""
KINDS = ("CONV_2D", "FULLY_CONNECTED")
DATA, WEIGHT, BIAS = range(3)
LARGEST_BIAS = 2**24
"""In steps, what biases are held to: far below INT32, near whose end kernels answered 0, and exact in FP32."""


def with_rounded_weights(schema: Any, flatbuffers: Any, files: tuple[bytes, bytes], rounded: RoundWeight) -> bytes:
    """The quantized file with these codes and scales of its weights of 4 bits, and with biases that fit them.

    Args:
        schema: the module that the format's schema was compiled to.
        flatbuffers: what writes it.
        files: the float file's bytes, and those of the file that was made of it, with the same names.
        rounded: rounds one weight.
    """
    full, model = (unpacked(schema, data) for data in files)
    codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    floats = {tensor.name: (full, tensor) for graph in full.subgraphs for tensor in graph.tensors}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            if codes.get(max(code.builtinCode, code.deprecatedBuiltinCode)) in KINDS:
                tensors: list[Any] = [graph.tensors[index] if index >= 0 else None for index in operator.inputs]
                if tensors[WEIGHT].type == schema.TensorType.INT4:
                    _round(schema, model, tensors, floats, rounded)
    return packed(flatbuffers, model, len(files[1]))


def _round(
    schema: Any, model: Any, tensors: list[Any], floats: Mapping[bytes, tuple[Any, Any]], rounded: RoundWeight
) -> None:
    data, weight, bias = tensors[DATA], tensors[WEIGHT], tensors[BIAS] if len(tensors) > BIAS else None
    exact = _values(*floats[weight.name])
    groups = np.moveaxis(
        exact.reshape(len(exact), -1, exact.shape[-1]), -1, 1
    )  # (C, positions, D) -> (C, D, positions)
    codes, scales, shift = rounded(data.name.decode(), groups)
    if bias is not None:
        values = _values(*floats[bias.name]).astype(np.float64) - shift
        if bias.type == schema.TensorType.INT32:
            codes, scales = _with_room(codes, scales, np.abs(values) / data.quantization.scale[0])
    model.buffers[weight.buffer].data = _packed(np.moveaxis(codes, 1, -1).reshape(-1))
    weight.quantization.scale = scales
    if bias is None:
        return
    if bias.type == schema.TensorType.FLOAT32:
        stored: npt.NDArray[Any] = values.astype(np.float32)
    else:
        steps = np.asarray(data.quantization.scale[0] * scales, np.float32)
        kind = np.int32 if bias.type == schema.TensorType.INT32 else np.int64
        stored = np.rint(values / steps.astype(np.float64)).astype(kind)
        bias.quantization.scale = steps
    model.buffers[bias.buffer].data = np.frombuffer(stored.tobytes(), np.uint8)


def _with_room(
    codes: npt.NDArray[np.int8], scales: WeightArray, sizes: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int8], WeightArray]:
    """Wider scales where weights are so small that the bias would leave INT32; ``sizes``: biases in data's steps."""
    wide = np.maximum(scales, (sizes / LARGEST_BIAS).astype(np.float32))
    shrunk = np.rint(codes * (scales / wide)[:, None, None]).astype(np.int8)
    return np.where((wide > scales)[:, None, None], shrunk, codes), wide


def _values(model: Any, tensor: Any) -> WeightArray:
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    return np.frombuffer(data.tobytes(), np.float32).reshape(tensor.shape)


def _packed(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two in a byte, the first in its lower half."""
    halves = np.pad(codes, (0, len(codes) % 2)).astype(np.int8).view(np.uint8) & 15
    return np.asarray(halves[0::2] | halves[1::2] << 4, np.uint8)
