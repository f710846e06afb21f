"""The nearest known name for a typo."""

from __future__ import annotations

import difflib


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, and all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{meant} known: {', '.join(known)}"
