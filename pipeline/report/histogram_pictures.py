"""Pictures of the worst tensors' histograms for report.html: what each method keeps, and what it clips."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from calibration.arrays import Floats
from pipeline.page.svg import ACCENT, FIRST, FONT_SIZE, INK, QUIET, STYLE, Picture, empty_figure, svg_from_figure
from pipeline.record import Record, TensorHistogram, TensorQuality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Side = Literal["right", "left"]
SIDES: tuple[Side, ...] = ("right", "left")

HEIGHT = 150.0
ROW_HEIGHT = 13.0
"""Of a row of labels above the columns, points."""
GAP = 4.0
"""Between a threshold's line and its label, or between two labels, points."""
NUM_ROWS = 4
"""As many as there are methods: then there is a place for every label wherever the thresholds lie."""
MOST_TICKS = 4
BASE = 0.5
"""Where the logarithmic columns start, so that a single value has a height."""


@dataclass(frozen=True)
class Place:
    """Where the label of a threshold stands: in which row, counted from the columns up, on which side of its line."""

    row: int
    side: Side


@dataclass(frozen=True)
class HistogramPicture:
    """The histogram of one tensor with every method's threshold."""

    picture: Picture
    tensor: TensorQuality
    also: tuple[str, ...]
    """Other tensors with the very same histogram."""


def histogram_pictures(record: Record) -> list[HistogramPicture]:
    """One picture for each of the record's histograms, in its order."""
    from matplotlib import rc_context

    by_name = {tensor.name: tensor for tensor in record.tensors}
    with rc_context(STYLE):
        return [
            _histogram_picture(f"histogram-{number}", histogram, by_name[histogram.tensors[0]])
            for number, histogram in enumerate(record.histograms, 1)
        ]


def label_places(x: Sequence[float], widths: Sequence[float], width: float) -> list[Place]:
    """Places for the labels of vertical lines, so that no label lies on another or on a line that goes past it.

    A line goes from below all rows up to the middle of its label's row. The lowest rows are preferred, then the right.

    Args:
        x: of each line, points from the left end of the axes; at most ``NUM_ROWS`` lines.
        widths: of each label, points; at most a fifth of ``width``.
        width: of the axes, points; labels stay within.
    """
    choices = [Place(row, side) for row in range(NUM_ROWS) for side in SIDES]
    every = sorted(itertools.product(choices, repeat=len(x)), key=_cost)
    boxes = {(at, size, side): _box(at, size, side) for at, size in zip(x, widths) for side in SIDES}
    for places in every:
        ends = [boxes[at, size, place.side] for at, size, place in zip(x, widths, places)]
        inside = all(low >= 0 and high <= width for low, high in ends)
        if inside and _is_free(x, ends, places):
            return list(places)
    raise AssertionError("every set of four narrow labels has places")


def _cost(places: Sequence[Place]) -> tuple[int, int]:
    return sum(place.row for place in places), sum(place.side == "left" for place in places)


def _box(at: float, size: float, side: str) -> tuple[float, float]:
    return (at + GAP, at + GAP + size) if side == "right" else (at - GAP - size, at - GAP)


def _is_free(x: Sequence[float], ends: Sequence[tuple[float, float]], places: Sequence[Place]) -> bool:
    for (i, (low, high)), j in itertools.product(enumerate(ends), range(len(x))):
        crossed = places[j].row >= places[i].row and low - 1 < x[j] < high + 1
        beside = places[j].row == places[i].row and low < ends[j][1] + GAP and ends[j][0] < high + GAP
        if i != j and (crossed or beside):
            return False
    return True


