"""What each tensor of a model is computed from, as a digest: so that two models can be told apart tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from calibration.graph.editing import nodes_of
from calibration.graph.external_data import array_of

NUM_DIGITS = 16
"""Of each digest, hexadecimal: 64 bits tell the tensors of two models apart, they need not resist an attack."""


def tensor_digests(model: onnx.ModelProto) -> dict[str, str]:
    """Digest of each input and node output of the main graph, in the order of computation.

    It covers all that the tensor is computed from: operators, their versions and attributes, weights, and the names
    and types of the inputs; not the names of nodes and tensors in between, and not the batch size. So the tensors of
    two models whose digests are equal have equal values, and the first that differ stand where the models part.
    """
    digests = {tensor.name: _of_initializer(tensor) for tensor in model.graph.initializer}
    digests |= {tensor.values.name: _of(tensor.SerializeToString()) for tensor in model.graph.sparse_initializer}
    weights = set(digests)
    for value in model.graph.input:
        if value.name not in weights:
            digests[value.name] = _of(
                b"input", value.name.encode(), value.type.tensor_type.elem_type.to_bytes(4, "big")
            )
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    functions = {(function.domain, function.name): function for function in model.functions}
    for node in model.graph.node:
        what = [node.op_type.encode(), node.domain.encode(), str(opsets.get(node.domain or "ai.onnx", 0)).encode()]
        if function := functions.get((node.domain, node.op_type)):
            what.append(function.SerializeToString(deterministic=True))
        what += [a.SerializeToString(deterministic=True) for a in sorted(node.attribute, key=lambda a: a.name)]
        what += [digests.get(name, "").encode() for name in (*node.input, *_read_inside(node))]
        for index, name in enumerate(node.output):
            if name:
                digests[name] = _of(*what, str(index).encode())
    return {name: digest for name, digest in digests.items() if name not in weights}


def differing(ours: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Names that both have, computed differently; in the order of ``others``."""
    return [name for name, digest in others.items() if name in ours and ours[name] != digest]


def _read_inside(node: onnx.NodeProto) -> Iterable[str]:
    """Names that the graphs within a node (If, Loop, Scan) read, sorted; some may be their own."""
    inside = list(nodes_of(onnx.GraphProto(node=[node])))[1:]
    return sorted({name for each in inside for name in each.input if name})


def _of_initializer(tensor: onnx.TensorProto) -> str:
    if tensor.data_type == onnx.TensorProto.STRING:
        return _of(b"texts", *tensor.string_data)
    values = np.ascontiguousarray(array_of(tensor))
    data = values.reshape(-1).view(np.uint8).data  # Not a copy of the weights.
    return _of(str(tensor.data_type).encode(), str(tuple(tensor.dims)).encode(), data)


def _of(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:NUM_DIGITS]
