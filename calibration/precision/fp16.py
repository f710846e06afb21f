"""Write FP16 types into an ONNX model, but where FP16 cannot hold the values; inputs and outputs stay FP32."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeGuard

import numpy as np
import onnx
import onnx_ir as ir

from calibration.errors import DataError
from calibration.graph.editing import (
    add_initializer,
    closed,
    constant,
    dimensions,
    from_constants,
    named,
    opened,
    shape_born_values,
    taken_names,
    unique,
)
from calibration.graph.patterns import check_known
from calibration.precision.bounds import implied_spans
from calibration.precision.half_ports import Ports, half_ports
from calibration.precision.product_transposes import moved_transposes
from calibration.precision.underflow import underflow
from calibration.ranges.span import Span

FP16_MAX = 65504.0
FP16_TINY = 2.0**-14
"""Smallest normal FP16, about 6.1e-5; below it digits are lost, below 3e-8 everything."""
MARGIN = 2.0
"""Calibration does not see all data: values may grow by this factor before FP16 overflows, or shrink so before it
underflows."""

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_ANY_TYPE = ("Cast", "Shape", "Size")
"""Take what they get: a Cast in front of them would be for nothing."""
_AVERAGES = ("GlobalAveragePool", "AveragePool", "ReduceMean")
_SQUARES = ("ReduceL2", "LpNormalization", "InstanceNormalization", "MeanVarianceNormalization", "GlobalLpPool")
"""Square their input, or its distance from the mean, on the way."""

_LOG = logging.getLogger(__name__)


def fp16_from_onnx(model: onnx.ModelProto, keep_fp32: Collection[str]) -> onnx.ModelProto:
    """The model with FP16 types, weights included; Casts stand at its edges and around what stays FP32.

    FP32 stay: the nodes in ``keep_fp32``; operators that ONNX does not define for FP16; nodes with weights that FP16
    cannot hold (see ``weights_beyond_fp16``); nodes with subgraphs, whole; arithmetic on shapes, where 65,505 pixels
    are no number of FP16. There is one Cast for each tensor and type, and none that only undoes another. Products by
    weights stand before a Transpose of the batch, on which ONNX Runtime crashes in FP16.

    Args:
        model: FP32; it is not changed.
        keep_fp32: names of nodes, as ``named`` gives them.

    Raises:
        ModelError: ``keep_fp32`` names no node, or the result is not valid ONNX.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    check_known(keep_fp32, [node.name or "" for node in graph], "keep_fp32")
    beyond = _weights_beyond(graph)
    for name, reason in beyond.items():
        _LOG.info("node '%s' stays FP32: %s", name, reason)
    opset = opened_model.opset_imports.get("", 1)
    shape_born = _shape_born(graph)
    ports: dict[str, Ports] = {}
    for node in graph:
        is_full = node.name in keep_fp32 or node.name in beyond or node.name in shape_born
        ports[node.name or ""] = Ports() if is_full else half_ports(node, opset, graph)
    _retype(graph, ports)
    _drop_idle_casts(graph)
    _cast_behind_transposes(graph, taken_names(graph))
    moved_transposes(graph)
    return closed(opened_model)


def weights_beyond_fp16(model: onnx.ModelProto) -> dict[str, str]:
    """Nodes with a weight or constant that FP16 cannot hold: name -> reason.

    That is a finite value beyond ±65,504, or a tensor all of whose values are so small that FP16 loses digits
    (below 6.1e-5), such as the epsilon of a normalization. Small values beside large ones do no harm: their error is
    less than the rounding of the large ones.
    """
    return _weights_beyond(opened(model).graph)


def nodes_beyond_fp16(model: onnx.ModelProto, spans: Mapping[str, Span]) -> dict[str, str]:
    """Nodes that must stay FP32 for the values seen in calibration or for their weights: name -> reason.

    A node is named if an input or output of it comes within a factor of 2 of 65,504, or is never as large as FP16's
    smallest normal number; if the sum inside an average does; if the square inside a norm does; or if a logarithm, root
    or division reads values that come down there, see ``calibration.precision.underflow``.

    Args:
        model: FP32; names are those that ``named`` gives.
        spans: the values seen, of every float32 activation of this very model but those of which
            ``undecided_for_fp16`` finds that FP16 holds them.

    Raises:
        DataError: an activation has no range.
    """
    graph = opened(model).graph
    fixed = from_constants(graph)
    fixed |= shape_born_values(graph, fixed)
    reason_of = _weights_beyond(graph)
    small = underflow(graph, spans, fixed, FP16_TINY * MARGIN)
    for name, reader in small.unknown.items():
        _span(spans, name, reader)
    spans = {**_implied(graph, spans), **spans}
    for node in graph:
        reasons = [reason_of[node.name]] if node.name in reason_of else []
        for value in (*node.inputs, *node.outputs):
            if not _is_float(value) or value.name in fixed or not _is_read(value):
                continue
            reasons += _beyond(value.name or "", _span(spans, value.name or "", node.name or ""))
        if node.inputs and node.inputs[0] is not None and node.inputs[0].name in spans:
            reasons += _beyond_inside(node, spans)
        if reasons:
            reason_of[node.name or ""] = reasons[0]
    return {**small.reason_of, **reason_of}


