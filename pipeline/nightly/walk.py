"""Walk a plan through the store without making anything: what is there, and the first result that is not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calibration.data.user_function import forgotten_modules
from pipeline.flow import run
from pipeline.plan import Plan
from pipeline.results import Results
from pipeline.store import Entry, Missing, Store


class _Looked(Exception):
    """The first result that the store does not have."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(missing.stage)
        self.missing = missing


class LookingStore(Store):
    """A store that serves, and stops the walk where a result would have to be made."""

    def on_missing(self, missing: Missing) -> None:
        """Stop."""
        raise _Looked(missing)


@dataclass(frozen=True)
class Walk:
    """What the store has of a plan."""

    served: tuple[Entry, ...]
    missing: Missing | None
    """The first result that it lacks; what comes after it is unknown. None: it has all."""
    made: Results | None
    """All of it; None where something is missing."""


def walk(plan: Plan, store: Path, until: str) -> Walk:
    """Walk a plan up to a verb that measures nothing.

    Raises:
        ConfigError, DataError, Unavailable, CheckFailed, ModelError: as ``flow.run``, before anything would be made.
    """
    looking = LookingStore(store)
    with _silent(), forgotten_modules(plan.folder):
        try:
            made = run(plan, looking, until)
        except _Looked as stop:
            return Walk(tuple(looking.account), stop.missing, None)
    return Walk(tuple(looking.account), None, made)


@contextmanager
def _silent() -> Iterator[None]:
    """The warnings of a plan's stages were told when its results were made."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
