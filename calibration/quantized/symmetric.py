"""A quantized model as TensorRT takes it: int8 with zero point 0, weights and biases in floating point before their Q.

Every value stays the same, byte for byte the scales too; where one could not, that is an error, or by the user's wish
the tensor gets a coarser scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.editing import add_initializer, closed, constant, opened, taken_names, unique
from calibration.precision.placement import PRODUCTS
from calibration.precision.scale import NUM_LEVELS
from calibration.quantized.grids import DEQUANTIZE, QUANTIZE, Grid, grid_of, quantizers
from calibration.quantized.qdq_form import MOVERS, write_qdq

NOT_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt")
"""Operators that give no number below 0."""
NUM_NAMED = 3


@dataclass
class Symmetric:
    """The model, and what was done for it."""

    model: onnx.ModelProto
    num_integer_operators: int = 0
    """That were written as Q/DQ."""
    num_shifted: int = 0
    """uint8 tensors with zero point 128 that are int8 with zero point 0 now."""
    num_floats: int = 0
    """Quantized constants, such as biases, that are floating-point numbers now."""
    coarsened: list[str] = field(default_factory=list)
    """Tensors that got another scale."""

    def notes(self) -> list[str]:
        """A sentence each on what was done."""
        sentences = (
            (self.num_integer_operators, "{num} operators on integers are written as Q/DQ with the same scales"),
            (self.num_shifted, "{num} tensors of UINT8 with zero point 128 are INT8 with zero point 0, as before"),
            (self.num_floats, "{num} constants of integers, such as biases, are the floating-point numbers they mean"),
        )
        notes = [sentence.format(num=num) for num, sentence in sentences if num]
        if self.coarsened:
            notes.append(
                f"{len(self.coarsened)} asymmetric tensors have coarser, symmetric scales (coarsen_to_symmetric): "
                f"{_listed(self.coarsened)}"
            )
        return notes


def symmetric_from_quantized(model: onnx.ModelProto, *, coarsen: bool = False) -> Symmetric:
    """Bring a quantized model to what TensorRT's parsers take, from 8.5 on.

    Args:
        model: with Q/DQ nodes or integer operators, opset 13 or later; it is not changed.
        coarsen: asymmetric tensors get a symmetric scale over all of their range, and a Relu where their zero point was
            one; else they are an error.

    Raises:
        ModelError: a tensor is not symmetric, or is quantized in a way that TensorRT does not take.
    """
    opened_model = opened(model)
    writer = _Writer(opened_model.graph, write_qdq(opened_model))
    writer.write(coarsen=coarsen)
    writer.made.model = closed(opened_model)
    return writer.made


class _Writer:
    def __init__(self, graph: ir.Graph, num_integer_operators: int) -> None:
        self._graph = graph
        self._taken = taken_names(graph)
        self.made = Symmetric(onnx.ModelProto(), num_integer_operators)
        self._asymmetric: list[tuple[str, Grid]] = []

    def write(self, *, coarsen: bool) -> None:
        """Activations first, then constants; raises ModelError of all that is asymmetric at once."""
        for node in list(quantizers(self._graph, DEQUANTIZE)):
            if node.inputs[0] is not None and (integers := constant(node.inputs[0])) is not None:
                self._write_constant(node, integers, coarsen=coarsen)
        for node in list(quantizers(self._graph, QUANTIZE)):
            self._write_quantizer(node, coarsen=coarsen)
        if self._asymmetric and not coarsen:
            raise ModelError(_refused(self._asymmetric))

    def _write_quantizer(self, node: ir.Node, *, coarsen: bool) -> None:
        grid, readers = grid_of(node), list(_readers(node))
        value = node.inputs[0]
        assert value is not None, "onnx's checker has seen it"
        for reader in readers:
            if not grid.is_like(grid_of(reader)):
                raise ModelError(
                    f"'{value.name}' is quantized with one scale or zero point and read with another by "
                    f"'{reader.name}', TensorRT takes one for both; quantize the model again"
                )
        weight = constant(value)
        if weight is None and not grid.is_per_tensor:
            raise ModelError(
                f"'{value.name}' is data that is quantized by channel, TensorRT takes one scale for all of it; "
                "quantize the model again so"
            )
        if grid.is_symmetric:
            if grid.dtype != "int8" or len(node.inputs) < 3 or node.inputs[2] is None:
                self._set(node, readers, None, grid)
            self.made.num_shifted += grid.dtype != "int8"
            return
        name = value.name or ""
        self._asymmetric.append((name, grid))
        if coarsen:
            self.made.coarsened.append(name)
            scale = _coarse(grid) if weight is None else _scale_of(weight, grid)
            if weight is None:
                self._bound(node, value, grid)
            self._set(node, readers, scale, grid)

    def _write_constant(self, node: ir.Node, integers: npt.NDArray[Any], *, coarsen: bool) -> None:
        """A DequantizeLinear of a constant: floating-point numbers, and of weights their Q and DQ."""
        grid = grid_of(node)
        name = node.inputs[0].name or "" if node.inputs[0] is not None else ""
        values = grid.dequantized(integers)
        is_weight = grid.dtype != "int32" and (grid.is_symmetric or _reaches_product(node))
        if not is_weight:
            self.made.num_floats += 1
            output, stem = node.outputs[0], node.outputs[0].name or ""
            value = self._constant(f"{stem}_values", values)
            if output.is_graph_output():
                node.replace_input_with(0, value)
                node.resize_inputs(1)
                node.op_type = "Identity"
                return
            ir.convenience.replace_all_uses_with(output, value)
            self._graph.remove(node, safe=True)
            return
        scale: npt.NDArray[Any] | None = None
        if not grid.is_symmetric:
            self._asymmetric.append((name, grid))
            if not coarsen:
                return
            self.made.coarsened.append(name)
            scale = _scale_of(values, grid)
        elif not np.array_equal(_quantized(values, grid), integers.astype(np.int64) - grid.zero_point.flat[0]):
            raise ModelError(
                f"'{name}' has scales so small that its integers are lost in floating point; quantize the model again"
            )
        self.made.num_shifted += grid.dtype == "uint8" and grid.is_symmetric
        quantize = ir.Node(
            "",
            QUANTIZE,
            [self._constant(f"{name}_values", values), *node.inputs[1:]],
            list(node.attributes.values()),
            name=self._name(f"{name}_QuantizeLinear"),
        )
        quantize.outputs[0].name = quantize.name
        self._graph.insert_before(node, quantize)
        node.replace_input_with(0, quantize.outputs[0])
        self._set(quantize, [node], scale, grid)

    def _set(self, node: ir.Node, readers: list[ir.Node], scale: npt.NDArray[Any] | None, grid: Grid) -> None:
        """int8 and zero point 0 for a QuantizeLinear and its readers; a scale of None stays the very same."""
        zeros = self._constant(f"{node.inputs[0].name}_int8", np.zeros(grid.scale.shape, np.int8))  # type: ignore[union-attr]
        value = None if scale is None else self._constant(f"{node.inputs[0].name}_symmetric_scale", scale)  # type: ignore[union-attr]
        for each in (node, *readers):
            each.resize_inputs(3)
            each.replace_input_with(2, zeros)
            if value is not None:
                each.replace_input_with(1, value)
        node.attributes.pop("output_dtype", None)
        node.outputs[0].type = ir.TensorType(ir.DataType.INT8)

    def _bound(self, node: ir.Node, value: ir.Value, grid: Grid) -> None:
        """A Relu where the zero point was one: nothing was below 0, which the symmetric scale has levels for."""
        if grid.bounds[0] < 0 or _is_not_negative(value):
            return
        relu = ir.Node("", "Relu", [value], name=self._name(f"{value.name}_Relu"))
        relu.outputs[0].name = relu.name
        relu.outputs[0].type, relu.outputs[0].shape = value.type, value.shape
        self._graph.insert_before(node, relu)
        node.replace_input_with(0, relu.outputs[0])

    def _constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        value = add_initializer(self._graph, name, array, self._taken)
        self._taken.add(value.name or "")
        return value

    def _name(self, name: str) -> str:
        name = unique(name, self._taken)
        self._taken.add(name)
        return name


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    """The DequantizeLinears behind a QuantizeLinear; there is nothing else after ``write_qdq``."""
    for use in node.outputs[0].uses():
        yield use.node


def _quantized(values: npt.NDArray[Any], grid: Grid) -> npt.NDArray[np.int64]:
    """int8 of the scales of a grid and zero point 0, as QuantizeLinear computes them."""
    scale = grid.along(grid.scale, values.ndim)
    with np.errstate(all="ignore"):  # A scale so small is told by what comes out.
        integers: npt.NDArray[np.int64] = np.nan_to_num(np.rint(values / scale)).astype(np.int64)
    return integers


def _coarse(grid: Grid) -> npt.NDArray[Any]:
    """The symmetric scale of data: over all of the range."""
    return np.asarray(max(map(abs, grid.bounds)) / NUM_LEVELS, grid.scale.dtype)


def _scale_of(weight: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    """Symmetric scales of the largest magnitude of a weight, or of each channel."""
    others = None if grid.is_per_tensor else tuple(a for a in range(weight.ndim) if a != grid.axis % weight.ndim)
    amax = np.abs(weight.astype(np.float64)).max(axis=others, initial=0.0)
    return np.asarray(np.where(amax > 0, amax / NUM_LEVELS, 1.0).reshape(grid.scale.shape), grid.scale.dtype)


def _reaches_product(node: ir.Node) -> bool:
    """Whether a convolution or matrix product multiplies by what a node gives, moved or not."""
    for use in node.outputs[0].uses():
        if use.node.op_type in PRODUCTS and use.idx < 2:
            return True
        if use.node.op_type in MOVERS and use.idx == 0 and _reaches_product(use.node):
            return True
    return False


def _is_not_negative(value: ir.Value) -> bool:
    """Whether a value is never below 0, by what makes it."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type == DEQUANTIZE:
        grid, quantize = grid_of(node), node.inputs[0].producer() if node.inputs[0] is not None else None
        before = None if quantize is None else quantize.inputs[0]
        return (grid.is_per_tensor and grid.bounds[0] >= 0) or (before is not None and _is_not_negative(before))
    if node.op_type == "Clip":
        low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and bool(low >= 0)
    if (node.op_type in MOVERS and node.op_type not in ("Pad", "Resize")) or node.op_type == "GlobalAveragePool":
        inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return all(each is not None and _is_not_negative(each) for each in inputs)
    return node.op_type in NOT_NEGATIVE


def _refused(asymmetric: list[tuple[str, Grid]]) -> str:
    name, grid = asymmetric[0]
    more = f" (and {len(asymmetric) - 1} further tensors)" if len(asymmetric) > 1 else ""
    zero_point = int(grid.zero_point.flat[np.argmax(grid.zero_point.ravel() != 0)])
    return (
        f"'{name}' is {grid.dtype.upper()} with zero point {zero_point}{more}, TensorRT takes INT8 with zero point 0 "
        "alone; quantize the model again with symmetric ranges, or let those tensors have coarser scales: "
        "[quantize] coarsen_to_symmetric = true, or --coarsen-to-symmetric"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:NUM_NAMED])
    return f"{shown} and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else shown
