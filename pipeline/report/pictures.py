"""The pictures of report.html: SVG that takes its colours from the page, so that light and dark both work.

matplotlib is loaded inside functions only. Every picture is drawn 320 points wide, which a phone shows at its
natural size. The same record gives the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calibration.arrays import Floats
from pipeline.page.numbers import drop_text, metric_text, metric_title, ms_text, size_text, three_digits, times_text
from pipeline.page.svg import (
    ACCENT,
    FONT_SIZE,
    LINE,
    QUIET,
    STYLE,
    Picture,
    colour_of,
    empty_figure,
    latency_axis,
    row_text,
    shortened,
    svg_from_figure,
)
from pipeline.record import MetricInfo, Record, TensorQuality, VariantRecord, size_ratio

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_TENSORS = 10
TAIL_PERCENT = 99.5
"""A latency distribution is drawn up to this percentile."""

_SIDES = ((0, "center"), (9, "left"), (-9, "right"))
"""Where a label may stand above or below its point: offset in points, and its alignment."""


def pictures(record: Record, latencies: Mapping[str, Floats]) -> list[Picture]:
    """Those pictures that the record has numbers for.

    Args:
        record: the run.
        latencies: variant name -> latency of each query at the first batch size, (num_queries,) milliseconds.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        return _pictures(record, latencies)


def _pictures(record: Record, latencies: Mapping[str, Floats]) -> list[Picture]:
    timed = [variant for variant in record.variants if variant.latency_ms is not None]
    drawn = []
    if record.metric is not None and any(variant.metric is not None for variant in timed):
        drawn.append(_accuracy(record, record.metric))
    if timed:
        drawn.append(_latency(timed, latencies))
    drawn.append(_sizes(record.variants))
    if record.tensors:
        drawn.append(_sqnr(record.tensors))
    return drawn


def _accuracy(record: Record, metric: MetricInfo) -> Picture:
    """Metric against p50; what was not timed stands in a strip of its own."""
    from matplotlib.ticker import MaxNLocator

    shown = [variant for variant in record.variants if variant.metric is not None]
    timed = [variant for variant in shown if variant.latency_ms is not None]
    untimed = [variant for variant in shown if variant.latency_ms is None]
    figure = empty_figure(280)
    ratios = [1, 0.85] if untimed else [1]
    axes = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0]
    main = axes[0]
    points: list[tuple[Axes, float, VariantRecord]] = [(main, _p50_ms(variant), variant) for variant in timed]
    latency_axis(main, [x for _, x, _ in points], "p50 latency, ms")
    main.margins(x=0.25, y=0.3)
    main.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    main.yaxis.set_major_formatter(lambda value, _: metric_text(metric, value))
    if untimed:
        strip = axes[1]
        strip.set_xlim(0, 1)
        strip.set_xticks([0.5], ["not timed"])
        strip.tick_params(left=False, bottom=False)
        strip.spines["left"].set(visible=True, linestyle=(0, (2, 2)))
        points += [(strip, 0.5, variant) for variant in untimed]
    line = _bound_line(record, metric, axes)
    for ax, x, variant in points:
        hollow = variant.is_simulated()
        colour = colour_of(variant.precision)
        ax.plot(x, variant.metric or 0.0, "o", ms=8, mec=colour, mfc="none" if hollow else colour, mew=1.8, zorder=3)
    _label_points(figure, points, line)
    simulated = " A hollow ring is a simulated accuracy, not the engine's own." if any_simulated(shown) else ""
    alt = "; ".join(f"{v.name} {metric_text(metric, v.metric)} at {_p50_text(v)}" for v in shown)
    title = f"{metric_title(metric)} against latency"
    better = "Up" if metric.higher_is_better else "Down"
    caption = f"{better} and to the left is better.{simulated}"
    return Picture("accuracy", title, caption, alt, svg_from_figure(figure, "accuracy"))


