"""An ONNX model and the ranges of its tensors in, the same model with INT8 written into it as Q/DQ nodes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.arrays import Floats
from calibration.errors import ModelError
from calibration.graph.editing import (
    add_initializer,
    change_constant,
    closed,
    constant,
    known_names,
    named,
    opened,
    take_place,
    unique,
    value_names,
)
from calibration.graph.opset import brought_to, opset_of
from calibration.graph.patterns import check_known
from calibration.precision.first_convolution import widen_convolutions
from calibration.precision.hard_sigmoid_levels import absorb_hard_sigmoids
from calibration.precision.input_arithmetic import absorb_input_arithmetic, drop_casts_of_bytes
from calibration.precision.place import check_4_bits, place
from calibration.precision.placement import (
    FULL_BITS,
    PlacementOptions,
    QdqPlacement,
    QuantizedBias,
    QuantizedTensor,
    QuantizedWeight,
)
from calibration.precision.scale import Arithmetic, arithmetic_for, quantized
from calibration.precision.weights import (
    CONTRIBUTED,
    UNSIGNED_MIDDLE,
    Bias,
    RoundedWeight,
    bias_of,
    packed_blocks,
    product_of_blocks,
    rounded_weight,
)
from calibration.ranges.span import Span

MIN_OPSET = 13
"""The first with one scale for each channel."""
OPSET_OF_4_BITS, IR_OF_4_BITS = 21, 10
"""The first with INT4, and with blocks of DequantizeLinear; and the format's version that came with it."""

_NUMPY = {"int8": np.int8, "uint8": np.uint8}
_IR = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}


@dataclass(frozen=True)
class Quantized:
    """A model with Q/DQ nodes, and what was decided for it."""

    model: onnx.ModelProto
    placement: QdqPlacement


def qdq_from_onnx(model: onnx.ModelProto, ranges: Mapping[str, Span], options: PlacementOptions) -> Quantized:
    """Place Q/DQ nodes for a target.

    For ``tensorrt`` the file parses on TensorRT 8.5 to 11: weights stay FP32 in front of their Q, zero points are 0
    and written out, scales are FP32. For ``onnxruntime`` weights and biases are stored as
    integers, so that the file is small and its session quick to start.

    Weights of 4 bits are stored as such, in opset 21: in blocks for a DequantizeLinear, or for ONNX Runtime by channel
    with a Cast to 8 bits, which it computes as it loads; its matrix products of 4 bits are its own operator
    ``MatMulNBits``, which its optimizer makes of a DequantizeLinear only where the data does not come from another.

    Args:
        model: FP32, opset 13 or later, batch norms folded (``fold_batch_norm``); it is not changed.
        ranges: by tensor name, of this very model.
        options: target, and what stays FP32.

    Raises:
        DataError: a tensor that must be quantized has no range.
        ModelError: opset below 13, Q/DQ already there, or ``exclude`` names no node.
    """
    _check_can_be_quantized(model)
    opened_model = opened(_in_opset_of_4_bits(model) if _has_types_of_4_bits(model, options) else model)
    graph = opened_model.graph
    check_known(options.exclude, known_names(graph), "exclude")
    placement = place(graph, ranges, options)
    check_4_bits(placement, options)
    _Writer(graph).write(placement)
    if any(node.domain == CONTRIBUTED for node in graph):
        opened_model.opset_imports[CONTRIBUTED] = 1
    if options.target == "onnxruntime":
        absorb_input_arithmetic(graph, lambda node: node.op_type in options.exclude or node.name in options.exclude)
        absorb_hard_sigmoids(graph)
        if options.arithmetic == "u8s8":
            widen_convolutions(graph)
        drop_casts_of_bytes(graph)
    return Quantized(closed(opened_model), placement)


