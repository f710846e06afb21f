"""What a process writes to a terminal."""

from __future__ import annotations

import os


def read_until_closed(terminal: int) -> bytes:
    """Everything that comes until the other side of the pseudo-terminal is closed."""
    seen = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux says so when the other side is closed.
            break
        if not piece:
            break
        seen += piece
    return seen
