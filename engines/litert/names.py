"""Names of a `.tflite` file's tensors that a person can read, and each once: the converter writes whole histories.

Of ``StatefulPartitionedCall/net/relu/Relu;net/batch_norm/add;net/conv/Conv2D`` the first stays, ``net/relu/Relu``;
inputs and outputs get the names of the signature. The names cost a tenth of a small file, and ranges go by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from engines.litert.file_bytes import packed, unpacked

CALLS = re.compile(r"^(StatefulPartitionedCall(_\d+)?/)+")


def with_short_names(schema: Any, flatbuffers: Any, data: bytes) -> bytes:
    """The same file with such names.

    Args:
        schema: the module that the format's schema was compiled to.
        flatbuffers: what writes it.
        data: a `.tflite` file's bytes.
    """
    model = unpacked(schema, data)
    for number, graph in enumerate(model.subgraphs):
        signatures = [each for each in model.signatureDefs or () if each.subgraphIndex == number]
        ordered = dict(_in_order_of_importance(graph, signatures))
        taken: set[str] = set()
        for index, name in ordered.items():
            graph.tensors[index].name = _unique(name, taken).encode()
    return packed(flatbuffers, model, len(data))


def _in_order_of_importance(graph: Any, signatures: list[Any]) -> Iterator[tuple[int, str]]:
    """Each tensor and its name; those that come first keep theirs, of a tensor with several the last counts."""
    by_signature = {
        int(entry.tensorIndex): entry.name.decode()
        for signature in signatures
        for entry in (*signature.outputs, *signature.inputs)
    }
    yield from by_signature.items()
    computed = [int(index) for operator in graph.operators for index in operator.outputs]
    for index in dict.fromkeys([*computed, *range(len(graph.tensors))]):
        if index not in by_signature:
            yield index, _short(graph.tensors[index].name)


def _short(name: bytes | None) -> str:
    first = (name or b"").decode(errors="replace").partition(";")[0]
    return CALLS.sub("", first) or "tensor"


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 0, name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique)
    return unique
