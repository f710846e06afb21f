"""What the values of some tensors say of those between them: bounds, so that not every tensor has to be watched.

Watching a tensor costs time, mostly because ONNX Runtime can no longer fuse the operators around it. FP16 needs of a
tensor only whether its largest |x| lies well within what FP16 holds, and that often follows:

- From above, by interval arithmetic: a convolution's output is at most amax * sum |w| + |b|, for each channel.
- From below, from what is computed of it: Relu, Clip around 0, pooling and moving make no value larger; where
  y = x * s, the largest |x| is at least that of y divided by that of s; where y = x + s, it is at least
  |max y - max s|, and at least |min y - min s|.

All of it holds exactly for real numbers; ``SLACK`` covers the rounding of float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from calibration.graph.editing import attribute_float, attribute_int, constant, holds_graph
from calibration.ranges.span import Span

SLACK = 1.001

MOVING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "DepthToSpace", "SpaceToDepth")
"""The output has the values of the first input, all of them."""
POOLING = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
SHRINKING = (*MOVING, *POOLING, "Relu", "Gather", "Slice", "Split")
"""No value of an output is larger in magnitude than the largest of the first input."""
WITHIN = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
"""Operators with outputs in an interval."""


@dataclass
class _Known:
    """What is known of each tensor: an interval that holds all values, exact extremes, and what |x| reaches."""

    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    """The largest |x| is at least this."""
    lowest: dict[str, float] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)

    def largest(self, name: str) -> float:
        """The largest |x| is at most this; infinite where nothing is known."""
        low, high = self.interval.get(name, (-math.inf, math.inf))
        return max(-low, high)

    def reach(self, name: str, largest: float) -> None:
        """Note that |x| reaches a value."""
        self.least[name] = max(self.least.get(name, 0.0), largest / SLACK)


def implied_spans(graph: ir.Graph, spans: Mapping[str, Span], largest: float, smallest: float) -> dict[str, Span]:
    """Spans of tensors that were not watched but whose largest |x| is known to lie in [smallest, largest].

    Such a span holds all values, it is wider than they are.

    Args:
        graph: the model.
        spans: what was seen.
        largest: the bound from above that is of interest, such as where FP16 ends.
        smallest: the bound from below.
    """
    known = _Known()
    for name, span in spans.items():
        known.interval[name] = (span.min, span.max)
        known.lowest[name], known.highest[name] = span.min, span.max
        known.least[name] = max(-span.min, span.max)
    for node in graph:
        if not holds_graph(node) and node.domain in ("", "ai.onnx"):
            _forward(node, known)
    for node in reversed(graph):
        if not holds_graph(node) and node.domain in ("", "ai.onnx"):
            _backward(node, known)
    implied = {}
    for node in graph:
        for name in (value.name or "" for value in node.outputs):
            high = known.largest(name)
            if name not in spans and smallest <= known.least.get(name, 0.0) and high <= largest:
                implied[name] = Span(high, -high, high)
    return implied


def _forward(node: ir.Node, known: _Known) -> None:
    """Bound the outputs by the inputs."""
    interval = _interval(node, known)
    for value in node.outputs:
        if interval is not None and value.name and value.name not in known.interval:
            low, high = interval
            known.interval[value.name] = (low - (SLACK - 1) * abs(low), high + (SLACK - 1) * abs(high))


def _interval(node: ir.Node, known: _Known) -> tuple[float, float] | None:
    """An interval that holds all values of all outputs; None if nothing is known."""
    if node.op_type in WITHIN:
        return WITHIN[node.op_type]
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return _product(node, known)
    inputs = [_of(value, known) for value in node.inputs]
    if not inputs or inputs[0] is None:
        return None
    low, high = inputs[0]
    if node.op_type == "Relu":
        return max(low, 0.0), max(high, 0.0)
    if node.op_type in SHRINKING or node.op_type == "Dropout":
        return min(low, 0.0), max(high, 0.0)
    if node.op_type == "Pad" and (filled := _filled(node)) is not None:
        return min(low, filled), max(high, filled)
    if node.op_type == "Clip" and (bounds := _clip(node)) is not None:
        return max(low, bounds[0]), min(high, bounds[1])
    if node.op_type in ("Add", "Sub", "Mul") and len(inputs) == 2 and inputs[1] is not None:
        return _arithmetic(node.op_type, inputs[0], inputs[1])
    if node.op_type == "Concat" and None not in inputs:
        both = [each for each in inputs if each is not None]
        return min(each[0] for each in both), max(each[1] for each in both)
    return None


def _arithmetic(op_type: str, a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    if op_type == "Add":
        return a[0] + b[0], a[1] + b[1]
    if op_type == "Sub":
        return a[0] - b[1], a[1] - b[0]
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _product(node: ir.Node, known: _Known) -> tuple[float, float] | None:
    """±(amax * sum |w| + |b|), the largest over the output channels."""
    data, weight = _of(node.inputs[0], known), constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if data is None or weight is None or bias is None or weight.ndim < 2:
        return None
    sums = np.abs(weight)
    if node.op_type == "Conv":
        sums = sums.reshape(len(sums), -1).sum(axis=1, dtype=np.float64)
    elif node.op_type == "ConvTranspose":
        sums = sums.sum(axis=(0, *range(2, sums.ndim)), dtype=np.float64)
    else:
        transposed = node.op_type == "Gemm" and attribute_int(node, "transB", 0)
        sums = sums.sum(axis=-1 if transposed else -2, dtype=np.float64)
    alpha, beta = abs(attribute_float(node, "alpha", 1.0)), abs(attribute_float(node, "beta", 1.0))
    most = float(max(-data[0], data[1]) * alpha * sums.max() + beta * np.abs(bias).max(initial=0.0))
    return (-most, most) if math.isfinite(most) else None


def _of(value: ir.Value | None, known: _Known) -> tuple[float, float] | None:
    """The interval of an input, which may be a constant."""
    if value is None:
        return None
    array = constant(value)
    if array is None:
        return known.interval.get(value.name or "")
    if not array.size or array.dtype.kind != "f":
        return None
    return float(array.min()), float(array.max())


def _filled(node: ir.Node) -> float | None:
    """What a Pad fills with, 0 for one that repeats values; None if that is not constant."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = np.zeros(1) if value is None else constant(value)
    return None if array is None or array.size != 1 else float(array.item())


