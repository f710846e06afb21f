"""Which tensors calibration has to watch, and what the histograms of watched tensors say of others.

Watched are the tensors that a placement may quantize, and those whose fitness for FP16 does not follow from others
(``calibration.precision.bounds``). Where one tensor has the values of another in another order or shape, or with zeros
around them, one of the two is watched and the other's histogram follows, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import onnx
import onnx_ir as ir

from calibration.graph.editing import attribute_ints, attribute_string, constant, dimensions, opened
from calibration.histogram.histogram import Histogram
from calibration.precision.bounds import MOVING, distinct_spans
from calibration.precision.fp16 import undecided_for_fp16
from calibration.precision.place import place
from calibration.precision.placement import PlacementOptions, PlacementTarget, fixed_span
from calibration.ranges.means import ChannelSource
from calibration.ranges.span import Span

Watch = Literal["placements", "tensorrt", "onnxruntime", "all"]
"""What ranges will be used for: INT8 for both targets, or for one; or whatever, which takes every tensor."""

TARGETS: dict[Watch, tuple[PlacementTarget, ...]] = {
    "placements": ("tensorrt", "onnxruntime"),
    "tensorrt": ("tensorrt",),
    "onnxruntime": ("onnxruntime",),
}


@dataclass(frozen=True)
class Following:
    """A tensor whose histogram follows from another's."""

    source: str
    num_per_value: Fraction = Fraction(0)
    """Zeros that were added for each value of the source."""


