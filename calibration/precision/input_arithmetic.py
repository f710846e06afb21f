"""Arithmetic on an input of the model, such as the scaling of pictures, that its QuantizeLinear does by itself.

An input ``x`` that becomes ``factor * x + shift`` and then an integer of the scale ``s`` and the zero point ``z`` is
``round(x / (s / factor)) + (z + shift / s)``: QuantizeLinear alone, with another scale and zero point than the
DequantizeLinear behind it, where ``shift / s`` is an integer and ``x = 0`` is a level. So the scale is chosen so that
it is; and where it is nearly one step of whole numbers, exactly that, for then pictures of 8 bits lose nothing. Of an
input of bytes it always is, where the shift is a whole number of steps: what QuantizeLinear makes of each byte is then
the byte itself, and neither it nor the Cast in front of it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.graph.editing import add_initializer, constant, dimensions, only_reader, unique, value_names
from calibration.precision.scale import DataType, Quantization, asymmetric, limits
from calibration.ranges.span import Span

MOVERS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Keep the values as they are."""
ARITHMETIC = ("Mul", "Div", "Add", "Sub")
LARGEST_BYTE = 255
NEARLY_WHOLE = 1e-4
"""Of a byte: what a constant of FP32 may differ from a whole number of steps."""
LARGEST_GROWTH = 1 / 12
"""Of a scale, for the sake of levels that suit the input: 0.7 dB more noise of its rounding."""
MARGIN = 2.0**-12
"""In levels: only a value that is so near to the middle between two may become the other one."""
MOST_INTEGERS = 2**17

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class InputArithmetic:
    """How a tensor is computed from an input of the model, value by value."""

    nodes: tuple[ir.Node, ...]
    """From the input on; also those that move values."""
    factor: float
    shift: float
    of_bytes: bool = False
    """Whether the input is of UINT8, and the first node casts it."""

    def quantization(self, span: Span, dtype: DataType) -> Quantization | None:
        """Scale and zero point of the tensor; of bytes, whatever of them was seen, those that keep each apart."""
        exact = None if span.is_set else self._exact(dtype)
        return exact or aligned(span, dtype, self.factor, self.shift)

    def _exact(self, dtype: DataType) -> Quantization | None:
        """That by which each byte is a level of its own; None of an input of other numbers, or where 0 is no level."""
        zero_point = -self.shift / self.factor
        if not self.of_bytes or abs(zero_point - round(zero_point)) > NEARLY_WHOLE:
            return None
        if not 0 <= round(zero_point) <= LARGEST_BYTE:
            return None
        first = 0 if dtype == "uint8" else -128
        return Quantization(float(np.float32(self.factor)), round(zero_point) + first, dtype)

    def computed(self, values: Floats32) -> Floats32:
        """What the nodes make of values of the input, to the bit."""
        for node, operand in _operands(self.nodes):
            values = _FLOAT32[node.op_type](values, operand)
        return values


_FLOAT32: dict[str, Callable[[Floats32, np.float32], Floats32]] = {
    "Mul": lambda values, operand: np.multiply(values, operand, dtype=np.float32),
    "Div": lambda values, operand: np.divide(values, operand, dtype=np.float32),
    "Add": lambda values, operand: np.add(values, operand, dtype=np.float32),
    "Sub": lambda values, operand: np.subtract(values, operand, dtype=np.float32),
}


def input_arithmetic(value: ir.Value, is_kept: Callable[[ir.Node], bool]) -> InputArithmetic | None:
    """The arithmetic by scalars that makes this value of an input, and nothing else; None if it is made otherwise.

    Args:
        value: a tensor of the model.
        is_kept: whether a node has to stay.
    """
    nodes: list[ir.Node] = []
    node = value.producer()
    while node is not None and only_reader(node.outputs[0]) is not None and not is_kept(node):
        source = _data(node)
        if source is None:
            return None
        nodes.insert(0, node)
        if source.is_graph_input():
            of_bytes = source.dtype == ir.DataType.UINT8 and node.op_type == "Cast"
            return _composed(tuple(nodes), of_bytes) if of_bytes or source.dtype == ir.DataType.FLOAT else None
        node = source.producer()
    return None