def _clip(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Clip, by inputs (opset 11 and later); None if they are not constant."""
    bounds = [-math.inf, math.inf]
    for index in (1, 2):
        if len(node.inputs) > index and node.inputs[index] is not None:
            array = constant(node.inputs[index])
            if array is None:
                return None
            bounds[index - 1] = float(array)
    if "min" in node.attributes or "max" in node.attributes:
        return None
    return bounds[0], bounds[1]


def _backward(node: ir.Node, known: _Known) -> None:
    """What the output says of how far the inputs reach."""
    if len(node.outputs) != 1 or not node.inputs or node.inputs[0] is None:
        return
    source, name = node.inputs[0].name or "", node.outputs[0].name or ""
    least = known.least.get(name, 0.0)
    bounds = _clip(node) if node.op_type == "Clip" else None
    if node.op_type in SHRINKING or node.op_type == "Pad" or (bounds and bounds[0] <= 0.0 <= bounds[1]):
        known.reach(source, least)
    if node.op_type == "Relu" and known.highest.get(name, 0.0) > 0.0:
        known.highest.setdefault(source, known.highest[name])
    elif node.op_type in MOVING:
        for extremes in (known.highest, known.lowest):
            if name in extremes:
                extremes.setdefault(source, extremes[name])
    if node.op_type in ("Add", "Mul") and len(node.inputs) == 2 and node.inputs[0] is not node.inputs[1]:
        names = [value.name or "" if value is not None else "" for value in node.inputs]
        for operand, other in (names, names[::-1]):
            known.reach(operand, _reached(node.op_type, name, other, known))


def _reached(op_type: str, output: str, other: str, known: _Known) -> float:
    """How far the one input of an Add or Mul reaches at least, given the output and the other input."""
    if op_type == "Mul":
        largest = known.largest(other)
        return known.least.get(output, 0.0) / largest if 0.0 < largest < math.inf else 0.0
    reached = 0.0
    for extremes in (known.highest, known.lowest):
        if output in extremes and other in extremes:
            rounding = (SLACK - 1) * (abs(extremes[output]) + abs(extremes[other])) / 2
            reached = max(reached, abs(extremes[output] - extremes[other]) - rounding)
    return reached


def distinct_spans(names: Iterable[str]) -> dict[str, Span]:
    """A made-up span of about ±1 for each name, no two alike: to see which bounds the graph's structure allows."""
    spans = {}
    for index, name in enumerate(names):
        amax = 1.0 + 0.618034 * index % 1.0
        spans[name] = Span(amax, -amax / 3, amax)
    return spans
