"""Into which parts a model falls, if what a runtime takes goes to it and the rest stays outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.support.answers import NodeAnswer, Partition


@dataclass(frozen=True)
class GraphStep:
    """What a node reads and makes, by the names of tensors; what the bodies in it read from around them is included."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]


def partition(steps: Sequence[GraphStep], nodes: Sequence[NodeAnswer]) -> Partition:
    """The largest parts that can run one after the other, none of which waits for something outside it that needs it.

    ``steps`` and ``nodes`` are of the same nodes, in an order in which they can run.
    """
    makers = {name: index for index, step in enumerate(steps) for name in step.makes if name}
    levels: list[int] = []
    for index, step in enumerate(steps):
        reads = () if nodes[index].state == "folded" else step.reads  # It waits for nothing.
        before = [makers[name] for name in reads if name in makers and makers[name] < index]
        inside = nodes[index].state == "runs"
        levels.append(max((_level(levels[b], nodes[b], inside) for b in before), default=1 if inside else 0))
    parts = _joined(steps, nodes, makers, levels)
    segments = tuple(sorted(parts.values()))
    outside = tuple(index for index, node in enumerate(nodes) if node.state == "unsupported")
    place = {index: number for number, part in enumerate(segments) for index in part}
    work = sum(node.flops for node in nodes if node.state != "folded")
    inside_work = sum(nodes[index].flops for index in place)
    share = inside_work / work if work else len(place) / max(len(place) + len(outside), 1)
    return Partition(segments, outside, _crossings(steps, nodes, makers, place), share if place or outside else 1.0)


def _level(before: int, node: NodeAnswer, inside: bool) -> int:
    """Of what reads a node's outputs: a segment behind something outside is a later one."""
    return before + 1 if inside and node.state == "unsupported" else max(before, 1 if inside else 0)


def _joined(
    steps: Sequence[GraphStep], nodes: Sequence[NodeAnswer], makers: dict[str, int], levels: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """Nodes of one level that are connected make one segment."""
    roots = list(range(len(steps)))

    def root(index: int) -> int:
        while roots[index] != index:
            roots[index] = roots[roots[index]]
            index = roots[index]
        return index

    runs = [index for index, node in enumerate(nodes) if node.state == "runs"]
    for index in runs:
        for name in steps[index].reads:
            before = makers.get(name)
            if before is not None and nodes[before].state == "runs" and levels[before] == levels[index]:
                roots[root(index)] = root(before)
    parts: dict[int, tuple[int, ...]] = {}
    for index in runs:
        parts[root(index)] = (*parts.get(root(index), ()), index)
    return parts


def _crossings(
    steps: Sequence[GraphStep], nodes: Sequence[NodeAnswer], makers: dict[str, int], place: dict[int, int]
) -> int:
    """Tensors, each once for each part that reads it elsewhere than it is made."""
    outside = -1
    return len({
        (name, place.get(index, outside))
        for index, step in enumerate(steps)
        for name in step.reads
        if nodes[index].state != "folded"
        and name in makers
        and nodes[makers[name]].state != "folded"
        and place.get(makers[name], outside) != place.get(index, outside)
    })  # fmt: skip
