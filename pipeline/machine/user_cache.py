"""Where things are kept that make later runs quicker, and that may be deleted at any time: the user's cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/trtforge``, or ``~/.cache/trtforge``; it need not exist.

    For a user without a home, as in some containers, a folder for temporary files stands in for it.
    """
    if cache_home := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache_home) / "trtforge"
    try:
        return Path.home() / ".cache" / "trtforge"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"trtforge-{os.getuid()}"
