"""Which operators a delegate took, by what the interpreter lists."""

from __future__ import annotations

from typing import Any

from engines.litert.delegated import operators_left


def node(inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"inputs": inputs, "outputs": outputs}


CHAIN = [node([0, 9], [1]), node([1], [2]), node([2], [3]), node([3], [4])]
"""0 -> 1 -> 2 -> 3 -> 4, the first with a constant, 9."""


def test_no_delegate_leaves_all() -> None:
    assert operators_left(CHAIN, 4) == [0, 1, 2, 3]


def test_a_delegate_takes_what_lies_between_its_borders() -> None:
    assert operators_left([*CHAIN, node([0, 9], [2]), node([3], [4])], 4) == [2]
    assert operators_left([*CHAIN, node([0, 9], [4])], 4) == []


def test_branches_are_followed_both_ways() -> None:
    diamond = [node([0], [1]), node([1], [2]), node([1], [3]), node([2, 3], [4]), node([4], [5])]
    assert operators_left([*diamond, node([0], [4])], 5) == [4]
