"""The tensors in which a network's answers are compared: what goes into the functions that squash them at the end."""

from __future__ import annotations

import onnx

from calibration.graph.watched_outputs import watchable

SQUASHING = frozenset({"ArgMax", "ArgMin", "HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax"})
"""Their output hides how far the input is off, where that is large, small, or not the largest."""
MOVING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


CHOOSING = "NonMaxSuppression"
"""Chooses rows, of which there are more or fewer after any rounding: what depends on it cannot be compared."""


def answer_tensors(model: onnx.ModelProto) -> list[str]:
    """For each output that depends on an input the tensor behind the last squashing functions, or itself; float32.

    For what non-maximum suppression chose, the boxes and scores that it chose from.
    In order of the outputs, each once; outputs of other types for which there is no such tensor are left out.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    floats = set(watchable(model))
    names = []
    chosen_from = _chosen_from(model)
    for answer in [tensor for o in model.graph.output for tensor in chosen_from.get(o.name, [o.name])]:
        name = seen = answer
        is_squashed = False
        while seen in producers and producers[seen].op_type in SQUASHING | MOVING:
            is_squashed = is_squashed or producers[seen].op_type in SQUASHING
            seen = producers[seen].input[0]
            if is_squashed and seen in floats:
                name = seen
        if name in floats:
            names.append(name)
    return list(dict.fromkeys(names))


def _chosen_from(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Tensor that depends on suppression -> the boxes and scores of those; empty where there is none."""
    sources: dict[str, list[str]] = {}
    for node in model.graph.node:
        before = [tensor for name in node.input for tensor in sources.get(name, [])]
        if node.op_type == CHOOSING:
            before = [*before, *node.input[:2]]
        if before:
            sources |= {name: list(dict.fromkeys(before)) for name in node.output}
    return sources
