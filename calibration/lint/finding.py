"""A finding of the lint: its code, severity and sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Severity = Literal["error", "warning"]
Code: TypeAlias = Literal[
    "range", "layout", "channels", "constant", "duplicates", "few", "classes", "imbalance", "overlap"
]


CODES: tuple[Code, ...] = get_args(Code)


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know of the calibration data, before or beside its ranges."""

    severity: Severity
    code: Code
    sentence: str
