"""What of an operator that a generation of TensorRT reads it does not take: attributes, types, inputs that vary.

By the restrictions of ``docs/operators.md`` (see ``engines.support.operator_lists``), as far as a node shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.support.operator_lists import TensorRtRelease
from engines.support.work import MOVES_DATA

NEVER: dict[int, str] = {
    TensorProto.STRING: "strings", TensorProto.COMPLEX64: "complex numbers",
    TensorProto.COMPLEX128: "complex numbers", TensorProto.INT16: "INT16", TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32", TensorProto.UINT64: "UINT64",
}  # fmt: skip
"""Types that no generation has."""
FROM_10: dict[int, str] = {
    TensorProto.BFLOAT16: "BF16", TensorProto.FLOAT8E4M3FN: "FP8", TensorProto.INT4: "INT4",
}  # fmt: skip
RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
RESIZE_ROUNDING = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
TAKES_UINT8 = {"QuantizeLinear", "DequantizeLinear"}
"""Beside what moves data; whether their zero points are 0 is looked at apart."""
MOST_K = 3840
ONE_OUTPUT = ("BatchNormalization", "LayerNormalization", "MaxPool")
"""Of several that ONNX knows."""


@dataclass(frozen=True)
class Surroundings:
    """What a node's inputs are."""

    constants: Mapping[str, onnx.TensorProto | None]
    """Tensors that do not vary; None for one whose values are not at hand."""
    types: Mapping[str, int]
    """By tensor: its ``TensorProto.DataType``, where that is known."""
    ranks: Mapping[str, int]

    def varies(self, node: onnx.NodeProto, index: int) -> bool:
        """Whether that input is there and no constant."""
        return len(node.input) > index and bool(node.input[index]) and node.input[index] not in self.constants

    def values(self, node: onnx.NodeProto, index: int) -> Any:
        """Of a constant input; None for what is none, or not at hand."""
        tensor = self.constants.get(node.input[index]) if len(node.input) > index else None
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except ValueError:  # Its bytes do not fit its shape, which is for others to say.
            return None

    def rank(self, node: onnx.NodeProto) -> int:
        """Of the first input; 0 where that is not known."""
        return self.ranks.get(node.input[0], 0) if node.input else 0


def restrictions(node: onnx.NodeProto, around: Surroundings, release: TensorRtRelease) -> Iterator[str]:
    """What stands against a node whose operator is read: half sentences on what it is, and what is expected."""
    yield from _types(node, around, release)
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    kind = node.op_type
    if kind in _CONSTANT_INPUTS:
        index, what, (first, end) = _CONSTANT_INPUTS[kind]
        if around.varies(node, index) and first <= release.release < end:
            yield f"its {what} is computed, a constant is expected; fix it in the network"
    if kind.startswith("Reduce") and kind != "ReduceSum" and not release.is_from(10, 0) and any(node.input[1:]):
        yield "its axes are an input, of which this version takes no notice; export it with opset 17"
    elif kind.startswith("Reduce") and around.varies(node, 1):
        yield "its axes are computed, a constant is expected; fix them in the network"
    if kind in ("MaxPool", "AveragePool", "LpPool") and any(each != 1 for each in attributes.get("dilations", ())):
        yield "it is dilated, which no pooling here is; replace it by one that is not"
    if kind in ONE_OUTPUT and any(node.output[1:]):
        yield "more than its first output is used, it has no other here; leave that out of the network"
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        yield from _quantization(node, around)
    if kind in _CHECKS:
        yield from _CHECKS[kind](node, attributes, around, release)


def _types(node: onnx.NodeProto, around: Surroundings, release: TensorRtRelease) -> Iterator[str]:
    types = {around.types.get(name, 0) for name in (*node.input, *node.output)}
    names = {**NEVER, **({} if release.is_from(10, 0) else FROM_10)}
    for each in sorted(types & names.keys()):
        yield f"it has to do with {names[each]}, which this version has not; use another type in the network"
        return
    reads = {around.types.get(name, 0) for name in node.input if name}
    if TensorProto.UINT8 in reads and node.op_type not in MOVES_DATA | TAKES_UINT8:
        yield "it computes in UINT8, which inputs and outputs of a model alone may have; cast it in the network"
        return
    integers = (TensorProto.INT32, TensorProto.INT64)
    first = around.types.get(node.input[0], 0) if node.input else 0
    if node.op_type in ("ArgMax", "ArgMin", "TopK") and first in integers and not release.is_from(8, 6):
        yield "it compares integers, which 8.6 is the first to do; cast them to floating point in the network"


