"""Where things are kept that make later runs quicker, and that may be deleted at any time: the user's cache folder."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/trtforge``, or ``~/.cache/trtforge``; it need not exist.

    For a user without a home, as in some containers, a folder for temporary files stands in for it: one that anybody
    could have made before, so that another is taken where it is not the user's alone.
    """
    if cache_home := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache_home) / "trtforge"
    try:
        return Path.home() / ".cache" / "trtforge"
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"trtforge-{os.getuid()}"
        return folder if _is_ours_alone(folder) else Path(tempfile.mkdtemp(prefix="trtforge-"))


def _is_ours_alone(folder: Path) -> bool:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022