def undecided_for_fp16(graph: ir.Graph, spans: Mapping[str, Span]) -> list[str]:
    """The activations of which ``spans`` does not say, neither by itself nor by what follows, that FP16 holds them.

    In topological order. All that goes in or comes out of operators that sum or square inside counts, if not seen; so
    does what goes into a logarithm, a root, or below a fraction.
    """
    fixed = from_constants(graph)
    fixed |= shape_born_values(graph, fixed)
    decided = {*spans, *_implied(graph, spans)}
    undecided: dict[str, None] = {}
    for node in graph:
        inside = node.op_type in (*_AVERAGES, *_SQUARES)
        for value in (*node.inputs, *node.outputs):
            if _is_float(value) and value.name not in fixed and _is_read(value):
                name = value.name or ""
                if name not in decided or (inside and name not in spans):
                    undecided[name] = None
    undecided |= dict.fromkeys(underflow(graph, spans, fixed, FP16_TINY * MARGIN).unknown)
    order = {value.name or "": index for index, value in enumerate(_values(graph))}
    return sorted(undecided, key=order.__getitem__)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs, and what nodes compute, in topological order."""
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _implied(graph: ir.Graph, spans: Mapping[str, Span]) -> dict[str, Span]:
    """Spans of the activations that were not watched, but follow to be well within FP16."""
    return implied_spans(graph, spans, FP16_MAX / MARGIN, FP16_TINY)


def _span(spans: Mapping[str, Span], name: str, node: str) -> Span:
    if name not in spans:
        raise DataError(
            f"ranges: node '{node}' has '{name}', for which calibration has no range; calibrate this model again"
        )
    return spans[name]


def _is_float(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """A tensor; not a sequence of tensors, which has its element's type too."""
    return value is not None and value.dtype == _FLOAT and isinstance(value.type, ir.TensorType)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _largest(span: Span) -> float:
    return max(abs(span.min), abs(span.max))


def _beyond(name: str, span: Span) -> list[str]:
    """Why FP16 cannot hold the values of a tensor; empty if it can."""
    largest = _largest(span)
    if largest * MARGIN > FP16_MAX:
        return [f"'{name}' reaches {largest:.4g}, FP16 ends at {FP16_MAX:.0f}"]
    if 0.0 < largest < FP16_TINY:
        return [f"'{name}' is at most {largest:.2g}, below FP16's smallest normal number {FP16_TINY:.2g}"]
    return []


def _beyond_inside(node: ir.Node, spans: Mapping[str, Span]) -> list[str]:
    """Why FP16 cannot hold what a node may have on the way from its input to its output; empty if it can."""
    assert node.inputs[0] is not None
    span = spans[node.inputs[0].name or ""]
    if node.op_type in _AVERAGES:
        count = _num_averaged(node)
        output = spans.get(node.outputs[0].name or "", span)
        one_sided = span.min >= 0.0 or span.max <= 0.0
        total = count * (_largest(output) if one_sided else _largest(span))
        if total * MARGIN > FP16_MAX:
            return [f"the sum of {count} values inside may reach {total:.4g}, FP16 ends at {FP16_MAX:.0f}"]
    if node.op_type in _SQUARES:
        square = _largest(span) ** 2
        if square * MARGIN > FP16_MAX:
            return [f"the square of '{node.inputs[0].name}' reaches {square:.4g}, FP16 ends at {FP16_MAX:.0f}"]
        if 0.0 < square < FP16_TINY:
            return [f"the square of '{node.inputs[0].name}' is at most {square:.2g}, which FP16 cannot hold well"]
    return []


def _num_averaged(node: ir.Node) -> int:
    """How many values go into one value of the output; dimensions that are not known count as one."""
    if node.op_type == "AveragePool":
        return math.prod(node.attributes["kernel_shape"].as_ints())
    before, after = dimensions(node.inputs[0]), dimensions(node.outputs[0])
    size = math.prod(d for d in before or () if d)
    return max(1, size // max(1, math.prod(d for d in after or () if d)))


def _weights_beyond(graph: ir.Graph) -> dict[str, str]:
    reason_of: dict[str, str] = {}
    for node in graph:
        for value in node.inputs:
            array = constant(value)
            if value is None or array is None or array.dtype != np.float32 or not array.size:
                continue
            largest = float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max())
            if largest > FP16_MAX:
                reason_of.setdefault(node.name or "", f"its constant '{value.name}' reaches {largest:.4g}")
            elif 0.0 < largest < FP16_TINY:
                reason_of.setdefault(node.name or "", f"its constant '{value.name}' is at most {largest:.2g}")
    return reason_of


