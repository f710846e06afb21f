"""Dynamic-range INT8 for ONNX Runtime's CPU kernels: weights in INT8, and scales of data found anew at each run.

It needs no data. What multiplies integers is what that runtime has a fused kernel for, `DynamicQuantizeMatMul`: a
product with a matrix that is constant (in a graph: DynamicQuantizeLinear, MatMulInteger, and what scales the result).

Convolutions keep their weights in INT8 in the file and compute in FP32: ONNX's ConvInteger took 8 to 18 times as long
as the FP32 convolutions of three small networks, since it has no kernel that fuses anything. Their weights are written
as Cast and Mul, which the runtime computes once, as it loads the file; a DequantizeLinear it would compute at each run,
which made the same networks 2 to 6 times as slow.

Matrices can have weights of 4 bits in blocks, for which that runtime has an operator of its own, ``MatMulNBits``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.editing import (
    add_initializer,
    attribute_int,
    closed,
    constant,
    from_constants,
    known_names,
    nodes_of,
    opened,
    take_place,
    taken_names,
    unique,
)
from calibration.graph.fold import split_bias
from calibration.graph.opset import opset_of
from calibration.graph.patterns import check_known
from calibration.precision.placement import (
    CONVOLUTIONS,
    MATRIX_PRODUCTS,
    PRODUCTS,
    NodeInput,
    QuantizedWeight,
    is_float_weight,
    is_plain,
    recurrent_weights,
    stays_fp32,
    weight_axis,
    why_no_weight_scale,
)
from calibration.precision.scale import Arithmetic
from calibration.precision.weights import (
    CONTRIBUTED,
    RoundedWeight,
    packed_blocks,
    product_of_blocks,
    rounded_weight,
)

MIN_OPSET = 11
"""The first with DynamicQuantizeLinear."""
INTEGERS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv"}
)
"""Operators of a model that is quantized already."""
BYTES_OF_NODES = 400
"""What the nodes that restore a weight take in the file: a weight has to save more."""


@dataclass(frozen=True)
class DynamicallyQuantized:
    """A model with INT8 weights, and what became of its convolutions and matrix products."""

    model: onnx.ModelProto
    in_integers: tuple[str, ...]
    """Names of the matrix products that multiply integers."""
    stored: tuple[str, ...]
    """Names of the products whose weights are INT8 in the file alone."""
    notes: tuple[str, ...]
    """Sentences: what stays FP32, and why."""


@dataclass(frozen=True)
class FoundScales:
    """What dynamic-range INT8 rounds: the weights of these products, and for some of them their data."""

    weights: tuple[QuantizedWeight, ...]
    in_integers: frozenset[str]
    """Names of the products whose data is rounded as well."""


def found_scales(
    model: onnx.ModelProto, exclude: Collection[str], arithmetic: Arithmetic, block: int = 0
) -> FoundScales:
    """What ``dynamic_from_onnx`` would write, of the FP32 model."""
    graph = opened(model).graph
    weights, in_integers = [], []
    for node, reason in _products(graph, exclude):
        if reason:
            continue
        is_product = node.op_type in MATRIX_PRODUCTS
        in_pairs = is_product and arithmetic == "u8s7"
        weights.append(in_blocks(node, block) if block and is_product else by_channel(node, in_pairs))
        in_integers += [node.name or ""] * is_product
    return FoundScales(tuple(weights), frozenset(in_integers))


def dynamic_from_onnx(
    model: onnx.ModelProto, exclude: Collection[str], arithmetic: Arithmetic, block: int = 0
) -> DynamicallyQuantized:
    """Write dynamic-range INT8 into a model.

    Args:
        model: FP32, opset 11 or later; it is not changed.
        exclude: names and operator types of nodes that stay as they are.
        arithmetic: what the CPU multiplies without saturating; data is always UINT8, as DynamicQuantizeLinear has it.
        block: matrices have weights of 4 bits, of which so many along a sum share a scale; 0: of 8 bits.

    Raises:
        ModelError: its opset is below 11, it is quantized already, or ``exclude`` names no node.
    """
    if (opset := opset_of(model)) < MIN_OPSET:
        raise ModelError(
            f"{model.graph.name}: is opset {opset}, DynamicQuantizeLinear needs {MIN_OPSET} or later; export it again"
        )
    if any(node.op_type in INTEGERS for node in nodes_of(model.graph)):
        raise ModelError(f"{model.graph.name}: is quantized already; quantize the FP32 model")
    opened_model = opened(model)
    graph = opened_model.graph
    check_known(exclude, known_names(graph), "exclude")
    writer = _Writer(graph, arithmetic)
    notes, in_integers, stored = [], [], []
    for node, reason in _products(graph, exclude):
        name = node.name or ""
        if reason:
            notes.append(stays_fp32(node, reason))
        elif node.op_type in MATRIX_PRODUCTS:
            if block:
                writer.multiply_blocks(node, block)
            else:
                writer.multiply_integers(node)
            in_integers.append(name)
        else:
            writer.store(node)
            stored.append(name)
    notes += [stays_fp32(node, why) for node, why in recurrent_weights(graph)]
    if block and in_integers:
        opened_model.opset_imports[CONTRIBUTED] = 1
    return DynamicallyQuantized(closed(opened_model), tuple(in_integers), tuple(stored), tuple(notes))


def _products(graph: ir.Graph, exclude: Collection[str]) -> list[tuple[ir.Node, str]]:
    """Convolutions and matrix products, each with why it keeps its weight; empty if it does not."""
    fixed = from_constants(graph)
    products = [node for node in graph if node.op_type in PRODUCTS and node.domain in ("", "ai.onnx")]
    return [
        (node, "the user excluded it" if node.op_type in exclude or node.name in exclude else _why_not(node, fixed))
        for node in products
    ]


def _why_not(node: ir.Node, fixed: Collection[str]) -> str:
    data, weight = node.inputs[0], node.inputs[1]
    if not is_float_weight(weight) or data is None:
        return "its weight is not a float32 constant"
    if (reason := why_no_weight_scale(weight)) is not None:
        return reason
    if data.dtype not in (None, ir.DataType.FLOAT) or (data.name or "") in fixed:
        return "its input is not float32 data"
    array = constant(weight)
    assert array is not None
    if node.op_type in CONVOLUTIONS:
        return "" if 3 * array.size > BYTES_OF_NODES else "its weight is so small that the file would grow"
    if array.ndim != 2:
        return "its weight is not a matrix"
    return "" if is_plain(node) else "it has alpha, beta or transA"


class _Writer:
    """Rewrites products one by one."""

    def __init__(self, graph: ir.Graph, arithmetic: Arithmetic) -> None:
        self._graph, self._arithmetic = graph, arithmetic
        self._taken = taken_names(graph)
        self._data: dict[str, list[ir.Value]] = {}
        self._restored: dict[tuple[str, int | None], ir.Value] = {}
        self._integers: dict[tuple[str, bool], tuple[list[ir.Value], ir.Value]] = {}

    def store(self, node: ir.Node) -> None:
        """Keep the weight in INT8, and compute as before: the runtime restores it as it loads the file."""
        weight, axis = node.inputs[1], weight_axis(node)
        assert weight is not None
        key = (weight.name or "", axis)
        if key not in self._restored:
            rounded = self._rounded(node, in_pairs=False)
            shape = [1] * rounded.integers.ndim
            if axis is not None:
                shape[axis] = -1
            integers = self._constant(f"{weight.name}_quantized", rounded.integers.astype(np.int8))
            scale = self._constant(f"{weight.name}_scale", rounded.scales.reshape(shape))
            cast = self._node("Cast", [integers], f"{weight.name}_cast", to=ir.DataType.FLOAT)
            restored = self._node("Mul", [cast.outputs[0], scale], f"{weight.name}_restored")
            self._graph.insert_before(self._graph[0], [cast, restored])
            self._restored[key] = restored.outputs[0]
        node.replace_input_with(1, self._restored[key])

    def multiply_integers(self, node: ir.Node) -> None:
        """In the form that ONNX Runtime fuses: the scale of the result is that of the data times the weight's."""
        data, output = node.inputs[0], node.outputs[0]
        assert data is not None
        integers, scale, zero_point = self._quantized_data(data)
        (weight, weight_zero_point), weight_scale = self._quantized_weight(node)
        name = output.name or ""
        product = self._node(
            "MatMulInteger", [integers, weight, zero_point, weight_zero_point], f"{name}_integers", ir.DataType.INT32
        )
        cast = self._node("Cast", product.outputs, f"{name}_cast", to=ir.DataType.FLOAT)
        scales = self._node("Mul", [scale, weight_scale], f"{name}_scale")
        nodes = [product, cast, scales, self._node("Mul", [cast.outputs[0], scales.outputs[0]], f"{name}_scaled")]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            nodes.append(self._node("Add", [nodes[-1].outputs[0], bias], f"{name}_biased"))
        self._graph.insert_before(node, nodes)
        take_place(output, nodes[-1].outputs[0])
        self._graph.remove(node, safe=True)

    def multiply_blocks(self, node: ir.Node, block: int) -> None:
        """In ONNX Runtime's own operator for weights of 4 bits, which rounds the data itself."""
        if node.op_type == "Gemm":
            node = split_bias(self._graph, node)
        weight, how = node.inputs[1], in_blocks(node, block)
        assert weight is not None
        arrays = zip(("bytes", "scale"), packed_blocks(rounded_weight(node, how), how))
        constants = [self._constant(f"{weight.name}_{part}", array) for part, array in arrays]
        product = product_of_blocks(node, how, constants)
        product.outputs[0].name = self._name(f"{node.outputs[0].name}_of_blocks")
        self._graph.insert_before(node, [product])
        take_place(node.outputs[0], product.outputs[0])
        self._graph.remove(node, safe=True)

    def _quantized_data(self, data: ir.Value) -> list[ir.Value]:
        """Integers, scale and zero point of data, once for all who read it."""
        name = data.name or ""
        if name not in self._data:
            outputs = [ir.Value(name=self._name(f"{name}_{part}")) for part in ("quantized", "scale", "zero_point")]
            kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
            for output, kind in zip(outputs, kinds):
                output.type = ir.TensorType(kind)
            quantize = ir.Node(
                "", "DynamicQuantizeLinear", [data], outputs=outputs, name=self._name(f"{name}_DynamicQuantizeLinear")
            )
            producer = data.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], [quantize])
            else:
                self._graph.insert_after(producer, [quantize])
            self._data[name] = outputs
        return self._data[name]

    def _quantized_weight(self, node: ir.Node) -> tuple[list[ir.Value], ir.Value]:
        """The matrix (K, N) and its zero point, and its scales (N,)."""
        weight = node.inputs[1]
        assert weight is not None
        turned = node.op_type == "Gemm" and bool(attribute_int(node, "transB", 0))
        key = (weight.name or "", turned)
        if key not in self._integers:
            rounded = self._rounded(node, in_pairs=self._arithmetic == "u8s7")
            kind, middle = (np.uint8, 128) if self._arithmetic == "u8u8" else (np.int8, 0)
            matrix = rounded.integers.T if turned else rounded.integers
            integers = self._constant(f"{weight.name}_quantized", (matrix + middle).astype(kind))
            zero_point = self._constant(f"{weight.name}_zero_point", np.array(middle, kind))
            self._integers[key] = ([integers, zero_point], self._constant(f"{weight.name}_scale", rounded.scales))
        return self._integers[key]

    def _rounded(self, node: ir.Node, *, in_pairs: bool) -> RoundedWeight:
        return replace(rounded_weight(node, by_channel(node, in_pairs)), values=np.zeros(0, np.float32))

    def _node(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        name: str,
        kind: ir.DataType = ir.DataType.FLOAT,
        to: ir.DataType | None = None,
    ) -> ir.Node:
        attributes = [] if to is None else [ir.AttrInt64("to", to)]
        node = ir.Node("", operator, list(inputs), attributes, name=self._name(f"{name}_{operator}"))
        node.outputs[0].name = self._name(name)
        node.outputs[0].type = ir.TensorType(kind)
        return node

    def _constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        return add_initializer(self._graph, self._name(name), array, ())

    def _name(self, name: str) -> str:
        unique_name = unique(name, self._taken)
        self._taken.add(unique_name)
        return unique_name


def by_channel(node: ir.Node, in_pairs: bool = False) -> QuantizedWeight:
    """How the weight of a product is kept, with a scale for each channel; ``in_pairs``: see ``QuantizedWeight``."""
    return QuantizedWeight(_weight_name(node), NodeInput(node.name or "", 1), weight_axis(node), "int8", in_pairs)


def in_blocks(node: ir.Node, block: int) -> QuantizedWeight:
    """How the weight of a matrix product is kept in blocks of 4 bits, once its bias is split off."""
    reader = NodeInput(node.name or "", 1)
    return QuantizedWeight(_weight_name(node), reader, 1, "int8", bits=4, block=block, is_cut=True)


def _weight_name(node: ir.Node) -> str:
    weight = node.inputs[1]
    assert weight is not None
    return weight.name or ""
