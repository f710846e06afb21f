"""A `.tflite` file as others publish it, made one that runs here: with names for its ends, and a fixed batch.

TensorFlow 2.4 and earlier wrote no signature, and files of Keras networks have an open batch, which interpreters run as
a batch of 1 unless they are told another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from engines.litert.facts import DEFAULT_SIGNATURE
from engines.litert.file_bytes import packed, unpacked
from engines.litert.names import with_short_names
from engines.litert.op_versions import set_old_codes

CALLED = re.compile(r"^serving_default_(.+?)(:\d+)?$|^(.+?):\d+$")
"""What TensorFlow's converter makes of an input's name, and of an output's."""


def with_signature(schema: Any, flatbuffers: Any, data: bytes) -> bytes:
    """The same file with a signature, fixed shapes, and short names of tensors that are unique.

    Codes of operators stand where readers of before 2020 look for them as well, tf2onnx among them, which would take
    all operators of ai-edge-quantizer for additions.

    Args:
        schema: the module that the format's schema was compiled to.
        flatbuffers: what writes it.
        data: the bytes of a whole `.tflite` file.
    """
    model = unpacked(schema, data)
    graph = model.subgraphs[0]
    if not model.signatureDefs:
        model.signatureDefs = [_signature(schema, graph)]
    set_old_codes(model)
    for each in model.subgraphs:
        for tensor in each.tensors:
            tensor.shapeSignature = None
    return with_short_names(schema, flatbuffers, packed(flatbuffers, model, len(data)))


def _signature(schema: Any, graph: Any) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = DEFAULT_SIGNATURE.encode(), 0
    signature.inputs, signature.outputs = (_side(schema, graph, side) for side in (graph.inputs, graph.outputs))
    return signature


def _side(schema: Any, graph: Any, indices: Sequence[int]) -> list[Any]:
    entries = []
    for index in indices:
        name = (graph.tensors[index].name or b"").decode(errors="replace")
        match = CALLED.match(name)
        entry = schema.TensorMapT()
        entry.name = (next(filter(None, (match[1], match[3]))) if match else name or f"tensor_{index}").encode()
        entry.tensorIndex = int(index)
        entries.append(entry)
    return entries
