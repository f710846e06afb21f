"""A `.tflite` file unpacked so that it can be changed, and packed again.

ai-edge-quantizer writes the values of files with 256 KiB of them or more behind the flatbuffer, and in it only where
they lie. They are taken in: what is packed again would else say of each where it lay before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

IDENTIFIER = b"TFL3"


def unpacked(schema: Any, data: bytes) -> Any:
    """The file as objects that can be changed, all values within.

    Args:
        schema: the module that the format's schema was compiled to.
        data: the bytes of a whole `.tflite` file.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for buffer in model.buffers:
        if buffer.size:
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def packed(flatbuffers: Any, model: Any, num_bytes: int = 1024) -> bytes:
    """The bytes of the file; ``flatbuffers``: what writes it, ``num_bytes``: about how many they will be."""
    builder = flatbuffers.Builder(num_bytes)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
