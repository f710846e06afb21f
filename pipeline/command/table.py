"""A table for the terminal that fits 80 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table


def _table(title: str) -> Table:
    """A table that fits 80 columns."""
    return Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
