"""What one ONNX file can hold, and the first line of what a tool says."""

from __future__ import annotations

from pathlib import Path

import onnx

from pipeline.errors import StageError

LARGEST_BYTES = 2**31 - 1
"""Protobuf's limit for one message, and so for an ONNX file without external data."""


def first_line(error: BaseException) -> str:
    """The first line of what a tool says of its error."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_size(model: onnx.ModelProto, path: Path) -> None:
    """Raise StageError if the model does not fit one ONNX file; ``path``: the source, for the sentence."""
    if model.ByteSize() > LARGEST_BYTES:
        raise StageError(too_large(f"{path}", model.ByteSize()))


def too_large(where: str, num_bytes: int = 0) -> str:
    """The sentence about a model that does not fit one ONNX file; ``num_bytes``: its size, 0 if it is not known."""
    size = f"has {num_bytes >> 20} MiB" if num_bytes else "is too large"
    return (
        f"{where}: the model {size}, at most {LARGEST_BYTES >> 20} MiB fit one ONNX file, and weights in files of "
        "their own are not supported; take a smaller model"
    )
