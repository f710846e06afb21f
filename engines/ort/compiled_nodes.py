"""Nodes of a model that are engines: what was compiled elsewhere is code, which a session of its provider would run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from engines.errors import EngineError
from engines.onnx_model import read_model

COMPILED = "EPContext"
"""ONNX Runtime's node for what a provider compiled."""


def check_uncompiled(path: Path) -> None:
    """That no node of a model that is to be built is an engine.

    Raises:
        EngineError: one is.
    """
    model = read_model(path)
    for node in _nodes([*model.graph.node, *(node for function in model.functions for node in function.node)]):
        if node.op_type == COMPILED:
            raise EngineError(
                f"{path}: node '{node.name or node.output[0]}' is {COMPILED}, an engine that was compiled elsewhere; "
                "build from the ONNX model that it was made of"
            )


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
