"""Nodes of a model that are engines: what was compiled elsewhere is code, which a session of its provider would run."""

from __future__ import annotations

from pathlib import Path

import onnx

from engines.errors import EngineError
from engines.onnx_model import nodes_in

COMPILED = "EPContext"
"""ONNX Runtime's node for what a provider compiled."""


def check_uncompiled(model: onnx.ModelProto, path: Path) -> None:
    """That no node of a model that is to be built, which lies in ``path``, is an engine.

    Raises:
        EngineError: one is.
    """
    for node in (node for part in (model.graph, *model.functions) for node in nodes_in(part)):
        if node.op_type == COMPILED:
            raise EngineError(
                f"{path}: node '{node.name or node.output[0]}' is {COMPILED}, an engine that was compiled elsewhere; "
                "build from the ONNX model that it was made of"
            )
