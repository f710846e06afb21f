"""A folder in which work that was interrupted is kept: who works there holds its lock, and others leave it alone."""

from __future__ import annotations

import fcntl
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = "lock"
"""The file whose lock says that somebody works there; it ends with the process."""


class FolderLock:
    """The lock of one folder, taken when it is first needed."""

    def __init__(self, folder: Path) -> None:
        """``folder`` need not be there yet."""
        self._folder = folder
        self._stream: IO[str] | None = None

    def is_ours(self) -> bool:
        """Whether we have it, or could take it now."""
        if self._stream is None:
            with suppress(OSError):
                stream = (self._folder / LOCK).open("a")
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._stream = stream
                finally:
                    if self._stream is None:
                        stream.close()
        return self._stream is not None

    def close(self, *, is_done: bool) -> None:
        """Let others have the folder; what is done needs it no more."""
        if self._stream is not None:
            if is_done:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._stream.close()
            self._stream = None
