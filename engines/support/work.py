"""How much a node computes: FLOPs, from shapes alone.

Two for each multiply-add of convolutions, matrix products and recurrent layers; of pooling and reductions one for each
value that they read, of what moves data none, of all else one for each value that they make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING

import onnx
from onnx import helper, shape_inference

from engines.support.answers import InputShapes

if TYPE_CHECKING:
    from typing import TypeAlias

MOVES_DATA = frozenset({
    "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand", "EyeLike",
    "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Scatter", "ScatterElements",
    "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
MOST_VALUES = 1024
"""Of a constant that shapes may depend on: larger ones are left out of what shapes are inferred from."""

Shape: TypeAlias = "tuple[int, ...]"
Dims: TypeAlias = "Mapping[str, Shape]"


def with_shapes(model: onnx.ModelProto, shapes: InputShapes) -> onnx.ModelProto:
    """The model with the shapes of all tensors that can be inferred, and without the values of its large weights.

    ``shapes``: of inputs with dynamic dimensions; where an input has none, 1 stands for each of them.
    """
    small = without_large_values(model)
    weights = {tensor.name for tensor in small.graph.initializer}
    for value in small.graph.input:
        dims = value.type.tensor_type.shape.dim
        wanted = shapes.get(value.name, ())
        for index, dim in enumerate(dims if value.name not in weights else ()):
            if not dim.HasField("dim_value"):
                dim.dim_value = wanted[index] if index < len(wanted) else 1
    try:
        return shape_inference.infer_shapes(small, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError):  # What is wrong with it is for others to say.
        return small


def without_large_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for shape inference, which copies what it is given: of weights that no shape depends on without values."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for tensor in small.graph.initializer:
        if prod(tensor.dims) > MOST_VALUES:
            _leave_values(tensor)
    return small


def _leave_values(tensor: onnx.TensorProto) -> None:
    """Keep name, type and dimensions; the values are said to lie elsewhere, where shape inference does not look."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL


def dims_of(graph: onnx.GraphProto) -> dict[str, Shape]:
    """By tensor: its shape, 1 for what is not known of it; tensors of unknown rank are left out."""
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape") and value.name not in shapes:
            shapes[value.name] = tuple(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim)
    return shapes


def flops_of(node: onnx.NodeProto, dims: Dims) -> int:
    """The work of one node; of a loop that of one round, of a branch that of the larger side."""
    if bodies := [attribute.g for attribute in node.attribute if attribute.HasField("g")]:
        works = [sum(flops_of(inner, {**dims, **dims_of(body)}) for inner in body.node) for body in bodies]
        return max(works)
    if node.op_type in MOVES_DATA:
        return 0
    if node.op_type in _COUNTS:
        return 2 * _COUNTS[node.op_type](node, dims)
    made = sum(prod(dims.get(name, ())) for name in node.output if name)
    read = prod(dims.get(node.input[0], ())) if node.input else 0
    return max(made, read) if "Pool" in node.op_type or node.op_type.startswith("Reduce") else made


def _convolution(node: onnx.NodeProto, dims: Dims) -> int:
    """Weights (C_out, C_in / groups, spatial…): each value made takes the weights of one output channel."""
    _, weight = _inputs(node, dims)
    return prod(_made(node, dims)) * prod(weight[1:])


def _transposed(node: onnx.NodeProto, dims: Dims) -> int:
    """Weights (C_in, C_out / groups, spatial…): each value read takes the weights of one input channel."""
    first, weight = _inputs(node, dims)
    return prod(first) * prod(weight[1:])


def _product(node: onnx.NodeProto, dims: Dims) -> int:
    """Each value made takes as many multiply-adds as the axis that is summed over is long."""
    first, second = _inputs(node, dims)
    is_turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    summed = first[0] if is_turned and first else first[-1] if first else second[0] if second else 1
    return prod(_made(node, dims)) * summed


def _recurrent(node: onnx.NodeProto, dims: Dims) -> int:
    """X (steps, batch, C_in), W (directions, gates · hidden, C_in), R (directions, gates · hidden, hidden)."""
    first, weight = _inputs(node, dims)
    again = dims.get(node.input[2], ()) if len(node.input) > 2 else ()
    return prod(first[:2]) * (prod(weight) + prod(again))


def _einsum(node: onnx.NodeProto, dims: Dims) -> int:
    """The product of the lengths of all letters."""
    equation = next((helper.get_attribute_value(a).decode() for a in node.attribute if a.name == "equation"), "")
    lengths: dict[str, int] = {}
    for term, name in zip(equation.replace(" ", "").split("->")[0].split(","), node.input):
        lengths.update(zip(term, dims.get(name, ())))
    return prod(lengths.values()) if "..." not in equation else prod(_made(node, dims))


def _inputs(node: onnx.NodeProto, dims: Dims) -> tuple[Shape, Shape]:
    names = [*node.input, "", ""]
    return dims.get(names[0], ()), dims.get(names[1], ())


def _quantized(node: onnx.NodeProto, dims: Dims) -> int:
    """x, its scale and zero point, then the weights."""
    plain = onnx.NodeProto(input=[*node.input[:1], *node.input[3:4]], output=node.output)
    return _convolution(plain, dims) if node.op_type == "QLinearConv" else _product(plain, dims)


def _made(node: onnx.NodeProto, dims: Dims) -> Shape:
    return dims.get(node.output[0], ()) if node.output else ()


_COUNTS: dict[str, Callable[[onnx.NodeProto, Dims], int]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _transposed,
    "DeformConv": _convolution,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _product,
    "LSTM": _recurrent,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearConv": _quantized,
    "QLinearMatMul": _quantized,
    "RNN": _recurrent,
}
"""Multiply-adds of one node."""
