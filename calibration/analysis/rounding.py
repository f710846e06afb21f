"""The FP32 model with what a format does to numbers written into it as plain arithmetic: a random correct engine.

An engine of some precision rounds tensors and weights. How far that moves its outputs is found by rounding in the FP32
model and running it, several times: at each run every rounding has another phase, so that the runs are as far from each
other as engines whose scales, kernels and orders of summation differ. That is Monte Carlo arithmetic (Parker, "Monte
Carlo Arithmetic", 1997; before it Vignes's CESTAC), with the rounding itself for the noise, so that what a format
holds exactly, such as the zeros behind a ReLU, gets none.

- Floating point of p bits: x f is cut to p bits (Dekker, "A floating-point technique for extending the available
  precision", 1971: c x - (c x - x) with c = 2^(24 - p) + 1) and divided by f, a number drawn from 1 to 2.
- Sums of n products in p bits: the weights are cut to p - log2(n / 2) / 2 bits, once for each model, so that they stay
  constants, which kernels are quick with. The roundings of a sum of n terms are a random walk of n steps (Higham and
  Mary, "A new approach to probabilistic rounding error analysis", 2019), and as large as if each product had that error
  of its own.
- INT8: round(x / step) in the levels of the range, times step; the step is drawn up to a fourth of an octave around
  that of the range, whose ends stay. Noise of step^2 / 12 (Widrow and Kollar, "Quantization Noise", 2008) where values
  are spread, and what is cut off at the ends. Weights are rounded as they are going to be.

No format cuts what follows from shapes alone, as in a model cast to FP16: a Range up to a size that its last bit moves
has one value more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.arrays import Floats
from calibration.graph.editing import (
    add_initializer,
    change_constant,
    closed,
    constant,
    from_constants,
    opened,
    shape_born_values,
    taken_names,
    unique,
)
from calibration.precision.place import place
from calibration.precision.placement import (
    PRODUCTS,
    NodeInput,
    PlacementOptions,
    QdqPlacement,
    is_float_weight,
    weight_axis,
)
from calibration.precision.scale import Quantization
from calibration.precision.weights import bias_of, rounded_weight
from calibration.ranges.span import Span

FloatFeed = dict[str, npt.NDArray[np.float32]]

FP32_BITS = 24
LARGEST = 1e30
"""Values are cut there before they are multiplied, such as the -3.4e38 of a mask."""
OCTAVES = 0.25
GIVES_BACK = ("Relu", "Clip", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Concat")
"""What they give is in the format where what they read is: an engine rounds it once, and most fuse them besides."""


@dataclass(frozen=True)
class Format:
    """Bits of the significand, the leading one counted."""

    bits: int
    """Of every tensor."""
    sum_bits: int
    """Of the sums in convolutions and matrix products."""
    weight_bits: int = 0
    """Of weights alone; 0: as sums have it."""


FP32, TF32, FP16 = Format(24, 24), Format(11, 24), Format(11, 11)
"""TensorRT's FP32 is TF32 unless that is switched off; its FP16 may add in FP16."""
FP16_WEIGHTS = Format(24, 24, 11)
"""Kept in FP16 and computed with in FP32, as LiteRT does."""


@dataclass(frozen=True)
class Rounded:
    """A model that rounds, and its inputs beside those of the network."""

    model: onnx.ModelProto
    phases: tuple[str, ...]
    steps: Mapping[str, Quantization]
    """Prefix of three inputs, ``_step``, ``_low`` and ``_high`` -> how the tensor is quantized."""
    exact: Mapping[str, str]
    """Tensor of the network -> the tensor that holds it before it is rounded."""
    cut: Mapping[str, str]
    """The same, rounded to the format."""
    placed: Mapping[str, str]
    """The same, rounded to INT8, for those that are."""
    switches: Mapping[str, str]
    """Node -> the input that says whether its weight is rounded to INT8; none unless asked for."""
    shares: tuple[str, ...] = ()
    """Inputs, (): what part of a tensor's own range a level of it is, where scales are found at each run."""

    def draw(self, random: np.random.Generator) -> FloatFeed:
        """Values of these inputs for one run, each ()."""
        phases = {name: np.asarray(np.float32(random.uniform(1, 2))) for name in self.phases}
        shares = {name: np.asarray(np.float32(2 ** random.uniform(-OCTAVES, 1) / 255)) for name in self.shares}
        return phases | shares | steps_feed(self.steps, random)


