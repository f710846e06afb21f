"""The line of progress in a notebook: one output below the cell, drawn again and again and emptied in the end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from html import escape
from typing import Any

STYLE = "font-family:monospace"


def is_notebook() -> bool:
    """Whether stderr is that of a notebook's kernel, which is no terminal and shows more than lines."""
    return type(sys.stderr).__module__.partition(".")[0] == "ipykernel"


@dataclass(frozen=True)
class ProgressState:
    """What a line says."""

    words: str
    done: int
    total: int
    """Steps; 0 where it is not known."""
    seconds: float
    """Since what is at work began."""

    def text(self) -> str:
        """``trtforge: infer int8@onnxruntime: samples 128/400, 12 s``."""
        count = f" {self.done}/{self.total}" if self.total else ""
        return f"trtforge: {self.words}{count}, {self.seconds:.0f} s"

    def html(self) -> str:
        """The same with a bar where the steps are counted."""
        bar = f' <progress value="{self.done}" max="{self.total}"></progress>' if self.total else ""
        return f'<div style="{STYLE}">{escape(self.text())}{bar}</div>'


class NotebookLine:
    """One output for each cell that runs: all that is at work in it, one after the other, is drawn there."""

    def __init__(self) -> None:
        self._cell: int | None = None
        self._handle: Any = None

    def draw(self, state: ProgressState) -> None:
        """Show it, in place of what was shown before."""
        self._show({"text/plain": state.text(), "text/html": state.html()})

    def clear(self) -> None:
        """Leave nothing of it."""
        if self._handle is not None:
            self._show({"text/plain": "", "text/html": ""})

    def _show(self, bundle: dict[str, str]) -> None:
        from IPython import get_ipython
        from IPython.display import display

        cell = get_ipython().execution_count
        if self._handle is None or cell != self._cell:
            self._cell, self._handle = cell, display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
