"""A store with results that were made from each other, used on whatever day a test says."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import store as store_module
from pipeline.artifact import Artifact, Engine
from pipeline.store import Store

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Join:
    """A stage: the inputs' texts and one of its own."""

    text: str
    times: int = 1

    def __call__(self, out: Path, *inputs: Artifact) -> Engine:
        (out / "engine.plan").write_text("".join([*(one.path.read_text() for one in inputs), self.text * self.times]))
        return Engine(out / "engine.plan")


class MadeStore:
    """A store in the current folder."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(store_module, "stage_name", lambda stage: type(stage).__name__.lower())
        self.folder = Path(".trtforge")
        self.store = Store(self.folder)

    def made(self, text: str, *inputs: Artifact, days_ago: float = 0.0, times: int = 1) -> Engine:
        """The result that has this text, so many times, after those of its inputs; used so long ago."""
        engine = self.store.run(Join(text, times), *inputs)
        used(engine, days_ago)
        return engine

    def there(self) -> str:
        """The texts of all results, sorted."""
        return " ".join(sorted(file.read_text() for file in self.folder.glob("join/*/engine.plan")))


def used(engine: Engine, days_ago: float) -> None:
    """Let the last use of a result be so long ago."""
    then = time.time() - days_ago * DAY_SECONDS
    os.utime(engine.path.parent / "result.json", (then, then))
