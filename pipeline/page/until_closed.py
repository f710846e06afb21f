"""stdout and stderr whose reader may go, as `| head` does: what comes after is dropped, the exit status stays.

A gate that may not ship must not end otherwise because its table was cut.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class UntilClosed(io.FileIO):
    """A file descriptor that takes and drops everything once the reader of its pipe is gone."""

    def write(self, data: ReadableBuffer, /) -> int:
        """The number of bytes written or dropped; OSError of any other kind, such as a full disk, stays one."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # Child processes have it too.
            os.close(nowhere)
            return memoryview(data).nbytes


def until_closed(stream: TextIO) -> TextIO:
    """The same stream, of a process's own file descriptor, by ``UntilClosed``; another as it is."""
    if not isinstance(stream, io.TextIOWrapper) or stream is not {1: sys.__stdout__, 2: sys.__stderr__}.get(
        stream.fileno()
    ):
        return stream
    stream.flush()
    buffered = io.BufferedWriter(UntilClosed(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        buffered,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
