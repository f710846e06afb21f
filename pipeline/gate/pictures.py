"""The pictures of gate.html: budgets at a glance; latencies of both sides, their difference, their trace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibration.arrays import Floats
from pipeline.gate.record import Check, LatencyMeasurement
from pipeline.gate.summary import numbers_of
from pipeline.latency.benchmark import Queries
from pipeline.page.svg import (
    ACCENT,
    BAD,
    FIRST,
    FONT_SIZE,
    GOOD,
    INK,
    LINE,
    QUIET,
    STYLE,
    WARN,
    Picture,
    empty_figure,
    latency_axis,
    row_text,
    shortened,
    svg_from_figure,
)
from pipeline.stats.percentiles import percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUTCOMES = {"pass": GOOD, "fail": BAD, "not decided": WARN}
TAIL_PERCENT = 99.0
"""Latencies are drawn up to a little above this percentile."""
SIDES = {"candidate": ACCENT, "baseline": FIRST}
"""Side -> colour."""
PERCENTS = np.arange(1, 100)
LEAST_CHANGE = 2.0
"""The axis of differences reaches so far to both sides at least, percent."""
MOST_SHARE = 2.0
"""Budgets are drawn up to twice their bound."""


@dataclass(frozen=True, eq=False)
class LatencySamples:
    """The raw latencies of one engine at one batch size, and what the machine's sensors said meanwhile."""

    measured: LatencyMeasurement
    queries: Mapping[str, Queries]
    """``candidate`` and, where there is one, ``baseline``."""
    temperatures_c: Mapping[str, tuple[Floats, Floats]]
    """Sensor -> times (n,) in seconds since the first round began, and temperatures (n,)."""


def budget_picture(checks: Sequence[Check]) -> Picture | None:
    """How much of each budget is used, with intervals; None where no budget has a number."""
    from matplotlib import rc_context

    shown = [check for check in checks if share_of(check, check.estimate) is not None]
    if not shown:
        return None
    with rc_context(STYLE):
        figure = empty_figure(34 + 38 * len(shown))
        ax = figure.subplots()
        for row, check in enumerate(shown):
            _budget_row(ax, -row, check)
        ax.set_xlim(0, MOST_SHARE)
        ax.set_ylim(-len(shown) + 0.6, 0.85)
        ax.set_yticks([])
        ax.set_xticks([0, 0.5, 1, 1.5, 2], ["0", "½", "bound", "1½", "2×"])
        ax.spines["left"].set_visible(False)
        svg = svg_from_figure(figure, "budgets")
    alt = "; ".join(f"{check.budget}: {numbers_of(check)[0]}, {check.outcome}" for check in shown)
    caption = (
        "How much of each budget is used, with its interval; of a budget with >=, what it asks for as a share of what "
        "there is. What is left up to the line is headroom; beyond it the budget is not met."
    )
    return Picture("budgets", "Budgets at a glance", caption, alt, svg)


def share_of(check: Check, value: float | None) -> float | None:
    """A value as a share of the budget: 1 is the bound, more is too much; None where that means nothing."""
    if value is None or check.bound is None or check.bound <= 0 or (not check.at_most and value <= 0):
        return None
    return value / check.bound if check.at_most else check.bound / value


def ends_of(check: Check) -> tuple[float, float]:
    """The interval as shares of the budget, in either order; an end that is not known may be anywhere."""
    least, most = (0.0, MOST_SHARE) if check.at_most else (MOST_SHARE, 0.0)
    low, high = share_of(check, check.low), share_of(check, check.high)
    inside = (least if low is None else low), (most if high is None else high)
    return min(max(inside[0], 0.0), MOST_SHARE), min(max(inside[1], 0.0), MOST_SHARE)


