"""What native libraries write on the terminal before they can be told not to goes to the debug log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Whatever is written to file descriptor 2 meanwhile."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as stderr_file:
        screen = os.dup(2)
        os.dup2(stderr_file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            stderr_file.seek(0)
            for line in stderr_file.read().decode(errors="replace").splitlines():
                _LOG.debug("%s", line)
