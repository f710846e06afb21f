"""Progress on stderr for whatever takes more than two seconds: one line on a terminal, elsewhere a line for each stage.

What is at work is nested: a stage, in it its steps. A terminal shows one line for all of it, which is drawn by a thread
of its own, a few times a second; so does a notebook. Elsewhere a stage says that it works, and again from time to time.
With `-v` everything is told when it begins.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from pipeline.machine.notebook_line import NotebookLine, ProgressState, is_notebook
from pipeline.spelling import shown, table_console

T = TypeVar("T")

PATIENCE_SECONDS = 2.0
PLAIN_SECONDS = 30.0
"""Between two lines of a stage where stderr is no terminal."""
REFRESH_PER_SECOND = 4
NOTEBOOK_SECONDS = 0.5
"""Between two drawings in a notebook, each of which is a message to the browser."""

log = logging.getLogger(__name__)


def _nothing() -> None:
    """What stops a line that is not drawn."""


def _is_terminal() -> bool:
    """Whether stderr is one; where it was closed from the beginning Python has None in its place."""
    return sys.stderr is not None and sys.stderr.isatty()


def _write_line(line: str) -> None:
    """On stderr, past its buffer: that keeps what cannot be written, and fails with it when the process ends."""
    sys.stderr.flush()
    try:
        descriptor = sys.stderr.fileno()
    except OSError:  # It is not a file, such as where a test reads it.
        sys.stderr.write(line)
        sys.stderr.flush()
        return
    os.write(descriptor, line.encode(sys.stderr.encoding, "backslashreplace"))


class Bar:
    """What is done, how far, and how long it still takes."""

    def __init__(self, what: str, total: int, *, is_stage: bool = False) -> None:
        """``total``: number of steps; 0 when it is not known, which draws a clock instead of a bar.

        ``is_stage``: it is told also where stderr is no terminal.
        """
        self.what, self.total, self.done, self.is_stage = what, total, 0, is_stage
        self.begin = time.monotonic()
        _AT_WORK.add(self)

    def to(self, done: int) -> None:
        """Say that ``done`` steps are done."""
        self.done = done
        _AT_WORK.update(self)

    def close(self) -> None:
        """Take the line away."""
        _AT_WORK.remove(self)


class _AtWork:
    """All that is at work, the outermost first, and its line."""

    def __init__(self) -> None:
        self._bars: list[Bar] = []
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._stop: Callable[[], None] = _nothing
        self._draw: Callable[[], None] = _nothing
        self._advance: Callable[[], None] = _nothing
        self._below_cell = NotebookLine()

    def add(self, bar: Bar) -> None:
        with self._lock:
            before = self._sentence() if self._bars else ""
            self._bars.append(bar)
            if (sentence := self._sentence()) != before:
                log.info("%s", sentence)
            if len(self._bars) == 1 and _is_terminal():
                self._start(PATIENCE_SECONDS, self._show)
            elif len(self._bars) == 1 and bar.is_stage:
                self._start(PATIENCE_SECONDS, self._show_below_cell if is_notebook() else self._say)
            self._draw()

    def update(self, bar: Bar) -> None:
        if self._bars and self._bars[-1] is bar:
            with self._lock:
                self._advance()

    def remove(self, bar: Bar) -> None:
        with self._lock:
            if bar not in self._bars:
                return
            self._bars.remove(bar)
            if self._bars:
                self._draw()
                return
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._stop()
            self._stop = self._draw = self._advance = _nothing

    def _start(self, seconds: float, function: Callable[[Bar], None]) -> None:
        self._timer = threading.Timer(seconds, function, (self._bars[0],))
        self._timer.daemon = True
        self._timer.start()

    def _sentence(self) -> str:
        """``tolerate int8@onnxruntime: draws 12/1024``."""
        inner = self._bars[-1]
        return self._words() + (f" {inner.done}/{inner.total}" if inner.total and inner.done else "")

    def _words(self) -> str:
        """Without the count; a step with the verb of its stage adds nothing."""
        outer = self._bars[0].what
        steps = (bar.what for bar in self._bars[1:] if bar.what.split()[0] != outer.split()[0])
        return ": ".join((outer, *dict.fromkeys(steps)))

    def _say(self, outermost: Bar) -> None:
        """A plain line, and the next one later."""
        with self._lock:
            if outermost not in self._bars:  # It was done while this thread was on its way here.
                return
            seconds = time.monotonic() - outermost.begin
            after = f", {seconds:.0f} s" if seconds > PLAIN_SECONDS else ""
            with suppress(OSError, AttributeError):  # Nobody reads it any more, or it was closed from the beginning.
                _write_line(f"trtforge: {shown(self._sentence())}{after} ...\n")
            self._start(PLAIN_SECONDS, self._say)

    def _show_below_cell(self, outermost: Bar) -> None:
        """Draw it in a notebook, and again soon."""
        with self._lock:
            if outermost not in self._bars:
                return
            inner = self._bars[-1]
            seconds = time.monotonic() - (inner if inner.total else outermost).begin
            self._below_cell.draw(ProgressState(self._words(), inner.done, inner.total, seconds))
            self._stop = self._below_cell.clear
            self._start(NOTEBOOK_SECONDS, self._show_below_cell)

    def _show(self, outermost: Bar) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        clock: tuple[ProgressColumn, ...] = (TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        counted = (clock[0], BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
        lines = Progress(
            *clock, console=table_console(stderr=True), transient=True, refresh_per_second=REFRESH_PER_SECOND
        )

        def draw() -> None:
            for task in lines.tasks:
                lines.remove_task(task.id)
            inner = self._bars[-1]
            lines.columns = counted if inner.total else clock
            task_id = lines.add_task(self._words(), total=inner.total or None, completed=inner.done)
            lines.tasks[-1].start_time = inner.begin if inner.total else outermost.begin
            self._advance = lambda: lines.update(task_id, completed=self._bars[-1].done)

        with self._lock:
            if outermost not in self._bars:
                return
            draw()
            lines.start()
            self._stop, self._draw = lines.stop, draw


_AT_WORK = _AtWork()


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
def working(stage: str) -> Iterator[None]:
    """While a stage of a run works, such as ``infer int8@onnxruntime``."""
    bar = Bar(stage, 0, is_stage=True)
    try:
        yield
    finally:
        bar.close()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A clock while something runs that cannot say how far it is."""
    with counting(what, 0):
        yield


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar while something runs that tells how many of ``total`` steps are done."""
    bar = Bar(what, total)
    try:
        yield bar.to
    finally:
        bar.close()


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a bar; ``total`` in items."""
    with counting(what, total) as on_item:
        for done, item in enumerate(items, 1):
            yield item
            on_item(done)