def _has_types_of_4_bits(model: onnx.ModelProto, options: PlacementOptions) -> bool:
    """Whether the result may have INT4: of matrices ONNX Runtime's own operator has bytes."""
    has_convolutions = any(node.op_type == "Conv" for node in model.graph.node)
    return options.weight_bits != FULL_BITS and (options.target == "tensorrt" or has_convolutions)


def _in_opset_of_4_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in the first opset with types of 4 bits, or as it is where that is later.

    Raises:
        ModelError: it cannot be brought there.
    """
    if opset_of(model) >= OPSET_OF_4_BITS:
        return model
    try:
        raised = brought_to(named(model), OPSET_OF_4_BITS)
    except ModelError as error:
        raise ModelError(f"{model.graph.name}: weights of 4 bits need opset {OPSET_OF_4_BITS}: {error}") from error
    raised.ir_version = max(raised.ir_version, IR_OF_4_BITS)
    return raised


def _check_can_be_quantized(model: onnx.ModelProto) -> None:
    opset = opset_of(model)
    if opset < MIN_OPSET:
        raise ModelError(
            f"{model.graph.name}: is opset {opset}, Q/DQ with a scale for each channel needs {MIN_OPSET} or later; "
            "export it again"
        )
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise ModelError(f"{model.graph.name}: has Q/DQ nodes already; quantize the FP32 model")


class _Writer:
    """Writes a placement into a graph. Names are taken from the tensors they belong to."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._nodes = {node.name or "": node for node in graph}
        self._values = {value.name or "": value for value in (*graph.inputs, *graph.initializers.values())}
        self._values.update({value.name or "": value for node in graph for value in node.outputs})
        self._taken = value_names(graph) | set(self._nodes)
        self._rounded: dict[str, RoundedWeight] = {}
        self._written: dict[tuple[object, ...], ir.Value] = {}
        self._in_blocks: dict[str, tuple[QuantizedWeight, list[ir.Value]]] = {}
        """Matrix products of 4 bits for ONNX Runtime: the bytes of the weight, and its scales."""

    def write(self, placement: QdqPlacement) -> None:
        scales = {tensor.tensor: tensor.quantization.scale for tensor in placement.tensors}
        biases = {bias.reader.node: bias for bias in placement.biases}
        for weight in placement.weights:
            self._write_weight(weight, biases.get(weight.reader.node), scales, placement.target == "onnxruntime")
        for bias in placement.biases:
            self._write_bias(bias, scales[bias.data])
        for tensor in placement.tensors:
            self._write_tensor(tensor)
        for name, (weight, blocks) in self._in_blocks.items():
            self._multiply_blocks(self._nodes[name], weight, blocks)

    def _write_tensor(self, tensor: QuantizedTensor) -> None:
        value, how = self._values[tensor.tensor], tensor.quantization
        producer = value.producer()
        if tensor.is_output:
            value.name = self._name(f"{tensor.tensor}_float")
        scale = self._constant(f"{tensor.tensor}_scale", np.array(how.scale, np.float32))
        zero_point = self._constant(f"{tensor.tensor}_zero_point", np.array(how.zero_point, _NUMPY[how.dtype]))
        quantize = self._node("QuantizeLinear", [value, scale, zero_point], tensor.tensor, None)
        dequantize = self._node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], tensor.tensor, None)
        if producer is None:
            self._graph.insert_before(self._graph[0], [quantize, dequantize])
        else:
            self._graph.insert_after(producer, [quantize, dequantize])
        for reader in tensor.readers:
            self._nodes[reader.node].replace_input_with(reader.index, dequantize.outputs[0])
        if tensor.is_output:
            dequantize.outputs[0].name = tensor.tensor
            index = next(i for i, output in enumerate(self._graph.outputs) if output is value)
            self._graph.outputs[index] = dequantize.outputs[0]

    def _write_weight(
        self, weight: QuantizedWeight, bias: QuantizedBias | None, data_scales: Mapping[str, float], stored: bool
    ) -> None:
        node = self._nodes[weight.reader.node]
        rounded = rounded_weight(node, weight)
        light = replace(rounded, integers=np.zeros(0, np.int16), values=np.zeros(0, np.float32))
        self._rounded[weight.reader.node] = light  # All weights at once may be more than there is memory for.
        key = (weight.tensor, weight.axis, weight.dtype, weight.bits, weight.block, rounded.scales.tobytes())
        if weight.block and stored:
            self._store_blocks(weight, rounded)
        else:
            if key not in self._written:
                write = self._weight_output if weight.bits == FULL_BITS else self._weight_of_4_bits
                self._written[key] = write(weight, rounded, stored)
            node.replace_input_with(weight.reader.index, self._written[key])
        if bias is None and rounded.mean_shift is not None:
            self._shift_bias(weight, rounded.mean_shift, data_scales if stored else None)

    def _weight_output(self, weight: QuantizedWeight, rounded: RoundedWeight, stored: bool) -> ir.Value:
        """Q (or stored integers) and DQ of a weight; the dequantized value."""
        middle = 128 if weight.dtype == "uint8" else 0
        scale = self._constant(f"{weight.tensor}_scale", rounded.scales)
        zero_points = np.full(rounded.scales.shape, middle, _NUMPY[weight.dtype])
        zero_point = self._constant(f"{weight.tensor}_zero_point", zero_points)
        nodes: list[ir.Node] = []
        if stored:
            integers = rounded.integers + middle
            source = self._constant(f"{weight.tensor}_quantized", integers.astype(_NUMPY[weight.dtype]))
        else:
            node, index = self._nodes[weight.reader.node], weight.reader.index
            array = constant(node.inputs[index])
            assert array is not None
            if (quantized(array, rounded.scales, weight.axis) != rounded.integers).any():
                change_constant(self._graph, node, index, rounded.values, self._name(f"{weight.tensor}_rounded"))
            value = node.inputs[index]
            assert value is not None
            inputs = [value, scale, zero_point]
            nodes.append(self._node("QuantizeLinear", inputs, weight.tensor, weight.axis))
            source = nodes[0].outputs[0]
        nodes.append(self._node("DequantizeLinear", [source, scale, zero_point], weight.tensor, weight.axis))
        self._graph.insert_before(self._nodes[weight.reader.node], nodes)
        return nodes[-1].outputs[0]

    def _weight_of_4_bits(self, weight: QuantizedWeight, rounded: RoundedWeight, _stored: bool) -> ir.Value:
        """Stored integers of 4 bits, and DQ of them in blocks or, as 8 bits, by channel; the dequantized value."""
        is_signed, name = weight.dtype == "int8", weight.tensor
        dtype, middle = (ml_dtypes.int4, 0) if is_signed else (ml_dtypes.uint4, UNSIGNED_MIDDLE)
        source = self._constant(f"{name}_quantized", (rounded.integers + middle).astype(dtype))
        scale = self._constant(f"{name}_scale", rounded.scales)
        attributes, nodes = [ir.AttrInt64("axis", 0 if weight.block else weight.axis or 0)], []
        inputs = [source, scale]
        if weight.block:
            attributes.append(ir.AttrInt64("block_size", weight.block))
        else:
            zero_points = np.full(rounded.scales.shape, middle, _NUMPY[weight.dtype])
            cast = ir.Node(
                "", "Cast", [source], [ir.AttrInt64("to", _IR[weight.dtype])], name=self._name(f"{name}_Cast")
            )
            cast.outputs[0].name = self._name(f"{name}_cast")
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(_IR[weight.dtype]), source.shape
            nodes.append(cast)
            inputs = [cast.outputs[0], scale, self._constant(f"{name}_zero_point", zero_points)]
        nodes.append(self._node("DequantizeLinear", inputs, name, None))
        for attribute in attributes:
            nodes[-1].attributes.add(attribute)
        self._graph.insert_before(self._nodes[weight.reader.node], nodes)
        return nodes[-1].outputs[0]

    def _store_blocks(self, weight: QuantizedWeight, rounded: RoundedWeight) -> None:
        arrays = zip(("bytes", "scale"), packed_blocks(rounded, weight))
        blocks = [self._constant(f"{weight.tensor}_{part}", array) for part, array in arrays]
        self._in_blocks[weight.reader.node] = weight, blocks

    def _multiply_blocks(self, node: ir.Node, weight: QuantizedWeight, blocks: list[ir.Value]) -> None:
        product = product_of_blocks(node, weight, blocks)
        product.outputs[0].name = self._name(f"{node.outputs[0].name}_of_blocks")
        self._graph.insert_before(node, [product])
        take_place(node.outputs[0], product.outputs[0])
        self._graph.remove(node, safe=True)

    def _write_bias(self, bias: QuantizedBias, data_scale: float) -> None:
        array = constant(self._values[bias.tensor])
        assert array is not None
        rounded, node = self._rounded[bias.reader.node], self._nodes[bias.reader.node]
        if rounded.mean_shift is not None:
            array = array - rounded.mean_shift
        self._store_bias(Bias(node, bias.reader.index, array), bias.tensor, rounded.scales * np.float32(data_scale))

    def _store_bias(self, bias: Bias, name: str, scale: npt.NDArray[np.float32]) -> None:
        """Let a product read its bias from int32."""
        scales = np.asarray(np.broadcast_to(scale, bias.array.shape), np.float32)
        integers = np.rint(bias.array.astype(np.float64) / scales.astype(np.float64)).astype(np.int32)
        inputs = [
            self._constant(f"{name}_quantized", integers),
            self._constant(f"{name}_scale", scales),
            self._constant(f"{name}_zero_point", np.zeros(bias.array.shape, np.int32)),
        ]
        dequantize = self._node("DequantizeLinear", inputs, name, 0)
        self._graph.insert_before(bias.node, dequantize)
        bias.node.resize_inputs(max(len(bias.node.inputs), bias.index + 1))
        bias.node.replace_input_with(bias.index, dequantize.outputs[0])

    def _shift_bias(self, weight: QuantizedWeight, shift: Floats, data_scales: Mapping[str, float] | None) -> None:
        """Take the shift of the means back in a bias that the placement leaves alone.

        ``data_scales``: of data in INT8, where a product's own bias has to be in int32.
        """
        node = self._nodes[weight.reader.node]
        bias = bias_of(node, len(shift))
        if bias is None:
            return
        array, name = bias.shifted(shift), f"{node.name}_bias"
        data = node.inputs[0]
        if data_scales is not None and bias.node is node and data is not None:
            scale = self._rounded[weight.reader.node].scales * np.float32(data_scales[data.name or ""])
            self._store_bias(Bias(node, bias.index, array), name, scale)
        else:
            change_constant(self._graph, bias.node, bias.index, array, self._name(name))

    def _node(self, operator: str, inputs: list[ir.Value], tensor: str, axis: int | None) -> ir.Node:
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        node = ir.Node("", operator, inputs, attributes, name=self._name(f"{tensor}_{operator}"))
        suffix = "quantized" if operator == "QuantizeLinear" else "dequantized"
        node.outputs[0].name = self._name(f"{tensor}_{suffix}")
        quantizes = operator == "QuantizeLinear"
        node.outputs[0].type = ir.TensorType(inputs[2].dtype if quantizes and inputs[2].dtype else ir.DataType.FLOAT)
        node.outputs[0].shape = inputs[0].shape
        return node

    def _constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        return add_initializer(self._graph, self._name(name), array, ())

    def _name(self, name: str) -> str:
        unique_name = unique(name, self._taken)
        self._taken.add(unique_name)
        return unique_name


__all__ = ["Arithmetic", "PlacementOptions", "QdqPlacement", "Quantized", "Span", "arithmetic_for", "qdq_from_onnx"]
