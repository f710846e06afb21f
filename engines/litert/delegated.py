"""Which operators a delegate has taken: the interpreter lists what it took beside the delegate's own nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DELEGATE = "DELEGATE"


def operators_left(details: Sequence[Mapping[str, Any]], num_operators: int) -> list[int]:
    """The numbers of the operators that no delegate has taken, in order.

    A delegate's node has the inputs and outputs of all that it took: whatever lies between was taken.

    Args:
        details: of each node, as ``Interpreter._get_ops_details`` gives it: the file's operators, then delegates.
        num_operators: the first so many are the file's.
    """
    makers = {int(tensor): n for n in range(num_operators) for tensor in details[n]["outputs"]}
    taken: set[int] = set()
    for node in details[num_operators:]:
        borders = set(map(int, node["inputs"]))
        waiting = [int(tensor) for tensor in node["outputs"]]
        while waiting:
            tensor = waiting.pop()
            maker = makers.get(tensor)
            if tensor in borders or maker is None or maker in taken:
                continue
            taken.add(maker)
            waiting += [int(tensor) for tensor in details[maker]["inputs"]]
    return [n for n in range(num_operators) if n not in taken]
