"""Which nodes and tensors of a model a user means: by their names, or by patterns as a shell has them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import onnx
import onnx.inliner

from calibration.errors import DataError
from calibration.graph.editing import named, without_functions
from calibration.graph.external_data import without_weights

NUM_NEAREST = 3


def check_known(names: Iterable[str], known: Collection[str], what: str, kind: str = "node or operator") -> None:
    """That each name is known.

    Args:
        names: what the user wrote.
        known: the names that there are.
        what: where they were written, for the message.
        kind: what they are names of.

    Raises:
        DataError: one is not; the message offers the nearest.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=NUM_NEAREST, cutoff=0.0)
            others = f", others are {', '.join(map(repr, near[1:]))}" if near[1:] else ""
            hint = f"the nearest is {near[0]!r}{others}" if near else "the model has none"
            raise DataError(f"{what}: '{name}' is in the list, but the model has no such {kind}; {hint}")


def matching(patterns: Iterable[str], known: Collection[str], what: str, kind: str) -> tuple[str, ...]:
    """The known names that are meant, in the order of the patterns and of ``known``.

    A pattern that is a known name means that one alone. In others ``*`` stands for any characters, ``/`` too, ``?`` for
    one, ``[ab]`` for one of these. The arguments are those of ``check_known``.

    Raises:
        DataError: a pattern matches nothing; the message offers the nearest names.
    """
    meant: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if pattern in known else [name for name in known if fnmatchcase(name, pattern)]
        check_known([pattern] * (not names), known, what, kind)
        meant |= dict.fromkeys(names)
    return tuple(meant)


def nodes_by_name(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Name -> node of the graph, as passes name them; functions are written out."""
    return {node.name: node for node in named(without_functions(without_weights(model))).graph.node}


def nodes_meant(nodes: Mapping[str, onnx.NodeProto], patterns: Iterable[str], what: str) -> tuple[str, ...]:
    """The names and operator types that patterns mean, of nodes by name.

    Raises:
        DataError: see ``matching``.
    """
    known = dict.fromkeys([*nodes, *(node.op_type for node in nodes.values())])
    return matching(patterns, known, what, "node or operator")
