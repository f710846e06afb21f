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


def check_bounds(record: object, **bounds: tuple[float, float]) -> None:
    """Raise ConfigError if a field, or an item of a field that is a tuple, is not within its (low, high)."""
    for name, (low, high) in bounds.items():
        value = getattr(record, name)
        for item in value if isinstance(value, tuple) else (value,):
            if not low <= item <= high:
                upper = {math.inf: "", FINITE: " and finite"}.get(high, f" and at most {high:g}")
                raise ConfigError(f"{name} is {item:g}, but must be at least {low:g}{upper}; correct it")


def option(default: T, help: str) -> T:
    """A dataclass field with a default and a help sentence."""
    return field(default=default, metadata={"help": help})
