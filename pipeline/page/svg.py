"""What all pictures share: size, colours that follow the page, and SVG out of a figure."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.precision import rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH = 320.0
"""Points; as many pixels as a picture has on a phone of 360, so that no text is smaller there than ``FONT_SIZE``."""
FONT_SIZE = 11.0
MAX_NAME = 36
LOG_FROM = 20.0
"""A latency axis is logarithmic where its largest value is this many times its smallest."""
FEW_DECADES = 200.0
"""... and up to this many times, 2 and 5 of each decade have numbers too."""


INK, QUIET, LINE, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
GOOD, WARN, BAD = "#191a1b", "#1c1d1e", "#1f2021"
SERIES = ("#101112", "#131415", "#161718", "#222324", "#252627", "#28292a")
"""Colours of what is compared: of precisions from the highest on, of a baseline and its candidate."""
FIRST, ACCENT = SERIES[0], SERIES[2]
_VARIABLES = {
    INK: "--ink",
    QUIET: "--quiet",
    LINE: "--line",
    PAPER: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
    GOOD: "--good",
    WARN: "--warn",
    BAD: "--bad",
}
"""The colour that is drawn -> the page's variable that replaces it."""


STYLE: Any = {
    "font.family": "DejaVu Sans",  # Comes with matplotlib, so that widths are the same everywhere.
    "font.size": FONT_SIZE,
    "text.color": INK,
    "text.parse_math": False,  # A tensor's name may hold dollar signs.
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.labelsize": FONT_SIZE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.color": LINE,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "svg.fonttype": "none",  # Text stays text.
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Picture:
    """One picture: its headings, what a screen reader says, and an ``<svg>`` element."""

    key: str
    title: str
    caption: str
    alt: str
    svg: str


def colour_of(precision: str) -> str:
    """The colour of a precision, by its rank."""
    return SERIES[rank(precision) % len(SERIES)]


def shortened(name: str) -> str:
    """A long name with its middle left out; the end tells tensors apart."""
    if len(name) <= MAX_NAME:
        return name
    head = MAX_NAME // 3
    return f"{name[:head]}…{name[-(MAX_NAME - head - 1) :]}"


def empty_figure(height: float) -> Figure:
    """An empty figure, ``WIDTH`` by ``height`` points, that fits its contents by itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained", facecolor="none")


def latency_axis(ax: Axes, values: Sequence[float], label: str) -> None:
    """Logarithmic where the values ask for it; ticks are plain numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if max(values) > LOG_FROM * min(values):
        ax.set_xscale("log")
        between = (1.0, 2.0, 5.0) if max(values) < FEW_DECADES * min(values) else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(subs=between, numticks=6))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel(label)


def row_text(ax: Axes, y: float, left: str, right: str) -> None:
    """A row's name at the left end and its number at the right end."""
    where = ax.get_yaxis_transform()
    ax.text(0, y, left, transform=where, ha="left", va="center", color=INK)
    ax.text(1, y, right, transform=where, ha="right", va="center", color=QUIET)


def svg_from_figure(figure: Figure, key: str) -> str:
    """The figure as an ``<svg>`` element: no fixed colours or fonts, no date, no name that another picture has."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.hashsalt": key}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<style type=\"text/css\">.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9]+(?:\.[a-z]+)?_\d+"', "", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" ', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", svg, count=1)
    svg = svg.replace("'DejaVu Sans'", "var(--font)")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1).strip()