def _quantization(node: onnx.NodeProto, around: Surroundings) -> Iterator[str]:
    zero_point = around.values(node, 2)
    if zero_point is not None and np.any(np.asarray(zero_point, np.float64) != 0):
        yield "its zero point is not 0, symmetric integers are expected; quantize the FP32 model with trtforge quantize"
    if node.op_type == "DequantizeLinear" and around.types.get(node.input[0], 0) == TensorProto.INT32:
        yield "it restores INT32, as of a bias, INT8 is expected; keep biases in floating point"


def _resize(node: Any, attributes: dict[str, Any], _around: Any, _release: Any) -> Iterator[str]:
    coordinates = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    mode, rounding = attributes.get("mode", b"nearest").decode(), attributes.get("nearest_mode", b"").decode()
    if coordinates not in RESIZE_COORDINATES:
        yield f"its coordinates are {coordinates}, one of {', '.join(RESIZE_COORDINATES)} is expected; export another"
    if mode not in ("nearest", "linear"):
        yield f"its mode is {mode}, nearest or linear is expected; resize so in the network"
    elif mode == "nearest" and rounding and rounding not in RESIZE_ROUNDING:
        yield f"it rounds by {rounding}, one of {', '.join(RESIZE_ROUNDING)} is expected; export another"
    if attributes.get("antialias", 0):
        yield "it is antialiased, which is not done here; resize without"
    if attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        yield "it keeps the aspect ratio, stretching is expected; give both sizes"


def _einsum(node: Any, attributes: dict[str, Any], _around: Any, release: TensorRtRelease) -> Iterator[str]:
    equation = attributes.get("equation", b"").decode().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if not release.is_from(10, 12) and ("..." in equation or any(len(set(term)) != len(term) for term in terms)):
        yield f"its equation {equation} has an ellipsis or a diagonal, which 10.12 is the first to read; write it out"


def _recurrent(node: Any, attributes: dict[str, Any], _around: Any, _release: Any) -> Iterator[str]:
    names = attributes.get("activations", [])
    half = len(names) // 2
    if attributes.get("direction", b"") == b"bidirectional" and names[:half] != names[half:]:
        yield "its two directions have different activations, the same are expected; use the same in the network"
    if attributes.get("layout", 0) or attributes.get("input_forget", 0):
        yield "its layout or input_forget is not 0, which is expected; export it with the steps first"


def _scatter(_node: Any, attributes: dict[str, Any], _around: Any, _release: Any) -> Iterator[str]:
    if attributes.get("reduction", b"none") != b"none":
        yield f"its reduction is {attributes['reduction'].decode()}, none is expected; combine values by other nodes"


def _grid_sample(node: Any, _attributes: Any, around: Surroundings, _release: Any) -> Iterator[str]:
    if (rank := around.rank(node)) and rank != 4:
        yield f"its input has {rank} dimensions, 4 are expected; sample in two dimensions"


def _top_k(node: Any, attributes: dict[str, Any], around: Surroundings, release: TensorRtRelease) -> Iterator[str]:
    number = around.values(node, 1)
    if number is not None and np.any(number >= MOST_K):
        yield f"it takes {int(np.max(number))} values, fewer than {MOST_K} are expected; take fewer"
    if not attributes.get("sorted", 1):
        yield "its values are not sorted, which is expected; set sorted"


def _constant(_node: Any, attributes: dict[str, Any], _around: Any, _release: Any) -> Iterator[str]:
    if odd := [name for name in ("sparse_value", "value_string", "value_strings") if name in attributes]:
        yield f"it has a {odd[0]}, a tensor of numbers is expected; write it so"


_FIRST, _NEVER = (8, 5), (99, 0)
_CONSTANT_INPUTS: dict[str, tuple[int, str, tuple[tuple[int, int], tuple[int, int]]]] = {
    "CumSum": (1, "axis", (_FIRST, (10, 8))),
    "Dropout": (2, "training mode", (_FIRST, _NEVER)),
    "OneHot": (1, "depth", ((10, 0), _NEVER)),
    "Pad": (3, "list of axes", (_FIRST, (10, 4))),
    "STFT": (1, "frame step", (_FIRST, _NEVER)),
    "Slice": (3, "list of axes", (_FIRST, (10, 3))),
    "Squeeze": (1, "list of axes", (_FIRST, (10, 7))),
    "TopK": (1, "K", (_FIRST, (8, 6))),
    "Unsqueeze": (1, "list of axes", (_FIRST, (10, 7))),
}
"""By operator: an input that has to be a constant, from which release on, and which is the first that is content."""
_CHECKS = {
    "Constant": _constant,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "GridSample": _grid_sample,
    "LSTM": _recurrent,
    "RNN": _recurrent,
    "Resize": _resize,
    "ScatterND": _scatter,
    "TopK": _top_k,
}
