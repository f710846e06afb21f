"""What became of devices: errors from exit statuses, and which of several says most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import EXIT_STATUS, Unavailable
from pipeline.remote.ssh import Destination

WORST_FIRST = (1, 4, 2, 3, 5, 6, 0)
"""Exit statuses: our bug, a tool that failed, a plan that is wrong, a machine that lacks something, out of bounds, not
decided, done."""


@dataclass(frozen=True)
class DeviceOutcome:
    """What became of one device."""

    destination: Destination
    status: int
    """Exit status by the project's table."""
    sentence: str
    """Why it came to nothing; empty where the run there ended by itself, and has said why."""
    folder: Path
    is_fetched: bool = False
    """Whether ``folder`` has what this run made."""
    engines: Mapping[str, Path] = field(default_factory=dict)
    """By variant."""


def error_from_status(status: object, sentence: str) -> Exception:
    """What another process of ours ended with, by the exit status that it says; Unavailable where none is such."""
    return next((kind for kind, number in EXIT_STATUS.items() if number == status), Unavailable)(sentence)


def worst_status(statuses: Iterable[int]) -> int:
    """Of several exit statuses the one that says most."""
    known = set(statuses)
    return next((status for status in WORST_FIRST if status in known), max(known, default=0))
