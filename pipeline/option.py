"""A field of a stage that a user may set: its default and the sentence that `--help` and the documents print."""

from __future__ import annotations

from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


def option(default: T, help: str) -> T:
    """A dataclass field with a default and a help sentence."""
    return field(default=default, metadata={"help": help})
