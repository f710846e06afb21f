"""Whether a user's ONNX model is one: by onnx's checker, and by what that lets pass."""

from __future__ import annotations

from pathlib import Path

import onnx

from calibration.errors import ModelError
from calibration.graph.editing import nodes_of
from calibration.graph.external_data import check_model
from calibration.graph.opset import opset_of
from calibration.graph.weightless import skeleton_from_file

MOST_NODES = 1_000_000
"""Of a model with its functions written out: a few that call each other twice come to billions."""
MOST_PROPAGATED = 1 << 24
"""Values of a list that onnx puts together of constants while it infers shapes."""
PROPAGATING = frozenset(("Abs", "Add", "Cast", "Concat", "Identity", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze"))
"""Operators through which onnx follows values while it infers shapes."""
TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def check_file(path: Path) -> None:
    """As ``check_valid``, without reading large weights.

    Raises:
        ModelError: it is not valid.
    """
    check_valid(skeleton_from_file(path), path)


def check_valid(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what is not valid ONNX, has no outputs, or is of an opset that is not known here.

    Raises:
        ModelError: as said.
    """
    if not model.graph.output:
        raise ModelError(f"{path}: the model has no outputs; export it again")
    if (opset := opset_of(model)) > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"{path}: is of opset {opset}, the onnx that is installed knows {onnx.defs.onnx_opset_version()}; "
            "update onnx, or export the model in an older one"
        )
    for tensor in model.graph.initializer:
        _check_type(tensor, path)
    if (num := _num_written_out(model)) > MOST_NODES:
        raise ModelError(
            f"{path}: has {num:,} nodes where its functions are written out, at most {MOST_NODES:,} are read; export "
            "it with fewer"
        )
    if (num := _num_propagated(model.graph)) > MOST_PROPAGATED:
        raise ModelError(
            f"{path}: a list of {num:,} values is computed of constants, at most {MOST_PROPAGATED:,} are read; export "
            "it without"
        )
    try:
        check_model(model)
    except Exception as error:  # onnx raises half a dozen kinds.
        words = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{path}: is not a valid ONNX model ({words}); export it again") from error


def _num_written_out(model: onnx.ModelProto) -> int:
    """Nodes of the model once each call of a local function is the nodes of that function; calls in a ring count 1."""
    bodies = {
        (function.domain, function.name, function.overload): [_called(node) for node in nodes_of(function)]
        for function in model.functions
    }
    sizes: dict[tuple[str, str, str], int] = {}
    begun: set[tuple[str, str, str]] = set()
    for start in bodies:
        stack = [start]
        while stack:
            function = stack[-1]
            if function not in sizes and function not in begun:
                begun.add(function)
                stack += [each for each in set(bodies[function]) if each in bodies and each not in begun]
                continue
            stack.pop()
            if function not in sizes:
                sizes[function] = sum(sizes.get(each, 1) for each in bodies[function])
    return sum(sizes.get(_called(node), 1) for node in nodes_of(model.graph))


def _called(node: onnx.NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _num_propagated(graph: onnx.GraphProto) -> int:
    """Values of the longest list that onnx would put together while it infers shapes, if it is longer than they add up.

    A Concat of a list with itself doubles it, and so does the next one.
    """
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 1}
    longest = 0
    for node in graph.node:
        if node.op_type == "Constant" and node.output and len(node.attribute) == 1:
            sizes[node.output[0]] = max(node.attribute[0].t.dims[:1], default=0)
        elif node.op_type in PROPAGATING and node.output:
            inputs = [sizes.get(name, 0) for name in node.input]
            sizes[node.output[0]] = max(inputs, default=0)
            if node.op_type == "Concat":
                sizes[node.output[0]] = sum(inputs) * all(inputs)
                longest = max(longest, sizes[node.output[0]])
    return longest if longest > 2 * sum(tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 1) else 0


def _check_type(tensor: onnx.TensorProto, path: Path) -> None:
    if tensor.data_type not in TYPES:
        raise ModelError(f"{path}: the weight '{tensor.name}' has no type that ONNX knows; export it again")
