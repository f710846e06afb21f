"""A field of a stage that a user may set: its default and the sentence that `--help` and the documents print."""

from __future__ import annotations

import math
import sys
from dataclasses import field
from typing import TypeVar

from pipeline.errors import ConfigError

T = TypeVar("T")

FINITE = sys.float_info.max
"""As an upper bound: every number but infinity."""


MOST_THREADS = 1024
"""Of a runtime, and workers: a million of them end in an error of the system, or never begin."""


def check_bounds(record: object, **bounds: tuple[float, float]) -> None:
    """Raise ConfigError if a field, or an item of a field that is a tuple, is not within its (low, high)."""
    for name, (low, high) in bounds.items():
        value = getattr(record, name)
        for item in value if isinstance(value, tuple) else (value,):
            if not low <= item <= high:
                upper = {math.inf: "", FINITE: " and finite"}.get(high, f" and at most {high:g}")
                words = f"{item:g}" if isinstance(item, float) else f"{item!s:.40}"
                raise ConfigError(f"{name} is {words}, but must be at least {low:g}{upper}; correct it")


def option(default: T, help: str) -> T:
    """A dataclass field with a default and a help sentence."""
    return field(default=default, metadata={"help": help})