def any_simulated(variants: Sequence[VariantRecord]) -> bool:
    """Whether one of them has a simulated accuracy."""
    return any(variant.is_simulated() for variant in variants)


def _bound_line(record: Record, metric: MetricInfo, axes: Sequence[Axes]) -> list[Artist]:
    """The worst metric that the recommendation accepts, FP32's less the allowed drop: lines and their label."""
    judged = next((v for v in record.variants if v.metric is not None and v.metric_drop is not None), None)
    if judged is None or judged.metric is None or judged.metric_drop is None:
        return []
    sign = 1 if metric.higher_is_better else -1
    bound = judged.metric + sign * (judged.metric_drop - record.recommendation.max_metric_drop)
    drawn: list[Artist] = [ax.axhline(bound, color=QUIET, lw=1, ls=(0, (4, 3)), zorder=1) for ax in axes]
    text = f"bound: {drop_text(metric, record.recommendation.max_metric_drop)} from FP32"
    label = axes[0].annotate(
        text,
        (1, bound),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        color=QUIET,
        size=FONT_SIZE,
    )
    return [*drawn, label]


def _latency(timed: Sequence[VariantRecord], latencies: Mapping[str, Floats]) -> Picture:
    """One row per variant: the distribution of all its queries, with p50 and p99 marked."""
    figure = empty_figure(44 + 50 * len(timed))
    ax = figure.subplots()
    ends = [float(np.percentile(latencies[v.name], TAIL_PERCENT)) for v in timed]
    starts = [float(latencies[v.name].min()) for v in timed]
    p99s = [v.latency_ms.p99 for v in timed if v.latency_ms is not None]
    latency_axis(ax, [*starts, *ends, *p99s], "latency of one query, ms")
    low, high = min(starts), max(*ends, *p99s)
    edges = np.geomspace(low, high, 121) if ax.get_xscale() == "log" else np.linspace(low, high, 121)
    for row, variant in enumerate(timed):
        assert variant.latency_ms is not None  # of timed
        colour, base = colour_of(variant.precision), -float(row)
        counts, _ = np.histogram(latencies[variant.name], edges)
        height = base + 0.44 * np.sqrt(counts / counts.max())
        ax.stairs(height, edges, baseline=base, fill=True, color=colour, alpha=0.35, lw=0)
        ax.hlines(base, low, high, color=LINE, lw=0.8)
        ax.vlines(variant.latency_ms.p50, base, base + 0.44, color=colour, lw=2)
        ax.vlines(variant.latency_ms.p99, base, base + 0.22, color=colour, lw=1.5)
        text = f"p50 {three_digits(variant.latency_ms.p50)} · p99 {three_digits(variant.latency_ms.p99)} ms"
        row_text(ax, base + 0.66, variant.name, text)
    ax.set_ylim(-len(timed) + 0.8, 1.0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    alt = "; ".join(f"{v.name} p50 {ms_text(_p50_ms(v))}" for v in timed)
    batch = timed[0].by_batch[0].batch_size
    caption = (
        f"Every recorded query at batch {batch}, up to percentile {TAIL_PERCENT:g}; height is the square root of the "
        "count, so that the tail can be seen. Tall mark: p50, short mark: p99."
    )
    return Picture("latency", "Latency distributions", caption, alt, svg_from_figure(figure, "latency"))


def _sizes(variants: Sequence[VariantRecord]) -> Picture:
    """One bar per variant."""
    figure = empty_figure(20 + 34 * len(variants))
    ax = figure.subplots()
    for row, variant in enumerate(variants):
        ax.barh(-row, variant.size_bytes, height=0.28, color=colour_of(variant.precision))
        row_text(ax, -row + 0.36, variant.name, _size_text(variant, variants))
    _bare_rows(ax, len(variants), max(variant.size_bytes for variant in variants))
    alt = "; ".join(f"{variant.name} {_size_text(variant, variants)}" for variant in variants)
    caption = "Size of the file that is deployed, and its ratio to FP32's on the same backend."
    return Picture("sizes", "Engine size", caption, alt, svg_from_figure(figure, "sizes"))


def _size_text(variant: VariantRecord, variants: Sequence[VariantRecord]) -> str:
    """The size, and for a reduced precision its ratio to FP32's on its backend, if there is one."""
    ratio = size_ratio(variant, variants)
    return size_text(variant.size_bytes) + ("" if ratio is None else f" · {times_text(ratio)}")


def _sqnr(tensors: Sequence[TensorQuality]) -> Picture:
    """The worst quantized tensors first, equal ones once; a tensor without noise or without signal has no bar."""
    distinct = {(t.sqnr_db, t.min, t.max, t.amax, t.clipped_share): t for t in reversed(tensors) if t.quantized}
    rated = sorted((t.sqnr_db, t.name) for t in distinct.values() if t.sqnr_db is not None)
    worst = rated[:MAX_TENSORS]
    figure = empty_figure(20 + 34 * max(1, len(worst)))
    ax = figure.subplots()
    for row, (sqnr_db, name) in enumerate(worst):
        ax.barh(-row, max(sqnr_db, 0.0), height=0.28, color=ACCENT)
        row_text(ax, -row + 0.36, shortened(name), f"{sqnr_db:.1f} dB")
    _bare_rows(ax, max(1, len(worst)), max([sqnr_db for sqnr_db, _ in rated], default=1.0))
    alt = "; ".join(f"{name} {sqnr_db:.1f} dB" for sqnr_db, name in worst)
    count = (
        f"The {len(worst)} worst of {len(rated)} quantized tensors"
        if len(worst) < len(rated)
        else f"All {len(rated)} quantized tensors"
    )
    count += " (of tensors with the same values, one)" if len(distinct) < sum(t.quantized for t in tensors) else ""
    caption = f"{count}, worst first: signal to quantization noise ratio on the calibration data; 6 dB are one bit."
    return Picture("sqnr", "INT8 quantization error per tensor", caption, alt, svg_from_figure(figure, "sqnr"))


def _p50_ms(variant: VariantRecord) -> float:
    assert variant.latency_ms is not None  # callers ask for timed variants only
    return variant.latency_ms.p50


def _p50_text(variant: VariantRecord) -> str:
    return "no latency" if variant.latency_ms is None else ms_text(variant.latency_ms.p50)


def _bare_rows(ax: Axes, count: int, largest: float) -> None:
    """Rows whose numbers stand beside them need no axis."""
    ax.set_xlim(0, largest)
    ax.set_ylim(-count + 0.6, 0.7)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[["left", "bottom"]].set_visible(False)


def _label_points(
    figure: Figure, points: Sequence[tuple[Axes, float, VariantRecord]], others: Sequence[Artist]
) -> None:
    """Write each variant's name in its colour at the first place beside its point where it hides nothing.

    Places inside the point's own axes come first.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # Fixes the layout, so that places are known.
    spots = [ax.transData.transform((x, variant.metric or 0.0)) for ax, x, variant in points]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in spots]
    taken += [other.get_window_extent().padded(1.0) for other in others]
    places = [(dx, sign * dy, side) for dy in (0, 13, 26, 39) for sign in (1, -1) for dx, side in _SIDES[dy == 0 :]]
    for ax, x, variant in points:
        name = f"{variant.name} (sim.)" if variant.is_simulated() else variant.name
        text = ax.annotate(name, (x, variant.metric or 0.0), xytext=(0, 0), textcoords="offset points", va="center")
        text.set(size=FONT_SIZE, color=colour_of(variant.precision), in_layout=False)
        for frame, (dx, dy, side) in itertools.product((ax.bbox.padded(4), figure.bbox), places):
            text.set(position=(dx, dy), ha=side)
            box = text.get_window_extent()
            inside = frame.containsx(box.x0) and frame.containsx(box.x1) and frame.containsy(box.y1)
            if inside and frame.containsy(box.y0) and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())
