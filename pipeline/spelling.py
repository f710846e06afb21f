"""Names in what a person reads: the nearest known one for a typo; control characters are shown, never obeyed."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

MOST_NAMED = 60
"""Names in a sentence."""
OBEYED = "\n\t"
"""Control characters that a sentence or a table may have."""


def shown(text: str) -> str:
    """The text with what Unicode calls a control character, category Cc, spelt out: ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        char if char in OBEYED or unicodedata.category(char) != "Cc" else f"\\x{ord(char):02x}" for char in text
    )


def echo(message: object, *, err: bool = False) -> None:
    """A line on stdout, or on stderr."""
    click.echo(shown(str(message)), err=err)


def table_console(**settings: Any) -> Console:
    """For tables: text is printed as it is, not read as markup. ``settings`` are those of rich's console."""
    from rich.console import Console
    from rich.segment import Segment

    class _Console(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(shown(segment.text), segment.style)

    return _Console(markup=False, **settings)


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, and all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{meant} known: {some_of(known)}"


def some_of(names: tuple[str, ...] | list[str], most: int = MOST_NAMED) -> str:
    """The names, with commas between them; of more than ``most`` the first, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def with_and(names: Sequence[str]) -> str:
    """The names as a sentence has them: ``a, b and c``."""
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + list(names[-1:]))
