"""The picture of how ranges settle as samples are added, for report.html."""

from __future__ import annotations

from calibration.ranges.convergence import TOLERANCE, Convergence
from pipeline.page.svg import ACCENT, QUIET, STYLE, Picture, empty_figure, svg_from_figure
from pipeline.record import Record


def convergence_pictures(record: Record) -> list[Picture]:
    """One where the record has a curve of more than its end, else none."""
    from matplotlib import rc_context

    if record.settling is None or len(record.settling.points) < 2:
        return []
    with rc_context(STYLE):
        return [_convergence(record.settling)]


def _convergence(convergence: Convergence) -> Picture:
    """Change against the last range, after 1, 2, 4, ... samples: half of the tensors, and nine of ten."""
    figure = empty_figure(190)
    ax = figure.subplots()
    points = convergence.points
    places = range(len(points))
    largest = max(point.most_change for point in points)
    for name, values, style in (
        ("nine of ten tensors", [point.most_change for point in points], "-"),
        ("half of the tensors", [point.median_change for point in points], (0, (2, 2))),
    ):
        ax.plot(places, values, color=ACCENT, ls=style, marker="o", ms=4, label=name)
    ax.axhline(TOLERANCE, color=QUIET, lw=1, ls=(0, (4, 3)), zorder=1)
    ax.set_xticks(list(places), [str(point.num_samples) for point in points])
    ax.set_ylim(0, max(1.1 * largest, 2 * TOLERANCE))
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    ax.set_xlabel("samples")
    ax.legend(frameon=False)
    alt = "; ".join(f"{point.num_samples} samples: {point.most_change:.0%}" for point in points)
    caption = (
        f"{convergence.sentence().capitalize()}. How far ranges of {len(convergence.tensors)} tensors (read by "
        f"{convergence.reading}) are from those after all samples; dashed: the bound of {TOLERANCE:.0%}."
    )
    return Picture("settling", "Convergence of the ranges", caption, alt, svg_from_figure(figure, "settling"))