def _data(node: ir.Node) -> ir.Value | None:
    """The input whose values a node moves, or computes with one number; None if it does something else."""
    if node.domain not in ("", "ai.onnx") or not node.inputs:
        return None
    if node.op_type in ARITHMETIC:
        return node.inputs[_index(node)] if _scalar(node) is not None else None
    to_float = node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT
    return node.inputs[0] if node.op_type in MOVERS or to_float else None


def _index(node: ir.Node) -> int:
    """Which input of a node of arithmetic is data."""
    return 1 if constant(node.inputs[0]) is not None else 0


def _composed(nodes: tuple[ir.Node, ...], of_bytes: bool) -> InputArithmetic | None:
    factor, shift = 1.0, 0.0
    for node, operand in _operands(nodes):
        number = float(operand)
        if node.op_type in ("Add", "Sub"):
            shift += number if node.op_type == "Add" else -number
            continue
        if node.op_type == "Div":
            number = 1.0 / number if number else np.inf
        factor, shift = factor * number, shift * number
    is_usable = np.isfinite([factor, shift]).all() and factor > 0.0
    has_arithmetic = of_bytes or any(node.op_type in ARITHMETIC for node in nodes)
    return InputArithmetic(nodes, factor, shift, of_bytes) if is_usable and has_arithmetic else None


def _operands(nodes: tuple[ir.Node, ...]) -> Iterator[tuple[ir.Node, np.float32]]:
    for node in nodes:
        operand = _scalar(node) if node.op_type in ARITHMETIC else None
        if operand is not None:
            yield node, operand


def _scalar(node: ir.Node) -> np.float32 | None:
    """The number that all values are computed with; None if there are several, or it comes first and order counts."""
    index = _index(node)
    array, shape = constant(node.inputs[1 - index]), dimensions(node.inputs[index])
    if array is None or shape is None or array.dtype != np.float32 or (index == 1 and node.op_type in ("Sub", "Div")):
        return None
    if not array.size or array.ndim > len(shape) or (array != array.reshape(-1)[0]).any():
        return None
    fits = all(size in (1, known) for size, known in zip(array.shape[::-1], shape[::-1], strict=False))
    return np.float32(array.reshape(-1)[0]) if fits else None


def aligned(span: Span, dtype: DataType, factor: float, shift: float) -> Quantization | None:
    """As ``asymmetric``, with the least scale above by which QuantizeLinear can do the arithmetic; if it is near.

    The range grows so that an input of 0 is in it. A range that the user set stays.
    """
    plain = asymmetric(span, dtype)
    if plain is None or span.is_set:
        return plain
    low, high = limits(span)
    low, high = min(low, shift), max(high, shift)
    scale = (high - low) / 255
    if shift:
        num_steps = np.floor(abs(shift) / scale * (1 + 2.0**-20))
        scale = abs(shift) / num_steps if num_steps else np.inf
    elif factor * (1 - LARGEST_GROWTH) <= scale <= factor:
        scale = factor
    if scale > plain.scale * (1 + LARGEST_GROWTH):
        return plain
    smallest = 0 if dtype == "uint8" else -128
    zero_point = min(max(smallest + round(-low / scale), smallest), smallest + 255)
    return Quantization(float(np.float32(scale)), zero_point, dtype)


def absorb_input_arithmetic(graph: ir.Graph, is_kept: Callable[[ir.Node], bool]) -> int:
    """Let each QuantizeLinear of what is computed from an input alone read the input; returns how many do.

    Its DequantizeLinear has the old scale and zero point, and its output the name of the tensor that is gone. Each
    whole number of the input becomes the same integer as before, and so does each other value but those that are within
    ``MARGIN`` of the middle between two. Where that cannot be had, all stays.
    """
    num_absorbed = 0
    for quantize in [node for node in graph if node.op_type == "QuantizeLinear"]:
        value = quantize.inputs[0]
        if value is None or only_reader(value) is not quantize:
            continue
        arithmetic = input_arithmetic(value, is_kept)
        dequantize = only_reader(quantize.outputs[0])
        if arithmetic is None or dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        how = _quantization(quantize)
        moved = None if how is None else _before(how, arithmetic)
        if how is not None and moved is not None and _agree(how, moved, arithmetic):
            _absorb(graph, quantize, dequantize, arithmetic, moved)
            num_absorbed += 1
    return num_absorbed