def steps_feed(steps: Mapping[str, Quantization], random: np.random.Generator | None) -> FloatFeed:
    """The inputs of tensors in INT8: the steps as they are, or drawn around them with the ends of the ranges kept."""
    feed = {}
    for prefix, how in steps.items():
        limits = np.iinfo(how.dtype)
        change = 1.0 if random is None else 2 ** random.uniform(-OCTAVES, OCTAVES)
        feed[f"{prefix}_step"] = np.float32(how.scale * change)
        feed[f"{prefix}_low"] = np.float32(round((limits.min - how.zero_point) / change))
        feed[f"{prefix}_high"] = np.float32(round((limits.max - how.zero_point) / change))
    return {name: np.asarray(value) for name, value in feed.items()}


def integer_feed(steps: Mapping[str, Quantization]) -> dict[str, npt.NDArray[Any]]:
    """The inputs of tensors in INT8 that pass through integers: the steps and zero points as they are, each ()."""
    feed: dict[str, npt.NDArray[Any]] = {}
    for prefix, how in steps.items():
        feed[f"{prefix}_step"] = np.asarray(how.scale, np.float32)
        feed[f"{prefix}_zero"] = np.asarray(how.zero_point, how.dtype)
    return feed


SMALLEST_STEP, LARGEST_LEVEL = 2.0**-40, 1e38


def unrounded_feed(prefixes: Iterable[str]) -> FloatFeed:
    """The inputs of tensors in INT8 with which they are not rounded: steps below FP32's, and no ends."""
    return {
        f"{prefix}_{name}": np.asarray(np.float32(value))
        for prefix in prefixes
        for name, value in (("step", SMALLEST_STEP), ("low", -LARGEST_LEVEL), ("high", LARGEST_LEVEL))
    }


Int8Inputs = Literal["drawn", "switched", "integers"]
"""What can be said of INT8 at each run.

- ``drawn``: the steps of tensors and their ends (``steps_feed``).
- ``switched``: besides, for each weight, (), 0 where it is rounded and 1 where it is exact.
- ``integers``: steps and zero points (``integer_feed``). Tensors pass through QuantizeLinear and DequantizeLinear,
  which give the same to the bit in a fourth of the time, and have no more than 256 levels.
"""

Placing = Callable[[ir.Graph], QdqPlacement]
"""From the opened FP32 model, which it may prepare, to where INT8 is placed."""


def rounded_from_onnx(
    model: onnx.ModelProto,
    form: Format | None,
    placing: Placing | None,
    random: np.random.Generator | None = None,
    *,
    inputs: Int8Inputs = "drawn",
) -> Rounded:
    """The model with the format's rounding of every tensor and weight, and with INT8 where it is placed.

    Args:
        model: FP32; it is not changed.
        form: the floating-point format; None where only what INT8 rounds counts.
        placing: for INT8, where; None for none.
        random: draws the phases of the weights' rounding, which are the model's own; by default of seed 0.
        inputs: what can be said of INT8 at each run, see ``Int8Inputs``.

    Raises:
        DataError: a tensor that must be quantized has no range.
        ModelError: the result is not valid ONNX.
    """
    opened_model = opened(model)
    placement = placing(opened_model.graph) if placing else None
    writer = _Writer(opened_model.graph, form, placement, random or np.random.default_rng(0))
    writer.switches = {} if inputs == "switched" else None
    writer.in_integers = inputs == "integers"
    writer.write()
    exact, cut, placed = (
        {name: value.name or "" for name, value in writer.found[kind].items()} for kind in ("exact", "cut", "placed")
    )
    phases, switches = tuple(writer.phases), writer.switches or {}
    return Rounded(closed(opened_model), phases, writer.steps, exact, cut, placed, switches)


def placing_for(ranges: Mapping[str, Span], options: PlacementOptions) -> Placing:
    """Where a target wants INT8, with these ranges."""

    def placing(graph: ir.Graph) -> QdqPlacement:
        return place(graph, ranges, options)

    return placing


