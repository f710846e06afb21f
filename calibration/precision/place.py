"""Decide where a target wants INT8: prepares the graph, and asks the target's own placement."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from calibration.graph.editing import from_constants
from calibration.graph.fold import join_bias
from calibration.precision import placement_onnxruntime, placement_tensorrt
from calibration.precision.placement import PlacementContext, PlacementOptions, QdqPlacement
from calibration.ranges.span import Span


def place(graph: ir.Graph, ranges: Mapping[str, Span], options: PlacementOptions) -> QdqPlacement:
    """Where the target wants INT8 with these ranges; for ``onnxruntime``, biases are joined to their products first.

    Raises:
        DataError: a tensor that must be quantized has no range.
    """
    if options.target == "onnxruntime":
        join_bias(graph, options.exclude)
    decide = placement_tensorrt.place if options.target == "tensorrt" else placement_onnxruntime.place
    return decide(PlacementContext(graph, ranges, options, from_constants(graph)))
