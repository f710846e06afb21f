"""Who runs which nodes of an engine that several execution providers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ProviderShare:
    """The nodes of an engine that one of several execution providers runs."""

    provider: str
    """The library's word for it, such as ``TensorrtExecutionProvider``."""
    nodes: tuple[str, ...]
    """Names of the ONNX nodes, in the order in which the library tells of them."""
    operators: Mapping[str, int]
    """How many nodes there are of each operator, the most frequent first."""
    segments: tuple[int, ...] = ()
    """How many nodes each part has that was handed to it as a whole; empty where it runs node by node."""


def num_fallback_nodes(shares: Sequence[ProviderShare]) -> int:
    """Nodes that the first of them, whom the backend is for, does not run."""
    return sum(len(share.nodes) for share in shares[1:])