def _histogram_picture(key: str, histogram: TensorHistogram, tensor: TensorQuality) -> HistogramPicture:
    edges = np.arange(len(histogram.counts) + 1, dtype=np.float64) * histogram.bin_width
    counts = np.asarray(histogram.counts, np.float64)
    thresholds = {method: quality.amax for method, quality in tensor.by_method.items()}
    figure = empty_figure(HEIGHT)
    ax = figure.subplots()
    ax.set_xlim(0, max(float(edges[-1]), *thresholds.values()))
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("|x|")
    _draw_columns(ax, edges, counts, tensor.amax if tensor.clipped_share else math.inf)
    _draw_count_axis(ax, float(counts.max()))
    _mark_thresholds(figure, ax, thresholds, tensor.method)
    marks = "; ".join(f"{method} clips beyond {amax:.4g}" for method, amax in thresholds.items())
    picture = Picture(key, tensor.name, "", f"histogram of magnitudes; {marks}", svg_from_figure(figure, key))
    return HistogramPicture(picture, tensor, histogram.tensors[1:])


def _draw_columns(ax: Axes, edges: Floats, counts: Floats, amax: float) -> None:
    """What is kept and, in another colour, what is clipped; a column that the threshold cuts has both colours."""
    heights = np.maximum(counts, BASE)
    within, beyond = edges[:-1][edges[:-1] < amax], edges[edges > amax]
    kept_edges, clipped_edges = np.append(within, min(amax, edges[-1])), np.insert(beyond, 0, amax)
    ax.stairs(heights[: len(within)], kept_edges, baseline=BASE, fill=True, color=FIRST, alpha=0.55, lw=0)
    if len(beyond):
        ax.stairs(heights[-len(beyond) :], clipped_edges, baseline=BASE, fill=True, color=ACCENT, lw=0)


def _draw_count_axis(ax: Axes, largest: float) -> None:
    """Logarithmic, with a few powers of ten up to the largest count."""
    ax.set_yscale("log")
    num_decades = int(math.log10(largest)) + 1
    ticks = [10**power for power in range(0, num_decades, -(-num_decades // MOST_TICKS))]
    ax.set_yticks(ticks, [_short(tick) for tick in ticks])
    ax.minorticks_off()
    ax.spines["left"].set_bounds(BASE, largest)
    ax.set_ylim(BASE, largest)


def _short(tick: int) -> str:
    """10000 as 10k."""
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if tick >= size:
            return f"{tick // size}{letter}"
    return str(tick)


def _mark_thresholds(figure: Figure, ax: Axes, thresholds: Mapping[str, float], chosen: str) -> None:
    """A line for each threshold, up to its label above the columns; the chosen method's in full strength."""
    texts = {method: ax.text(0, 0, method, va="center", size=FONT_SIZE, in_layout=False) for method in thresholds}
    for method, text in texts.items():
        text.set(color=INK if method == chosen else QUIET, weight="bold" if method == chosen else "normal")
    figure.draw_without_rendering()  # Fixes the layout, so that places are known.
    frame, per_point = ax.bbox, ax.get_xlim()[1] / ax.bbox.width
    widths = [text.get_window_extent().width for text in texts.values()]
    places = label_places([amax / per_point for amax in thresholds.values()], widths, frame.width)
    top = _make_room(ax, 1 + max(place.row for place in places))
    for (method, amax), place in zip(thresholds.items(), places):
        y = top + (place.row + 0.5) * ROW_HEIGHT / frame.height
        offset, side = (GAP, "left") if place.side == "right" else (-GAP, "right")
        texts[method].set(position=(amax + offset * per_point, y), ha=side, transform=ax.get_xaxis_transform())
        width, dashes = (1.6, "-") if method == chosen else (1.0, (0, (3, 2)))
        ax.axvline(amax, 0, y, color=INK if method == chosen else QUIET, lw=width, ls=dashes)


def _make_room(ax: Axes, num_rows: int) -> float:
    """Lower the columns so that rows of labels fit above; the share of the height that is left to the columns."""
    share = 1 - num_rows * ROW_HEIGHT / ax.bbox.height
    largest = ax.get_ylim()[1]
    ax.set_ylim(BASE, BASE * (1.2 * largest / BASE) ** (1 / share))
    return share
