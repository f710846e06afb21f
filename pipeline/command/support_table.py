"""What backends take of a model, for the terminal and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command.outcomes import Supported

if TYPE_CHECKING:
    from engines.support.answers import SupportAnswer
    from pipeline.artifact import SupportTable

MOST_SHARE_PERCENT = 99.9
"""That is printed where something is outside."""
NUM_NAMED = 3
"""Nodes in a sentence."""


def asked_of(
    model: Path, tables: Mapping[str, SupportTable], *, as_json: bool = False, all_nodes: bool = False
) -> Supported:
    """What each backend answered, with the lines that are printed."""
    from pipeline.stages.support import answer_from

    answers = {name: answer_from(table) for name, table in tables.items()}
    refusals = tuple(
        f"{model}: {answer.source} does not take it: {_short(answer)}"
        for answer in answers.values()
        if not answer.is_whole
    )
    if as_json:
        record = {name: _record(tables[name], answer) for name, answer in answers.items()}
        whole = json.dumps({"model": str(model), "answers": record}, indent=1, ensure_ascii=False)
        return Supported(model, answers, (whole,), refusals)
    lines = (line for answer in answers.values() for line in lines_of(answer, all_nodes=all_nodes))
    return Supported(model, answers, tuple(lines), refusals)


def _short(answer: SupportAnswer) -> str:
    """Why not, without what the lines above it say."""
    if answer.refusals:
        return answer.refusals[0]
    first, number = answer.unsupported[0], len(answer.unsupported)
    which = f"nodes do not run, '{first.name}' ({first.operator}) the first"
    return f"{number} of {len(answer.nodes)} {which}" if number > 1 else f"node '{first.name}', {first.operator}"


def _record(table: SupportTable, answer: SupportAnswer) -> dict[str, Any]:
    return {"supported": answer.is_whole, **table.read()}


def lines_of(answer: SupportAnswer, *, all_nodes: bool) -> Iterator[str]:
    """One line for each node that does not run, or for all; then how many do, and the parts that would follow."""
    for node in answer.nodes if all_nodes else answer.unsupported:
        where = f" ({node.runs_on})" if node.runs_on else ""
        state = "does not run" if node.state == "unsupported" else f"{_WORDS[node.state]}{where}"
        yield "\t".join(filter(None, (node.name, node.operator, state, node.reason)))
    states = Counter(node.state for node in answer.nodes)
    counts = f"{states['runs']} of {len(answer.nodes)} nodes run, {states['folded']} are folded"
    yield f"{answer.source}: {counts}, {states['unsupported']} do not run"
    kernels = Counter(node.runs_on for node in answer.nodes if node.runs_on)
    if len(kernels) > 1:
        yield f"kernels: {', '.join(f'{number} of {name}' for name, number in kernels.most_common())}"
    yield from (f"the model {refusal}" for refusal in answer.refusals)
    yield from answer.notes
    if answer.unsupported:
        yield _partition_line(answer)


_WORDS = {"runs": "runs", "folded": "is folded"}


def _partition_line(answer: SupportAnswer) -> str:
    parts = answer.partition
    sizes = ", ".join(str(len(segment)) for segment in parts.segments[:NUM_NAMED])
    more = ", …" if len(parts.segments) > NUM_NAMED else ""
    kinds = Counter(node.operator for node in answer.unsupported)
    outside = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    share = min(100 * parts.flops_share, MOST_SHARE_PERCENT) if parts.outside else 100.0
    segments = f"{len(parts.segments)} segments, of {sizes}{more} nodes," if parts.segments else "no segment,"
    segments = f"1 segment, of {sizes} nodes," if len(parts.segments) == 1 else segments
    return (
        f"partition: {segments} with {share:.1f} % of the FLOPs; outside: "
        f"{outside}; tensors that cross: {parts.num_crossings}"
    )