def _shape_born(graph: ir.Graph) -> frozenset[str]:
    """Names of the nodes whose values follow from shapes alone."""
    born = shape_born_values(graph, from_constants(graph))
    return frozenset(node.name or "" for node in graph if any(value.name in born for value in node.outputs))


def _retype(graph: ir.Graph, ports: Mapping[str, Ports]) -> None:
    """Give every reader the type that its port has: weights are stored in it, activations are cast to it once."""
    weights = [(value, constant(value)) for value in graph.initializers.values()]
    produced = [output for node in graph for output in node.outputs]
    floats = [value for value in (*graph.inputs, *produced) if value.dtype == _FLOAT]
    float_outputs = [value for value in graph.outputs if value.dtype == _FLOAT]
    for node in graph:
        for index in ports[node.name or ""].outputs:
            node.outputs[index].type = ir.TensorType(_HALF)
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
    for value, array in weights:
        uses = [use for use in value.uses() if use.idx in _inputs(use.node, graph, ports)]
        if array is not None and uses:
            _rewire(uses, add_initializer(graph, f"{value.name}_fp16", array.astype(np.float16)))
    taken = taken_names(graph)
    for value in floats:
        readers = [use for use in value.uses() if use.node.op_type not in _ANY_TYPE]
        is_half = value.dtype == _HALF
        uses = [use for use in readers if (use.idx in _inputs(use.node, graph, ports)) != is_half]
        is_output = is_half and any(value is output for output in float_outputs)
        if uses or is_output:
            cast = _cast(graph, value, _FLOAT if is_half else _HALF, taken)
            _rewire(uses, cast)
            if is_output:
                _become_output(graph, value, cast, taken)


def _inputs(node: ir.Node, graph: ir.Graph, ports: Mapping[str, Ports]) -> frozenset[int]:
    """Indices of the FP16 inputs of a node; none in a subgraph."""
    return ports[node.name or ""].inputs if node.graph is graph else frozenset()


def _rewire(uses: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, taken: set[str]) -> ir.Value:
    """A Cast of ``value`` right behind it."""
    name = unique(f"{value.name}_{'fp16' if to == _HALF else 'fp32'}", taken)
    taken.add(name)
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], name=unique(f"{name}_Cast", taken))
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, ir.TensorType(to), value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]


def _become_output(graph: ir.Graph, value: ir.Value, cast: ir.Value, taken: set[str]) -> None:
    """The FP32 ``cast`` takes over the name of the output ``value``."""
    name = value.name or ""
    value.name = unique(f"{name}_fp16", taken)
    taken.add(value.name)
    cast.name = name
    graph.outputs[next(i for i, output in enumerate(graph.outputs) if output is value)] = cast


def _drop_idle_casts(graph: ir.Graph) -> None:
    """Take out the model's own Casts that have become casts from FP16 to FP16."""
    for node in list(graph):
        if node.op_type != "Cast" or node.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        if node.inputs[0].dtype == node.outputs[0].dtype == _HALF:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)


def _can_move(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and not node.outputs[0].is_graph_output()


def _cast_behind_transposes(graph: ir.Graph, taken: set[str]) -> None:
    """Let values be cast to FP16 behind the Transpose that reads them, not in front of it.

    ONNX Runtime 1.32 ends with a segmentation fault while it optimizes Cast, Transpose with the batch moved, MatMul.
    """
    for node in list(graph):
        if node.op_type != "Cast" or node.outputs[0].dtype != _HALF or node.outputs[0].is_graph_output():
            continue
        uses, value = list(node.outputs[0].uses()), node.inputs[0]
        movers = [use.node for use in uses]
        if value is None or value.dtype != _FLOAT or not uses or not all(map(_can_move, movers)):
            continue
        for mover in movers:
            moved = mover.outputs[0]
            mover.replace_input_with(0, value)
            moved.type = ir.TensorType(_FLOAT)
            readers = list(moved.uses())
            cast = _cast(graph, moved, _HALF, taken)
            _rewire(readers, cast)
        graph.remove(node, safe=True)


__all__ = ["fp16_from_onnx", "named", "nodes_beyond_fp16", "weights_beyond_fp16"]
