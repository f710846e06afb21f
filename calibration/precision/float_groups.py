"""Groups of integer nodes that could stay in float for ONNX Runtime: of one kind, of one resolution, or of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from calibration.graph.editing import attribute_int, dimensions, opened
from calibration.precision.place import place
from calibration.precision.placement import PRODUCTS, PlacementOptions
from calibration.ranges.span import Span

MOVING = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile")
"""Are integer where their neighbours are."""


@dataclass(frozen=True)
class IntegerNode:
    """A node that runs in integers."""

    name: str
    kind: str
    """``pointwise``, ``depthwise`` and ``other convolutions``, or the operator."""
    resolution: str
    """Of what it makes: ``112x112``; ``1`` where there are no positions."""
    is_product: bool


@dataclass(frozen=True)
class FloatGroup:
    """Nodes that stay in float together."""

    name: str
    nodes: frozenset[str]


def integer_nodes(model: onnx.ModelProto, spans: Mapping[str, Span], options: PlacementOptions) -> list[IntegerNode]:
    """The nodes that a placement makes integers, in the model's order; not those that only move values.

    Raises:
        DataError: a tensor that must be quantized has no range.
    """
    graph = opened(model).graph
    placement = place(graph, spans, options)
    reading = {reader.node for tensor in placement.tensors for reader in tensor.readers}
    made = {tensor.tensor for tensor in placement.tensors}
    left_out = {*options.exclude, *MOVING}
    return [
        IntegerNode(node.name or "", _kind(node), _resolution(node), node.op_type in PRODUCTS)
        for node in graph
        if node.name in reading
        and left_out.isdisjoint((node.name, node.op_type))
        and (node.name in placement.nodes or (node.op_type not in PRODUCTS and _ends_in(node, made)))
    ]


def _ends_in(node: ir.Node, made: set[str]) -> bool:
    """Whether what the node makes is quantized again, maybe behind a Relu or Clip."""
    output = node.outputs[0]
    behind = [each.outputs[0].name for each, _ in output.uses() if each.op_type in ("Relu", "Clip")]
    return not made.isdisjoint([output.name or "", *(name or "" for name in behind)])


def _kind(node: ir.Node) -> str:
    if node.op_type != "Conv":
        return node.op_type
    shape = dimensions(node.inputs[1]) or ()
    if attribute_int(node, "group", 1) > 1 and shape[1:2] == (1,):
        return "depthwise convolutions"
    is_pointwise = attribute_int(node, "group", 1) == 1 and all(size == 1 for size in shape[2:])
    return "pointwise convolutions" if is_pointwise else "other convolutions"


def _resolution(node: ir.Node) -> str:
    shape = dimensions(node.outputs[0]) or ()
    return "x".join("?" if size is None else str(size) for size in shape[2:]) or "1"


def float_groups(nodes: list[IntegerNode]) -> list[FloatGroup]:
    """What may be quicker in float together, the large groups first."""
    by_name: dict[str, set[str]] = {}
    for node in nodes:
        by_name.setdefault(node.kind, set()).add(node.name)
    for node in nodes:
        by_name.setdefault(f"all at {node.resolution}", set()).add(node.name)
    for node in nodes:
        by_name.setdefault(f"{node.kind} at {node.resolution}", set()).add(node.name)
    distinct: dict[frozenset[str], str] = {}
    for name, members in by_name.items():
        distinct.setdefault(frozenset(members), name)
    return [FloatGroup(name, members) for members, name in distinct.items()]


def first_choices(nodes: list[IntegerNode]) -> list[FloatGroup]:
    """Where to begin: all that can be in integers; products alone; one kind of product alone."""
    everything = frozenset(node.name for node in nodes)
    kinds = dict.fromkeys(node.kind for node in nodes if node.is_product)
    sets = {"nothing": frozenset[str](), "all but products": frozenset(n.name for n in nodes if not n.is_product)}
    sets |= {f"all but {kind}": everything - {node.name for node in nodes if node.kind == kind} for kind in kinds}
    distinct: dict[frozenset[str], str] = {}
    for name, members in sets.items():
        distinct.setdefault(members, name)
    return [FloatGroup(name, members) for members, name in distinct.items()]
