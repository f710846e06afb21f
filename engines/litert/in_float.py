"""Operators that a file in integers keeps in floating point because somebody asked for it: its metadata names them.

Without such an entry an operator in floating point is one that a converter left without a word.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from engines.litert.file_bytes import packed, unpacked

ENTRY = "trtforge.in_float"
"""The entry's name; its buffer is a JSON list of operators, each by the first tensor that it makes."""


def with_operators_in_float(schema: Any, flatbuffers: Any, data: bytes, names: Sequence[str]) -> bytes:
    """The same file with that entry.

    Args:
        schema: the module that the format's schema was compiled to.
        flatbuffers: what writes it.
        data: the file's bytes.
        names: the operators.
    """
    model = unpacked(schema, data)
    entry, buffer = schema.MetadataT(), schema.BufferT()
    entry.name, entry.buffer = ENTRY.encode(), len(model.buffers)
    buffer.data = np.frombuffer(json.dumps(list(names)).encode(), np.uint8)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    return packed(flatbuffers, model, len(data))


def operators_in_float(model: Any) -> frozenset[str]:
    """The operators that a file names so; ``model``: its root, as the schema reads it.

    Raises:
        ValueError: what it holds there is no list of names.
    """
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == ENTRY.encode():
            names = json.loads(bytes(model.Buffers(entry.Buffer()).DataAsNumpy()))
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"metadata {ENTRY} is no list of names")
            return frozenset(names)
    return frozenset()
