"""Packages that another one imports if it finds them, and that we have no use for, are not imported with it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def left_out(packages: tuple[str, ...]) -> Iterator[None]:
    """Those that are not loaded yet cannot be imported meanwhile; whoever imports them does as if they were missing."""
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: `import` raises ModuleNotFoundError.
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
