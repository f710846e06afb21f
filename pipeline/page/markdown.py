"""Text within Markdown."""

from __future__ import annotations


def cell(text: str) -> str:
    """Text that Markdown takes as it is, also within a table."""
    for mark in "\\|*_`<>[]&~$":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
