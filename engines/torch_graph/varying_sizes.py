"""Sizes of a network that vary, as torch traces them: every size, those from a least one on, or in steps.

torch refuses a size where not every value leads through the network in the same way, and proposes what it would take:
a least value, as of a convolution without padding, or an expression in a whole number, ``height = 2*_height``, as
behind a pooling that rounds up, which even and odd sizes pass in two ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engines.torch_graph.library import load_torch

BOUNDS = re.compile(r"^\s*(\w+) = Dim\('\w+'[^)]*\)\s*$", re.MULTILINE)
"""How torch proposes the bounds of a size."""
ROOTS = re.compile(r"^\s*(_\w+) = Dim\('\w+'(?:, min=(\d+))?[^)]*\)\s*$", re.MULTILINE)
"""And of the whole number that sizes follow from."""
DERIVED = re.compile(r"^\s*(\w+) = ((?:\d+ ?\* ?)?[A-Za-z_]\w*(?: ?[+-] ?\d+)?)$", re.MULTILINE)
"""How it proposes that a size follows from a number, ``height = 2*_height``, or from another: ``width = height``."""
LINEAR = re.compile(r"(?:(\d+) ?\* ?)?([A-Za-z_]\w*)(?: ?([+-]) ?(\d+))?$")
"""``2*_height + 1``: step, whole number, sign and rest."""


@dataclass(frozen=True)
class VaryingSizes:
    """The sizes of a network that vary, as ``torch.export`` takes them."""

    dims: Mapping[str, Any]
    """Name of a size -> its ``Dim``."""
    steps: Mapping[str, int]
    """Name of a size -> how far apart two sizes are that it may have."""


def every_size(names: Iterator[str] | set[str]) -> VaryingSizes:
    """All sizes from 1 on."""
    dims = {name: load_torch().export.Dim(name, min=1) for name in names}
    return VaryingSizes(dims, dict.fromkeys(dims, 1))


def narrower(text: str, sizes: VaryingSizes) -> Iterator[VaryingSizes]:
    """What to try after torch's refusal, in order; nothing where it asks for more than bounds and steps.

    The bounds that it proposes may be too low: of single sizes it finds them itself, of steps the next is tried too.

    Args:
        text: what torch raised.
        sizes: what it refused.
    """
    violated = re.search(r"Constraints violated \((.*?)\)", text)
    names = set(violated[1].split(", ")) if violated else set()
    bounded = set(BOUNDS.findall(text))
    derived = {name: each for name, how in DERIVED.findall(text) if (each := LINEAR.match(how)) is not None}
    if not names or not names <= set(sizes.dims) & (bounded | set(derived)):
        return
    free = {**sizes.dims, **dict.fromkeys(names - set(derived), load_torch().export.Dim.DYNAMIC)}
    if not derived:
        yield VaryingSizes(free, sizes.steps)
        return
    least = {root: int(bound or 1) for root, bound in ROOTS.findall(text)}
    for more in (0, 1):
        roots = dict(sizes.dims)
        for each in derived.values():
            if each[2] not in roots:
                roots[each[2]] = load_torch().export.Dim(each[2], min=max(1, least.get(each[2], 1)) + more)
        related = {name: _derived(roots[each[2]], each) for name, each in derived.items()}
        steps = {name: int(each[1] or 1) * sizes.steps.get(each[2], 1) for name, each in derived.items()}
        yield VaryingSizes({**free, **related}, {**sizes.steps, **steps})


def _derived(root: Any, how: re.Match[str]) -> Any:
    """The ``Dim`` that follows from another."""
    multiple = root if how[1] is None else int(how[1]) * root
    if how[4] is None:
        return multiple
    return multiple + int(how[4]) if how[3] == "+" else multiple - int(how[4])


def in_steps(symbol: str, names: Mapping[str, str]) -> str | None:
    """What sizes a symbol of torch stands for, in words; None if it is every one.

    ``2*s56`` are the multiples of 2, or ``2*short`` where ``s56`` itself is a size with that name.
    """
    how = LINEAR.match(symbol)
    if how is None or how[0] == how[2]:
        return None
    if how[2] in names:
        return symbol.replace(how[2], names[how[2]])
    if how[1] is None:
        return None  # One number more than every number from a least one on.
    return f"a multiple of {how[1]}" + ("" if how[4] is None else f" {'plus' if how[3] == '+' else 'less'} {how[4]}")