def _budget_row(ax: Axes, y: float, check: Check) -> None:
    middle = share_of(check, check.estimate)
    assert middle is not None  # of the budgets that are shown
    low, high = ends_of(check)
    colour = OUTCOMES[check.outcome]
    ax.fill_betweenx([y - 0.2, y + 0.2], 1.0, MOST_SHARE, color=LINE, alpha=0.35, lw=0)
    ax.vlines(1.0, y - 0.2, y + 0.2, color=QUIET, lw=1)  # Below the row's text.
    ax.hlines(y, 0, MOST_SHARE, color=LINE, lw=0.8, zorder=1)
    ax.hlines(y, low, high, color=colour, lw=5, alpha=0.45, zorder=2)
    marker = "o" if middle <= MOST_SHARE else ">"
    ax.plot(min(middle, MOST_SHARE), y, marker, ms=7, color=colour, clip_on=False, zorder=3)
    row_text(ax, y + 0.42, shortened(check.budget), f"{numbers_of(check)[0]}{_headroom(check)}")


def _headroom(check: Check) -> str:
    """For a budget of at least so much: by how much of the bound the number is above or below it."""
    if check.at_most or not check.bound or check.estimate is None:
        return ""
    share = check.estimate / check.bound - 1
    return f" ({abs(share):.1%} {'headroom' if share >= 0 else 'short'})"


