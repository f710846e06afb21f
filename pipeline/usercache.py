"""Where things are kept that make later runs quicker, and that may be deleted at any time: the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/trtforge``, or ``~/.cache/trtforge``; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtforge"
