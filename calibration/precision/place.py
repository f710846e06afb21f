"""Decide where a target wants INT8: prepares the graph, and asks the target's own placement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from calibration.graph.editing import from_constants
from calibration.graph.fold import join_bias
from calibration.precision import placement_onnxruntime, placement_tensorrt
from calibration.precision.placement import (
    PlacementContext,
    PlacementOptions,
    QdqPlacement,
    QuantizedWeight,
    fixed_span,
    span_in_model,
)
from calibration.ranges.span import Span


def place(graph: ir.Graph, ranges: Mapping[str, Span], options: PlacementOptions) -> QdqPlacement:
    """Where the target wants INT8 with these ranges; for ``onnxruntime``, biases are joined to their products first.

    Raises:
        DataError: a tensor that must be quantized has no range.
    """
    if options.target == "onnxruntime":
        join_bias(graph, options.exclude)
    decide = placement_tensorrt.place if options.target == "tensorrt" else placement_onnxruntime.place
    ranges = _FixedRanges(graph, ranges)
    placement = decide(PlacementContext(graph, ranges, options, from_constants(graph), ranges.by_definition))
    if options.nearest:
        return placement
    nodes = {node.name or "": node for node in graph}
    weights = [_corrected(weight, nodes[weight.reader.node], ranges) for weight in placement.weights]
    return replace(placement, weights=tuple(weights))


class _FixedRanges(Mapping[str, Span]):
    """Ranges by calibration, but for the tensors that have one by definition and that the user set none for."""

    def __init__(self, graph: ir.Graph, ranges: Mapping[str, Span]) -> None:
        makers = {value.name or "": node for node in graph for value in node.outputs}
        self._makers = {name: node for name, node in makers.items() if fixed_span(node) is not None}
        self._ranges = ranges

    @property
    def by_definition(self) -> frozenset[str]:
        """Names of those."""
        return frozenset(self._makers)

    def __getitem__(self, name: str) -> Span:
        maker = self._makers.get(name)
        fixed = fixed_span(maker)
        if fixed is not None and name not in self._ranges:
            return fixed
        return span_in_model(maker, self._ranges[name])

    def __contains__(self, name: object) -> bool:
        return name in self._makers or name in self._ranges

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._ranges, *self._makers)))

    def __len__(self) -> int:
        return len(set(self._ranges) | set(self._makers))


def _corrected(weight: QuantizedWeight, node: ir.Node, ranges: Mapping[str, Span]) -> QuantizedWeight:
    """With what is known of the data that the weight is multiplied by."""
    data = node.inputs[1 - weight.reader.index]
    name = "" if data is None else data.name or ""
    means = ranges[name].channel_means if name in ranges else ()
    return replace(weight, keeps_sums=True, data_means=means)