class _Writer:
    """Writes the arithmetic into a graph."""

    def __init__(
        self, graph: ir.Graph, form: Format | None, placement: QdqPlacement | None, random: np.random.Generator
    ) -> None:
        self._graph, self._form, self._random = graph, form, random
        self._placement = placement or QdqPlacement("tensorrt", (), (), (), (), ())
        self._taken = taken_names(graph)
        self.phases: list[str] = []
        self._numbers: dict[float, ir.Value] = {}
        self.steps: dict[str, Quantization] = {}
        self.switches: dict[str, str] | None = None
        """By node; None where weights are rounded for good."""
        self.in_integers = False
        self.found: dict[str, dict[str, ir.Value]] = {"exact": {}, "cut": {}, "placed": {}}

    def write(self) -> None:
        fixed = from_constants(self._graph)
        of_shapes = shape_born_values(self._graph, fixed)
        nodes = {node.name or "": node for node in self._graph}
        values = [*self._graph.inputs, *(value for node in nodes.values() for value in node.outputs)]
        moving = {value.name or "": value for value in values if value.name not in fixed and _is_float(value)}
        self.found["exact"] |= moving
        self._write_weights(nodes)
        cut, form = self.found["cut"], self._form
        in_format: set[int] = set()
        for name, value in moving.items():
            is_exact = name in of_shapes or _gives_back(value, in_format)
            cut[name] = value if form is None or is_exact else self._cut_tensor(value, form.bits)
            in_format.add(id(cut[name]))
        for tensor in self._placement.tensors:
            outputs = self.found["placed"][tensor.tensor] = self._quantize(cut[tensor.tensor], tensor.quantization)
            for reader in tensor.readers:
                nodes[reader.node].replace_input_with(reader.index, outputs)
            if tensor.is_output:
                self._make_output(cut[tensor.tensor], outputs)

    def _write_weights(self, nodes: Mapping[str, ir.Node]) -> None:
        weights = {weight.reader: weight for weight in self._placement.weights}
        for node in nodes.values():
            if self._form is not None and node.op_type in PRODUCTS and node.domain in ("", "ai.onnx"):
                for index in (0, 1):
                    if NodeInput(node.name or "", index) not in weights and is_float_weight(node.inputs[index]):
                        self._cut_weight(node, index, self._form)
        for reader, weight in weights.items():
            node = nodes[reader.node]
            array = constant(node.inputs[reader.index])
            assert array is not None
            rounded = rounded_weight(node, weight)
            self._replace_weight(node, reader.index, rounded.values)
            if self.switches is not None:
                self.switches[reader.node] = self._switch(node, reader.index, array - rounded.values)
            if rounded.mean_shift is not None:
                self._shift_bias(node, rounded.mean_shift)

    def _cut_weight(self, node: ir.Node, index: int, form: Format) -> None:
        array = constant(node.inputs[index])
        assert array is not None
        axis = weight_axis(node) if index == 1 else None
        num_terms = array.size // (array.shape[axis] if axis is not None else array.shape[-1]) or 1
        bits = form.weight_bits or math.floor(form.sum_bits - max(math.log2(num_terms / 2), 0.0) / 2)
        self._replace_weight(node, index, _cut_array(array, max(min(bits, form.bits), 2), self._random.uniform(1, 2)))

    def _replace_weight(self, node: ir.Node, index: int, array: npt.NDArray[np.float32]) -> None:
        value = node.inputs[index]
        assert value is not None
        node.replace_input_with(index, add_initializer(self._graph, self._name(f"{value.name}_rounded"), array, ()))

    def _shift_bias(self, node: ir.Node, shift: Floats) -> None:
        """Take the shift of the means back that rounding the node's weight brings, unless the weight is exact."""
        bias = bias_of(node, len(shift))
        if bias is None:
            return
        array = bias.shifted(shift)
        change_constant(self._graph, bias.node, bias.index, array, self._name(f"{node.name}_bias_shifted"))
        if self.switches is not None:
            switch = next(each for each in self._graph.inputs if each.name == self.switches[node.name or ""])
            self._switch(bias.node, bias.index, np.asarray(bias.array - array, np.float32), switch)

    def _switch(self, node: ir.Node, index: int, rest: npt.NDArray[np.float32], switch: ir.Value | None = None) -> str:
        """A constant and its rest times an input, by default a new one; the name of that."""
        weight = node.inputs[index]
        assert weight is not None
        switch = switch or self._input(f"{weight.name}_switch")
        rest_value = add_initializer(self._graph, self._name(f"{weight.name}_rest"), rest, ())
        product = self._node("Mul", [rest_value, switch])
        nodes = [product, self._node("Add", [weight, product.outputs[0]])]
        self._graph.insert_before(node, nodes)
        node.replace_input_with(index, nodes[-1].outputs[0])
        return switch.name or ""

    def _cut_tensor(self, value: ir.Value, bits: int) -> ir.Value:
        """Cut a tensor for all its readers; the model's output of this name is the cut one."""
        uses = list(value.uses())
        is_output = value.is_graph_output() and not value.is_graph_input()
        replacement = self._cut(value, bits)
        for use in uses:
            use.node.replace_input_with(use.idx, replacement)
        if is_output:
            self._make_output(value, replacement)
        return replacement

    def _cut(self, value: ir.Value, bits: int) -> ir.Value:
        """x f cut to so many bits, / f."""
        phase = self._input(f"{value.name}_phase")
        self.phases.append(phase.name or "")
        nodes = [self._node("Mul", [value, phase])]
        if bits < FP32_BITS:
            bounds = [self._constant(-LARGEST), self._constant(LARGEST)]
            nodes.append(self._node("Clip", [nodes[-1].outputs[0], *bounds]))
            whole = nodes[-1].outputs[0]
            nodes.append(self._node("Mul", [whole, self._constant(2.0 ** (FP32_BITS - bits) + 1)]))
            large = nodes[-1].outputs[0]
            nodes.append(self._node("Sub", [large, whole]))
            nodes.append(self._node("Sub", [large, nodes[-1].outputs[0]]))
        nodes.append(self._node("Div", [nodes[-1].outputs[0], phase]))
        self._insert(value, nodes)
        return nodes[-1].outputs[0]

    def _quantize(self, value: ir.Value, how: Quantization) -> ir.Value:
        """round(x / step) within the levels, times step."""
        prefix = self._name(f"{value.name}_int8")
        self.steps[prefix] = how
        if self.in_integers:
            kind = ir.DataType.UINT8 if how.dtype == "uint8" else ir.DataType.INT8
            grid = [self._input(f"{prefix}_step"), self._input(f"{prefix}_zero", kind)]
            quantize = self._node("QuantizeLinear", [value, *grid])
            quantize.outputs[0].type = ir.TensorType(kind)
            nodes = [quantize, self._node("DequantizeLinear", [quantize.outputs[0], *grid])]
            self._insert(value, nodes)
            return nodes[-1].outputs[0]
        step, low, high = (self._input(f"{prefix}_{name}") for name in ("step", "low", "high"))
        divide = self._node("Div", [value, step])
        nodes = [divide, self._node("Round", [divide.outputs[0]])]
        nodes.append(self._node("Clip", [nodes[-1].outputs[0], low, high]))
        nodes.append(self._node("Mul", [nodes[-1].outputs[0], step]))
        self._insert(value, nodes)
        return nodes[-1].outputs[0]

    def _insert(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)

    def _make_output(self, value: ir.Value, replacement: ir.Value) -> None:
        name = value.name or ""
        value.name = self._name(f"{name}_exact")
        replacement.name = name
        index = next(i for i, output in enumerate(self._graph.outputs) if output is value)
        self._graph.outputs[index] = replacement

    def _node(self, operator: str, inputs: Iterable[ir.Value]) -> ir.Node:
        values = list(inputs)
        node = ir.Node("", operator, values, name=self._name(f"{values[0].name}_{operator}"))
        node.outputs[0].name = self._name(f"{values[0].name}_{operator.lower()}")
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = values[0].shape
        return node

    def _input(self, name: str, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        value = ir.Value(name=self._name(name), type=ir.TensorType(kind), shape=ir.Shape([]))
        self._graph.inputs.append(value)
        return value

    def _constant(self, number: float) -> ir.Value:
        if number not in self._numbers:
            array = np.array(number, np.float32)
            self._numbers[number] = add_initializer(self._graph, self._name("number"), array, ())
        return self._numbers[number]

    def _name(self, name: str) -> str:
        unique_name = unique(name, self._taken)
        self._taken.add(unique_name)
        return unique_name


def _cut_array(array: npt.NDArray[Any], bits: int, phase: float) -> npt.NDArray[np.float32]:
    """As ``_Writer._cut``, of a constant."""
    whole = np.clip(np.asarray(array, np.float32) * np.float32(phase), np.float32(-LARGEST), np.float32(LARGEST))
    if bits < FP32_BITS:
        large = whole * np.float32(2.0 ** (FP32_BITS - bits) + 1)
        whole = large - (large - whole)
    return np.asarray(whole / np.float32(phase), np.float32)


def _gives_back(value: ir.Value, in_format: Collection[int]) -> bool:
    """Whether its node gives back what it reads of tensors in the format, or bounds: it holds them exactly."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in GIVES_BACK:
        return False
    return all(id(each) in in_format for each in (node.inputs if node.op_type == "Concat" else node.inputs[:1]))


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
