"""What is done to a picture's stored bytes before a network sees them, done by the network: its input takes the bytes.

A byte ``u`` becomes ``x = (u * scale - mean) / std``, of its channel. The factor goes into the weights of a convolution
that reads ``x`` alone, and so does the order of the channels. What is subtracted goes into its bias where it does not
pad: the zeros that it pads with are zeros of ``x``, which are bytes of ``mean / scale``, so that where it pads, this is
subtracted in front of it, as a node of its own. Where no such convolution reads ``x``, all is done as written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from calibration.arrays import AnyArray, Floats
from calibration.errors import ModelError
from calibration.graph.editing import (
    add_initializer,
    attribute_int,
    attribute_ints,
    attribute_string,
    change_constant,
    closed,
    constant,
    dimensions,
    only_reader,
    opened,
    taken_names,
    unique,
)

TO_NCHW = [0, 3, 1, 2]
HALF_NOISE = 2.0
"""How many times the noise of its rounding to FP16 may grow where a weight takes a factor in: small ones lose bits."""
LEAST_NOISE = 2.0**-11
"""Of a weight's own magnitude: that of FP16's rounding, which none falls below by chance."""


@dataclass(frozen=True)
class PixelSteps:
    """What is done to bytes (N, H, W, C), in this order; means and divisors are one, or one for each channel."""

    reverses: bool = False
    """The order of the channels."""
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    to_nchw: bool = False


@dataclass(frozen=True)
class PixelInput:
    """An input that takes bytes now, and how it was before."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """-1: any."""
    words: str
    """What was done with the steps, for a person."""


def fold_pixels(
    model: onnx.ModelProto, steps: PixelSteps, names: tuple[str, ...] = ()
) -> tuple[onnx.ModelProto, tuple[PixelInput, ...]]:
    """Let the named inputs take bytes, all inputs where none is named; and what became of each.

    Raises:
        ModelError: an input is not of floating point, or has not the axes or channels that the steps need; or the
            result is not valid ONNX.
    """
    opened_model = opened(model)
    inputs = [value for value in opened_model.graph.inputs if not names or value.name in names]
    for name in names:
        if name not in [value.name for value in inputs]:
            listed = ", ".join(f"'{value.name}'" for value in opened_model.graph.inputs)
            raise ModelError(f"there is no input '{name}', the network's are {listed}")
    folded = tuple(_Folder(opened_model.graph, value, steps).fold() for value in inputs)
    return closed(opened_model), folded


class _Folder:
    """Writes the steps behind one input."""

    def __init__(self, graph: ir.Graph, value: ir.Value, steps: PixelSteps) -> None:
        self._graph, self._value, self._steps = graph, value, steps
        self._taken = taken_names(graph)
        self._nodes: list[ir.Node] = []
        shape = dimensions(value)
        self._check(shape)
        assert shape is not None
        self._rank = len(shape)
        axis = 1 if steps.to_nchw else self._rank - 1
        self._num_channels = shape[axis] or max(len(steps.mean), len(steps.std), 1)
        self._conv = _first_convolution(value, axis)

    def fold(self) -> PixelInput:
        value, steps = self._value, self._steps
        old_type, old_shape = value.dtype, value.shape
        assert old_type is not None
        assert old_shape is not None
        readers = [(use.node, use.idx) for use in value.uses()]
        value.type = ir.TensorType(ir.DataType.UINT8)
        if steps.to_nchw:
            n, c, h, w = list(old_shape)
            value.shape = ir.Shape([n, h, w, c])
        end = self._append("Cast", [value], [ir.AttrInt64("to", int(ir.DataType.FLOAT))])
        taken = self._into_convolution() if self._conv is not None and old_type == ir.DataType.FLOAT else None
        end, words = self._written(end, taken)
        if steps.to_nchw:
            end = self._append("Transpose", [end], [ir.AttrInt64s("perm", TO_NCHW)])
            end.shape = old_shape
        if old_type != ir.DataType.FLOAT:
            end = self._append("Cast", [end], [ir.AttrInt64("to", int(old_type))])
        end.type, end.shape = ir.TensorType(old_type), old_shape
        for reader, index in readers:
            reader.replace_input_with(index, end)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = self._append("Identity", [end], [])
        if len(self._graph) and self._nodes:
            self._graph.insert_before(self._graph[0], self._nodes)
        shape = tuple(d if isinstance(d, int) else -1 for d in old_shape)
        return PixelInput(value.name or "", old_type.numpy().name, shape, "; ".join(filter(None, words)))

    def _written(self, end: ir.Value, taken: _Taken | None) -> tuple[ir.Value, list[str]]:
        """The steps that no convolution took, as nodes; and the words for all."""
        if taken is not None:
            if not taken.shift.any():
                return end, taken.words
            end = self._append("Sub", [end, self._constant("mean", _shortest(taken.shift))], [])
            return end, [*taken.words, f"{_listed(taken.shift)} is subtracted in front of it, as it pads with zeros"]
        steps, words = self._steps, []
        if steps.reverses:
            order = self._constant("order", np.arange(self._num_channels - 1, -1, -1, dtype=np.int64))
            end = self._append("Gather", [end, order], [ir.AttrInt64("axis", self._rank - 1)])
            words.append("the channels are brought into their order")
        parts = (("Mul", "scale", (steps.scale,)), ("Sub", "mean", steps.mean), ("Div", "std", steps.std))
        done = []
        for operator, name, numbers in parts:
            neutral = 0.0 if operator == "Sub" else 1.0
            if any(number != neutral for number in numbers):
                array = _shortest(np.asarray(numbers, np.float64))
                end = self._append(operator, [end, self._constant(name, array)], [])
                done.append(name)
        return end, [*words, f"{', '.join(done)}: computed as written" if done else ""]

    def _into_convolution(self) -> _Taken | None:
        """Let the first convolution take in what it can; None if it cannot take in the factor."""
        steps, conv = self._steps, self._conv
        assert conv is not None
        weight = constant(conv.inputs[1])
        assert weight is not None
        mean, std = (_each(values, self._num_channels, d) for values, d in ((steps.mean, 0.0), (steps.std, 1.0)))
        factor, shift = steps.scale / std, -mean / std
        if weight.shape[1] != self._num_channels:
            return None
        along = (1, -1, *(1,) * (weight.ndim - 2))
        scaled = weight.astype(np.float64) * factor.reshape(along)
        if not _keeps_bits(weight, scaled):
            return None
        name, words = conv.name or "", []
        pads = _pads(conv, weight)
        if shift.any() and not pads:
            axes = tuple(range(1, weight.ndim))
            bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
            has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
            if has_bias and bias is None:
                return None
            summed = (weight.astype(np.float64) * shift.reshape(along)).sum(axis=axes)
            bias = summed + (0.0 if bias is None else bias.astype(np.float64))
            change_constant(self._graph, conv, 2, bias.astype(np.float32), self._name(f"{name}_pixel_bias"))
            words.append(f"what is subtracted is in the bias of '{name}'")
        if steps.reverses:
            scaled = scaled[:, ::-1]
            words.append(f"the order of the channels is in the weights of '{name}'")
        if steps.reverses or (factor != 1.0).any():
            change_constant(self._graph, conv, 1, scaled.astype(np.float32), self._name(f"{name}_pixel_weight"))
        if (factor != 1.0).any():
            words.append(f"× {_listed(factor)} is in the weights of '{name}'")
        left = mean / steps.scale if pads else np.zeros(self._num_channels)
        return _Taken(words, left[::-1] if steps.reverses else left)

    def _append(self, operator: str, inputs: list[ir.Value], attributes: list[ir.Attr]) -> ir.Value:
        name = f"{self._value.name}_pixels"
        node = ir.Node("", operator, inputs, attributes, name=self._name(f"{name}_{operator}"))
        node.outputs[0].name = self._name(f"{name}_{operator.lower()}")
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = inputs[0].shape
        self._nodes.append(node)
        return node.outputs[0]

    def _constant(self, name: str, array: AnyArray) -> ir.Value:
        return add_initializer(self._graph, self._name(f"{self._value.name}_pixel_{name}"), array, ())

    def _name(self, name: str) -> str:
        name = unique(name, self._taken)
        self._taken.add(name)
        return name

    def _check(self, shape: tuple[int | None, ...] | None) -> None:
        name, steps = self._value.name, self._steps
        if self._value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
            dtype = "no known type" if self._value.dtype is None else self._value.dtype.name
            raise ModelError(f"input '{name}' is {dtype}, one of floating point is expected")
        needs_channels = steps.reverses or steps.to_nchw
        if shape is None or len(shape) < 2 or (needs_channels and len(shape) != 4):
            raise ModelError(f"input '{name}' has not the axes of pictures, (N, H, W, C)")
        channels = shape[1 if steps.to_nchw else -1]
        if steps.reverses and channels != 3:
            raise ModelError(f"input '{name}' has {channels or 'any number of'} channels, and 3 are brought into order")
        for words, values in (("mean", steps.mean), ("std", steps.std)):
            if len(values) not in (0, 1, channels):
                raise ModelError(f"input '{name}' has {channels} channels, and {words} has {len(values)} numbers")


@dataclass(frozen=True)
class _Taken:
    """What a convolution took in; the order of the channels is in it, too."""

    words: list[str]
    shift: Floats
    """What is still to be subtracted from each channel, in the order of the stored bytes."""


def _first_convolution(value: ir.Value, axis: int) -> ir.Node | None:
    """The convolution in one group that alone reads an input, if nothing but Transposes stands between."""
    while (reader := only_reader(value)) is not None and reader.domain in ("", "ai.onnx"):
        if reader.op_type == "Identity":
            value = reader.outputs[0]
        elif reader.op_type == "Transpose" and "perm" in reader.attributes:
            axis = list(reader.attributes["perm"].as_ints()).index(axis)
            value = reader.outputs[0]
        elif reader.op_type == "Reshape" and _is_transpose(reader, axis):
            axis, value = 1, reader.outputs[0]
        else:
            break
    if reader is None or reader.op_type != "Conv" or reader.inputs[0] is not value or axis != 1:
        return None
    weight = constant(reader.inputs[1])
    is_plain = weight is not None and weight.dtype == np.float32 and attribute_int(reader, "group", 1) == 1
    return reader if is_plain else None


def _is_transpose(reshape: ir.Node, axis: int) -> bool:
    """Whether a Reshape brings the only channel of pictures to the front, as tf2onnx writes that Transpose."""
    before, after = dimensions(reshape.inputs[0]), dimensions(reshape.outputs[0])
    return before is not None and after is not None and len(before) == len(after) == 4 and before[axis] == after[1] == 1


def _pads(conv: ir.Node, weight: AnyArray) -> bool:
    """Whether a convolution sees zeros around its data."""
    how = attribute_string(conv, "auto_pad", "NOTSET")
    if how == "NOTSET":
        return any(attribute_ints(conv, "pads"))
    return how != "VALID" and any(size != 1 for size in weight.shape[2:])


def _keeps_bits(weight: AnyArray, scaled: Floats) -> bool:
    """Whether FP16 rounds the scaled weight about as finely as the weight."""
    return _half_noise(scaled) <= HALF_NOISE * max(_half_noise(weight.astype(np.float64)), LEAST_NOISE)


def _half_noise(values: Floats) -> float:
    """The noise of rounding to FP16, of the magnitude of the values."""
    size = float(np.sqrt(np.mean(values**2)))
    with np.errstate(over="ignore", invalid="ignore"):
        noise = float(np.sqrt(np.mean((values.astype(np.float16).astype(np.float64) - values) ** 2)))
    return noise / size if size else 0.0


def _each(values: tuple[float, ...], num_channels: int, default: float) -> Floats:
    return np.broadcast_to(np.asarray(values or (default,), np.float64), (num_channels,)).copy()


def _shortest(values: Floats) -> AnyArray:
    """One number where all are the same."""
    return np.asarray(values[0] if (values == values[0]).all() else values, np.float32)


def _listed(values: Floats) -> str:
    return ", ".join(f"{value:.6g}" for value in np.atleast_1d(_shortest(values)))
