"""The tensors in which a network's answers are compared: what goes into the functions that squash them at the end."""

from __future__ import annotations

import onnx

from calibration.graph.watched_outputs import watchable

SQUASHING = frozenset({"ArgMax", "ArgMin", "HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax"})
"""Their output hides how far the input is off, where that is large, small, or not the largest."""
MOVING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def answer_tensors(model: onnx.ModelProto) -> list[str]:
    """For each output that depends on an input the tensor behind the last squashing functions, or itself; float32.

    In order of the outputs, each once; outputs of other types for which there is no such tensor are left out.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    floats = set(watchable(model))
    names = []
    for output in model.graph.output:
        name = seen = output.name
        is_squashed = False
        while seen in producers and producers[seen].op_type in SQUASHING | MOVING:
            is_squashed = is_squashed or producers[seen].op_type in SQUASHING
            seen = producers[seen].input[0]
            if is_squashed and seen in floats:
                name = seen
        if name in floats:
            names.append(name)
    return list(dict.fromkeys(names))
