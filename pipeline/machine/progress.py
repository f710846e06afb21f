"""Progress on stderr for whatever takes more than two seconds; silent when stderr is not a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 2.0


def _nothing(*_args: object) -> None:
    """What a bar does that is not shown."""


class Bar:
    """One line: what is done, how far, and how long it still takes."""

    def __init__(self, what: str, total: int) -> None:
        """``total``: number of steps; 0 when it is not known, which draws a clock instead of a bar."""
        self._what, self._total, self._done = what, total, 0
        self._timer = threading.Timer(PATIENCE_SECONDS, self._show)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._closed = False
        self._stop: Callable[[], None] = _nothing
        self._update: Callable[[int], None] = _nothing
        if sys.stderr.isatty():
            self._timer.start()

    def to(self, done: int) -> None:
        """Say that ``done`` steps are done."""
        with self._lock:
            self._done = done
            self._update(done)

    def close(self) -> None:
        """Take the line away."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            self._stop()
            self._stop = _nothing

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns: list[ProgressColumn] = [TextColumn("{task.description}"), TimeElapsedColumn()]
        if self._total:
            columns[1:] = [BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn()]
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        with self._lock:
            if self._closed:  # While this thread was on its way here.
                return
            task = bar.add_task(self._what, total=self._total or None, completed=self._done)
            bar.start()
            self._stop = bar.stop
            self._update = lambda done: bar.update(task, completed=done)


class Phases:
    """A clock until the first phase is told, then a bar for each phase."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar = Bar(what, 0)
        self._phase = ""
        self._done = 0

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

    def update(self, progress: tuple[str, int, int]) -> None:
        """A phase, and how many of its steps are done, of how many; steps may be told out of order."""
        phase, done, num_steps = progress
        if phase != self._phase:
            self._bar.close()
            self._bar, self._phase, self._done = Bar(f"{self._what}: {phase}", num_steps), phase, 0
        self._done = max(self._done, done)
        self._bar.to(self._done)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A clock while something runs that cannot say how far it is."""
    bar = Bar(what, 0)
    try:
        yield
    finally:
        bar.close()


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a bar; ``total`` in items."""
    bar = Bar(what, total)
    try:
        for done, item in enumerate(items, 1):
            yield item
            bar.to(done)
    finally:
        bar.close()