def drop_casts_of_bytes(graph: ir.Graph) -> int:
    """Take out each QuantizeLinear that makes of each byte of an input the byte itself; returns how many there were.

    What moves values between moves bytes then, and the Cast goes.
    """
    num_dropped = 0
    for quantize in [node for node in graph if node.op_type == "QuantizeLinear"]:
        path = _path_of_bytes(quantize)
        if not path or _quantization(quantize) != Quantization(1.0, 0, "uint8"):
            continue
        source = path[0].inputs[0]
        assert source is not None
        for node in path[1:]:
            node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        ir.convenience.replace_all_uses_with(path[0].outputs[0], source)
        value = quantize.inputs[0]
        assert value is not None
        ir.convenience.replace_all_uses_with(quantize.outputs[0], value)
        graph.remove((quantize, path[0]), safe=True)
        num_dropped += 1
    return num_dropped


def _path_of_bytes(quantize: ir.Node) -> list[ir.Node]:
    """The Cast of an input of bytes and what moves them up to a QuantizeLinear; empty if it reads something else."""
    path: list[ir.Node] = []
    value = quantize.inputs[0]
    if quantize.outputs[0].is_graph_output():
        return []
    while value is not None and only_reader(value) is not None and (node := value.producer()) is not None:
        path.insert(0, node)
        value = node.inputs[0]
        if node.op_type == "Cast":
            is_input = value is not None and value.is_graph_input() and value.dtype == ir.DataType.UINT8
            return path if is_input else []
        if node.op_type not in MOVERS:
            return []
    return []


def _quantization(node: ir.Node) -> Quantization | None:
    """Of a QuantizeLinear with constants, one for the whole tensor."""
    scale, zero_point = (constant(value) for value in node.inputs[1:3])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype not in (np.uint8, np.int8):
        return None
    dtype: DataType = "uint8" if zero_point.dtype == np.uint8 else "int8"
    return Quantization(float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]), dtype)


def _before(how: Quantization, arithmetic: InputArithmetic) -> Quantization | None:
    """Scale and zero point for the input itself; None if the zero point is none of the type's numbers."""
    zero_point = how.zero_point + round(arithmetic.shift / how.scale)
    limits_of_type = np.iinfo(how.dtype)
    if not limits_of_type.min <= zero_point <= limits_of_type.max:
        return None
    return Quantization(float(np.float32(how.scale / arithmetic.factor)), zero_point, how.dtype)


def _agree(how: Quantization, moved: Quantization, arithmetic: InputArithmetic) -> bool:
    """Whether both make the same integers: of whole numbers, and on both sides of each border between two levels.

    Both rise with the input, so that equal integers at two values mean equal ones between.
    """
    levels = np.arange(np.iinfo(how.dtype).min - 1, np.iinfo(how.dtype).max + 1) - moved.zero_point
    borders = (levels[:, None] + (0.5 - MARGIN, 0.5 + MARGIN)) * moved.scale
    first, last = np.ceil(borders.min()), np.floor(borders.max())
    if last - first > MOST_INTEGERS:
        return False
    values = np.concatenate([borders.reshape(-1), np.arange(first, last + 1)]).astype(np.float32)
    return np.array_equal(_levels(arithmetic.computed(values), how), _levels(values, moved))


def _levels(values: Floats32, how: Quantization) -> npt.NDArray[Any]:
    """What QuantizeLinear answers."""
    steps = np.rint(np.divide(values, np.float32(how.scale), dtype=np.float32)) + how.zero_point
    return np.asarray(np.clip(steps, np.iinfo(how.dtype).min, np.iinfo(how.dtype).max))


def _absorb(
    graph: ir.Graph, quantize: ir.Node, dequantize: ir.Node, arithmetic: InputArithmetic, how: Quantization
) -> None:
    taken = value_names(graph)
    name = quantize.inputs[0].name or "" if quantize.inputs[0] is not None else ""
    for node in arithmetic.nodes:
        output = node.outputs[0]
        if node.op_type in (*MOVERS, "Cast"):
            output.name = unique(f"{output.name}_raw", taken)
            taken.add(output.name)
            continue
        data = _data(node)
        assert data is not None
        ir.convenience.replace_all_uses_with(output, data)
        graph.remove(node, safe=True)
    arrays = {"scale": np.array(how.scale, np.float32), "zero_point": np.array(how.zero_point, how.dtype)}
    for index, (word, array) in enumerate(arrays.items(), start=1):
        quantize.replace_input_with(index, add_initializer(graph, f"{name}_raw_{word}", array))
    dequantize.outputs[0].name = name