@dataclass(frozen=True)
class WatchedTensors:
    """What to watch, in topological order, and what follows from it."""

    names: tuple[str, ...]
    following: Mapping[str, Following]
    """In topological order: the source of one may itself follow."""
    graph: ir.Graph
    """The model's, for what is looked up later."""
    scaled: frozenset[str]
    """Those of ``names`` whose ranges become scales of INT8, here or of a tensor that follows."""

    def completed(self, histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
        """The histograms, and those that follow from them."""
        all_histograms = dict(histograms)
        for name, how in self.following.items():
            if name not in all_histograms and how.source in all_histograms:
                all_histograms[name] = _with_zeros(all_histograms[how.source], how.num_per_value)
        return all_histograms

    def channel_sources(self, axes: Mapping[str, int]) -> dict[str, ChannelSource]:
        """Where the channels along these axes are found in what is watched, for the tensors of which that is told."""
        watched = {*self.names, *(value.name or "" for value in self.graph.inputs)}
        makers = {value.name or "": node for node in self.graph for value in node.outputs}
        sources = {}
        for name, axis in axes.items():
            source: ChannelSource | None = ChannelSource(name, axis)
            while source is not None and source.tensor not in watched:
                how = self.following.get(source.tensor)
                source = None if how is None else _before(makers[source.tensor], source, how)
            if source is not None:
                sources[name] = source
        return sources

    def unclear(self, histograms: Mapping[str, Histogram]) -> list[str]:
        """Tensors of which these leave open whether FP16 holds them; with sensible values there are none."""
        spans = {name: Span(h.amax, h.min, h.max) for name, h in histograms.items() if h.num_values}
        return [name for name in undecided_for_fp16(self.graph, spans) if name not in histograms]


def watched_tensors(model: onnx.ModelProto, watch: Watch, watchable: Iterable[str]) -> WatchedTensors:
    """What to watch for these purposes.

    Args:
        model: FP32.
        watch: see ``Watch``.
        watchable: the float32 tensors that depend on an input, in topological order.
    """
    names = list(watchable)
    graph = opened(model).graph
    following = {} if watch == "all" else dict(_following(graph, set(names)))
    fixed = {value.name or "" for node in graph for value in node.outputs if fixed_span(node) is not None}
    if watch == "all":
        return WatchedTensors(tuple(names), following, graph, frozenset(names) - fixed)
    placed = set()
    for target in TARGETS[watch]:
        placed |= _placed(opened(model).graph if target == "onnxruntime" else graph, target)
    needed = _sources({*placed, *(value.name or "" for value in (*graph.inputs, *graph.outputs))}, following)
    known = needed | {name for name in following if _sources([name], following) <= needed}
    undecided = undecided_for_fp16(graph, distinct_spans(name for name in names if name in known))
    needed = _sources({*needed, *undecided}, following)
    scaled = frozenset(_sources(placed - fixed, following))
    return WatchedTensors(tuple(name for name in names if name in needed), following, graph, scaled)


def _placed(graph: ir.Graph, target: PlacementTarget) -> set[str]:
    """Names of the tensors whose ranges a placement asks for."""
    asked = _Asked()
    place(graph, asked, PlacementOptions(target=target, attention="int8", small_products="int8"))
    return asked.names


class _Asked(Mapping[str, Span]):
    """Has a range for every tensor, and remembers which were requested."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Span:
        self.names.add(name)
        return Span(1.0, -1.0, 1.0)

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _sources(names: Iterable[str], following: Mapping[str, Following]) -> set[str]:
    """The tensors to watch so that all of these are known."""
    sources = set()
    for name in names:
        while name in following:
            name = following[name].source
        sources.add(name)
    return sources


def _following(graph: ir.Graph, names: set[str]) -> Iterator[tuple[str, Following]]:
    for node in graph:
        if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None or len(node.outputs) != 1:
            continue
        source, name = node.inputs[0].name or "", node.outputs[0].name or ""
        if source not in names or name not in names:
            continue
        if node.op_type in MOVING:
            yield name, Following(source)
        elif node.op_type == "Pad" and (zeros := _padded_zeros(node)) is not None:
            yield name, Following(source, zeros)


def _before(node: ir.Node, channels: ChannelSource, how: Following) -> ChannelSource | None:
    """The channels of a node's result, in what it moves."""
    before, after = dimensions(node.inputs[0]), dimensions(node.outputs[0])
    if before is None or after is None:
        return None
    axis = channels.axis % len(after)
    if node.op_type == "Transpose":
        axis = attribute_ints(node, "perm", tuple(reversed(range(len(before)))))[axis]
    elif node.op_type != "Identity":
        # In order of memory the channels are told by their number and by what lies within each.
        if node.op_type.endswith("Depth") or node.op_type.startswith("Depth") or None in after[axis:]:
            return None
        if node.op_type == "Pad":
            axis = axis if before[axis] == after[axis] else -1
        else:
            alike = (
                a for a in range(len(before)) if None not in before[a:] and _within(before, a) == _within(after, axis)
            )
            axis = next(alike, -1)
    if axis < 0:
        return None
    return ChannelSource(how.source, axis, channels.times_larger * (1 + how.num_per_value))


def _within(shape: Sequence[int | None], axis: int) -> tuple[int | None, int]:
    return shape[axis], math.prod(size or 0 for size in shape[axis + 1 :])


def _padded_zeros(node: ir.Node) -> Fraction | None:
    """Zeros that a Pad adds for each value; None if that is not known, or it adds something else."""
    before, after = dimensions(node.inputs[0]), dimensions(node.outputs[0])
    if attribute_string(node, "mode", "constant") != "constant" or len(node.inputs) < 2 or not before or not after:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        value = constant(node.inputs[2])
        if value is None or value.any():
            return None
    pads = constant(node.inputs[1])
    if pads is None or (pads < 0).any() or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    fixed = [(a, b) for a, b, low, high in zip(before, after, pads, pads[len(before) :]) if low or high]
    if any(a is None or b is None or not a for a, b in fixed):
        return None
    grown = math.prod(b or 0 for _, b in fixed) - math.prod(a or 0 for a, _ in fixed)
    return Fraction(grown, math.prod(a or 0 for a, _ in fixed))


def _with_zeros(histogram: Histogram, num_per_value: Fraction) -> Histogram:
    """The histogram of the same values and so many zeros."""
    num = int(num_per_value * histogram.num_values)
    if not num:
        return histogram
    counts = histogram.counts.copy()
    counts[0] += num
    return replace(
        histogram,
        counts=counts,
        min=min(histogram.min, 0.0),
        max=max(histogram.max, 0.0),
        num_zeros=histogram.num_zeros + num,
    )