def latency_pictures(samples: LatencySamples) -> list[Picture]:
    """Distributions, ECDF, difference by percentile where there is a baseline, and the trace over time."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        drawn = [_distributions(samples), _ecdf(samples)]
        if "baseline" in samples.queries:
            drawn.append(_difference(samples))
        return [*drawn, _trace(samples)]


def _key(samples: LatencySamples, what: str) -> str:
    return f"{what}-{samples.measured.variant}-{samples.measured.batch_size}"


def _distributions(samples: LatencySamples) -> Picture:
    figure = empty_figure(44 + 50 * len(samples.queries))
    ax = figure.subplots()
    low, high = _ends(samples)
    latency_axis(ax, [low, high], "latency of one query, ms")
    edges = np.geomspace(low, high, 121) if ax.get_xscale() == "log" else np.linspace(low, high, 121)
    alt = []
    for row, (side, queries) in enumerate(samples.queries.items()):
        colour, base = SIDES[side], -float(row)
        counts, _ = np.histogram(queries.latency_ms, edges)
        height = base + 0.44 * np.sqrt(counts / counts.max())
        ax.stairs(height, edges, baseline=base, fill=True, color=colour, alpha=0.35, lw=0)
        ax.hlines(base, low, high, color=LINE, lw=0.8)
        p50, p99 = percentiles(queries.latency_ms, (0.50, 0.99)).tolist()
        ax.vlines(p50, base, base + 0.44, color=colour, lw=2)
        ax.vlines(min(p99, high), base, base + 0.22, color=colour, lw=1.5)
        text = f"p50 {_ms(p50)} · p99 {_ms(p99)} ms"
        row_text(ax, base + 0.66, side, text)
        alt.append(f"{side} {text}")
    ax.set_ylim(-len(samples.queries) + 0.8, 1.0)
    ax.set_xlim(low, high)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    caption = (
        f"Every recorded query, up to a little above percentile {TAIL_PERCENT:g}; height is the square root of the "
        "count. Tall mark: p50, short mark: p99."
    )
    key = _key(samples, "distributions")
    return Picture(key, "Latency distributions", caption, "; ".join(alt), svg_from_figure(figure, key))


def _ecdf(samples: LatencySamples) -> Picture:
    figure = empty_figure(230)
    ax = figure.subplots()
    low, high = _ends(samples)
    latency_axis(ax, [low, high], "latency of one query, ms")
    for side, queries in samples.queries.items():
        grid = np.linspace(0, 100, 401)
        ax.plot(np.percentile(queries.latency_ms, grid), grid / 100, color=SIDES[side], lw=1.8, label=side)
    for share in (0.5, 0.9, 0.99):
        ax.axhline(share, color=LINE, lw=0.8, zorder=0)
    ax.set_xlim(low, high)
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 0.9, 0.99], ["0", "50 %", "90 %", "99 %"])
    _legend(ax, samples)
    key = _key(samples, "ecdf")
    caption = "The share of queries within a given latency (ECDF)."
    alt = "The curve further to the left is the faster engine's."
    return Picture(key, "Share of queries by latency", caption, alt, svg_from_figure(figure, key))


def _difference(samples: LatencySamples) -> Picture:
    """The shift function: candidate over baseline at each percentile, and the intervals that were found."""
    figure = empty_figure(230)
    ax = figure.subplots()
    sides = (samples.queries["candidate"], samples.queries["baseline"])
    candidate_ms, baseline_ms = (np.percentile(queries.latency_ms, PERCENTS) for queries in sides)
    change = 100 * (candidate_ms / baseline_ms - 1)
    ax.axhline(0, color=QUIET, lw=1)
    ax.plot(PERCENTS, change, color=SIDES["candidate"], lw=1.8)
    at = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    alt = []
    for row in samples.measured.percentiles:
        if row.ratio is None or row.statistic not in at:
            continue
        x, middle = at[row.statistic], 100 * (row.ratio.estimate - 1)
        low, high = (middle if end is None else 100 * (end - 1) for end in (row.ratio.low, row.ratio.high))
        ax.vlines(x, low, high, color=INK, lw=1.6, zorder=3)
        ax.plot(x, middle, "o", ms=5, color=INK, zorder=4)
        alt.append(f"{row.statistic} {middle:+.1f} %")
    shown = [*change, *(100 * (row.ratio.estimate - 1) for row in samples.measured.percentiles if row.ratio)]
    low, high = min(*shown, -LEAST_CHANGE), max(*shown, LEAST_CHANGE)
    ax.set_ylim(1.25 * low, 1.25 * high)  # An interval that knows little is cut off.
    ax.set_xlim(0, 100)
    ax.set_xticks([1, 25, 50, 75, 90, 99])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:+g} %".replace("-", "−") if value else "0")
    ax.set_xlabel("percentile")
    key = _key(samples, "difference")
    caption = (
        "How much longer the candidate takes than the baseline, percentile by percentile; the points with intervals "
        "are those of the table."
    )
    return Picture(key, "Difference by percentile", caption, "; ".join(alt), svg_from_figure(figure, key))


def _trace(samples: LatencySamples) -> Picture:
    """The median of each block over time, and below it the hottest sensors."""
    rows = 2 if samples.temperatures_c else 1
    figure = empty_figure(190 + 90 * (rows - 1))
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[2, 1][:rows])[:, 0]
    for side, queries in samples.queries.items():
        starts = np.flatnonzero(np.diff(queries.block, prepend=-1))
        medians = [float(np.median(part)) for part in np.split(queries.latency_ms, starts[1:])]
        axes[0].plot(queries.started_ms[starts] / 1e3, medians, ".", ms=3.5, color=SIDES[side], label=side)
    axes[0].set_ylabel("median of a round, ms")
    _legend(axes[0], samples)
    alt = [f"{samples.measured.num_rounds} rounds over {samples.measured.seconds:.1f} s"]
    if samples.temperatures_c:
        for dashes, (name, (times_s, values)) in zip(itertools.cycle(("-", ":")), samples.temperatures_c.items()):
            axes[1].plot(times_s, values, ls=dashes, color=QUIET, lw=1.2)
            alt.append(f"{name} {float(np.nanmin(values)):.0f} to {float(np.nanmax(values)):.0f} °C")
        axes[1].set_ylabel("°C")
    axes[-1].set_xlabel("seconds since the first round")
    key = _key(samples, "trace")
    named = ", and dotted ".join(samples.temperatures_c)
    sensors = f" Below, {named}." if named else " No temperature sensor was readable."
    return Picture(
        key, "Over time", f"Each round of the measurement.{sensors}", "; ".join(alt), svg_from_figure(figure, key)
    )


def _ends(samples: LatencySamples) -> tuple[float, float]:
    values = [queries.latency_ms for queries in samples.queries.values()]
    low, high = min(float(v.min()) for v in values), max(float(np.percentile(v, TAIL_PERCENT)) for v in values)
    high += 0.1 * (high - low)
    return low, high if high > low else low * (1 + 1e-6)


def _legend(ax: Axes, samples: LatencySamples) -> None:
    if len(samples.queries) > 1:
        ax.legend(frameon=False, fontsize=FONT_SIZE, labelcolor="linecolor", handlelength=0.8, loc="best")


def _ms(value: float) -> str:
    digits = max(0, 3 - (math.floor(math.log10(value)) + 1)) if value > 0 else 0
    return f"{value:.{digits}f}"
