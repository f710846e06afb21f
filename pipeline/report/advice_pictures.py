"""The pictures of an advice for report.html: accuracy against latency and against size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from pipeline.page.numbers import MIB, metric_text, metric_title, three_digits
from pipeline.page.svg import QUIET, STYLE, Picture, colour_of, empty_figure, latency_axis, svg_from_figure
from pipeline.record import MetricInfo, Record, VariantRecord

LABEL_WIDTH, LABEL_HEIGHT = 18.0, 12.0
"""Points of the picture that a number takes."""
Cost: TypeAlias = Callable[[VariantRecord], float | None]
FrontierPoint: TypeAlias = tuple[int, VariantRecord, float, float]
"""Number in the picture, variant, cost and metric."""


def advice_pictures(record: Record) -> list[Picture]:
    """Metric against p50, and against the size of the file; none without a metric or an advice."""
    from matplotlib import rc_context

    if record.advice is None or record.metric is None:
        return []
    costs: list[tuple[str, str, Cost]] = [
        ("latency", "p50 latency, ms", lambda v: None if v.latency_ms is None else v.latency_ms.p50),
        ("size", "size, MiB", lambda v: v.size_bytes / MIB),
    ]
    with rc_context(STYLE):
        drawn = [_frontier(record, record.metric, *cost) for cost in costs]
    return [picture for picture in drawn if picture is not None]


def unsurpassed(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """The places of the points (cost, metric) for which no other is as cheap and as good, and better in one; by cost.

    The Pareto front; of equal points the first.
    """
    sign = -1 if higher_is_better else 1
    order = sorted(range(len(points)), key=lambda place: (points[place][0], sign * points[place][1]))
    front: list[int] = []
    for place in order:
        if not front or sign * points[place][1] < sign * points[front[-1]][1]:
            front.append(place)
    return front


def near(places: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Points that lie so near each other that they need one label, by their indices, in order.

    Args:
        places: of each point, in points of the picture.
    """
    groups: list[list[int]] = []
    for index, (x, y) in enumerate(places):
        for group in groups:
            if any(abs(x - places[i][0]) < LABEL_WIDTH and abs(y - places[i][1]) < LABEL_HEIGHT for i in group):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _frontier(record: Record, metric: MetricInfo, key: str, label: str, cost: Cost) -> Picture | None:
    numbered = [(number, variant, cost(variant)) for number, variant in enumerate(record.variants, start=1)]
    points: list[FrontierPoint] = [
        (number, variant, x, variant.metric) for number, variant, x in numbered if x and variant.metric is not None
    ]
    if len(points) < 2:
        return None
    figure = empty_figure(260)
    ax = figure.subplots()
    latency_axis(ax, [x for _, _, x, _ in points], label)
    ax.margins(x=0.12, y=0.15)
    ax.yaxis.set_major_formatter(lambda value, _: metric_text(metric, value))
    ax.set_ylabel(metric_title(metric))
    front = [
        points[place]
        for place in unsurpassed([(x, y) for *_, x, y in points], higher_is_better=metric.higher_is_better)
    ]
    ax.plot([x for *_, x, _ in front], [y for *_, y in front], color=QUIET, lw=1, ls=(0, (4, 3)), zorder=1)
    for _, variant, x, y in points:
        colour = colour_of(variant.precision)
        filled = "none" if variant.is_simulated() else colour
        ax.plot(x, y, "o", ms=6, mec=colour, mfc=filled, mew=1.5, zorder=3)
    figure.draw_without_rendering()  # Fixes the layout, so that places are known.
    places = [tuple(ax.transData.transform((x, y))) for *_, x, y in points]
    for group in near(places):
        label = ", ".join(str(points[place][0]) for place in group)
        highest = max(group, key=lambda place: places[place][1])
        ax.annotate(label, points[highest][2:], xytext=(4, 4), textcoords="offset points", color=QUIET)
    names = "; ".join(f"{number} {variant.name}" for number, variant, *_ in points)
    alt = "; ".join(f"{variant.name} {metric_text(metric, y)} at {three_digits(x)}" for _, variant, x, y in points)
    caption = f"The dashed line joins what no other variant surpasses in both. {names}."
    title = f"{metric_title(metric)} against {key}"
    return Picture(f"advice-{key}", title, caption, alt, svg_from_figure(figure, f"advice-{key}"))
