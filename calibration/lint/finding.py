"""A finding of the lint: its code, severity and sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Severity = Literal["error", "warning", "note"]
FindingCode: TypeAlias = Literal[
    "range", "layout", "channels", "constant", "duplicates", "few", "classes", "imbalance", "overlap", "labels"
]


CODES: tuple[FindingCode, ...] = get_args(FindingCode)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know of the calibration data, before or beside its ranges."""

    severity: Severity
    code: FindingCode
    sentence: str
