"""Values that must not become 0 in FP16: a Log, a Reciprocal, a root or a division would make infinity or NaN of them.

FP16 loses digits below 6.1e-5 and has nothing but 0 below 3e-8. Whether values come down there is told by their
smallest |x| in calibration, which is known of tensors of one sign, as what goes into a logarithm or below a fraction is
nearly always. A value that is computed in FP16 and cast is 0 already; so what computes it stays FP32 too, and what it
is computed of, as far up as values are that small.

A constant that guards a division, such as the 1e-12 of a norm, is needed where calibration saw nothing small too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from calibration.graph.editing import constant, holds_graph
from calibration.precision.bounds import MOVING
from calibration.ranges.span import Span

FIRST = ("Log", "Reciprocal", "Sqrt", "ReduceLogSum")
"""Their input must not become 0."""
GUARDS = ("Add", "Sum", "Max", "Clip")
"""Keep a value from 0 by a constant."""
GUARDED = (*MOVING, "Sqrt")
"""What these make of a value that is kept from 0 is so too."""
PASSING = (
    *MOVING, *GUARDS, "Abs", "AveragePool", "Concat", "Div", "Gather", "GlobalAveragePool", "MaxPool", "Min", "Mul",
    "Neg", "Pad", "Pow", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Slice", "Split", "Sqrt", "Where",
)  # fmt: skip
"""Where an input of these becomes 0, the output may."""


@dataclass
class Underflow:
    """What FP16 would make 0, or leave too few digits, on the way into a node that cannot bear it."""

    reason_of: dict[str, str] = field(default_factory=dict)
    """Node that must stay FP32 -> why."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Tensor whose values would have to be seen -> node that reads it."""


def underflow(graph: ir.Graph, spans: Mapping[str, Span], fixed: Collection[str], least: float) -> Underflow:
    """Find them.

    Args:
        graph: FP32.
        spans: the values seen.
        fixed: names of values that follow from constants or shapes.
        least: the smallest |x| that FP16 holds well.
    """
    search = _Search(spans, fixed, least)
    for node in graph:
        for value in _must_not_vanish(node):
            if value.name not in fixed and value.dtype == ir.DataType.FLOAT:
                search.look(node, value)
    return search.found


def _must_not_vanish(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs of a node that make its output infinite, or far off, where they become 0."""
    if node.domain not in ("", "ai.onnx"):
        return
    index = 1 if node.op_type == "Div" else 0
    if node.op_type in ("Div", *FIRST) or (node.op_type == "Pow" and _is_negative(node.inputs[1])):
        value = node.inputs[index]
        if value is not None:
            yield value


class _Search:
    """Walks from what must not vanish to where it is computed."""

    def __init__(self, spans: Mapping[str, Span], fixed: Collection[str], least: float) -> None:
        self._spans, self._fixed, self._least = spans, fixed, least
        self._held: set[str] = set()
        self.found = Underflow()

    def look(self, node: ir.Node, value: ir.Value) -> None:
        """Judge one input of a node that must not become 0."""
        name, does = value.name or "", f"{node.op_type} '{node.name}'"
        if name not in self._spans:
            self.found.unknown[name] = node.name or ""
        elif (smallest := self._smallest(name)) is not None and 0.0 < smallest < self._least:
            reason = f"'{name}' comes down to {smallest:.2g}, which FP16 cannot hold well, and {does} reads it"
            self._keep(node, reason)
            self._hold(value, reason)
        for guard, by in _guards(value):
            self._keep(node, f"its input is kept from 0 by '{by}', which is 0 in FP16")
            self._hold_between(value, guard, f"'{by}', which keeps it from 0, is 0 in FP16, and {does} reads it")

    def _keep(self, node: ir.Node, reason: str) -> None:
        self.found.reason_of.setdefault(node.name or "", reason)

    def _hold(self, value: ir.Value, reason: str) -> None:
        """Keep what computes a value in FP32, and what computes the small values that it is computed of."""
        values = [value]
        while values:
            value = values.pop()
            producer = value.producer()
            if value.name in self._held or producer is None or holds_graph(producer):
                continue
            self._held.add(value.name or "")
            self._keep(producer, reason)
            if producer.op_type in PASSING:
                values += [
                    source for source in producer.inputs if source is not None and self._passes(source, producer)
                ]

    def _passes(self, source: ir.Value, producer: ir.Node) -> bool:
        """Whether values that are small, or not known, pass from there through the node."""
        name = source.name or ""
        if name in self._fixed or source.dtype != ir.DataType.FLOAT:
            return False
        if name in self._spans:
            smallest = self._smallest(name)
            return smallest is not None and smallest < self._least
        if producer.op_type not in MOVING:
            self.found.unknown[name] = producer.name or ""
        return True

    def _hold_between(self, value: ir.Value, guard: ir.Node, reason: str) -> None:
        """Keep all from a guard to a value in FP32."""
        while (producer := value.producer()) is not None:
            self._keep(producer, reason)
            source = producer.inputs[0]
            if producer is guard or source is None:
                return
            value = source

    def _smallest(self, name: str) -> float | None:
        """The smallest |x| seen of a tensor of one sign; None where values of both signs were seen."""
        span = self._spans[name]
        if span.min < 0.0 < span.max:
            return None
        return min(abs(span.min), abs(span.max))


def _guards(value: ir.Value) -> Iterator[tuple[ir.Node, str]]:
    """The node that keeps a value from 0 by a constant that is 0 in FP16, and the constant's name; at most one."""
    while (producer := value.producer()) is not None:
        if producer.op_type in GUARDS:
            for other in producer.inputs:
                array = constant(other)
                if other is not None and array is not None and array.dtype == np.float32 and _vanishes(array):
                    yield producer, other.name or ""
                    return
        source = producer.inputs[0] if producer.op_type in GUARDED else None
        if source is None:
            return
        value = source


def _vanishes(array: np.ndarray) -> bool:
    """Whether it has no value of 0, and FP16 has nothing else for one."""
    return bool(array.size and array.all() and not np.abs(array).astype(np.float16).any())


def _is_negative(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and bool(array.size) and bool((array < 0).any())
