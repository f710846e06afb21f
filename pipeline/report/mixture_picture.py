"""The pictures of mixed precision for report.html: what each number of layers in float gives."""

from __future__ import annotations

from pipeline.accuracy.mixture import MixtureInfo
from pipeline.page.svg import ACCENT, QUIET, STYLE, Picture, empty_figure, svg_from_figure
from pipeline.record import Record


def mixture_pictures(record: Record) -> list[Picture]:
    """One for each variant that was to hold a bound, where more than one set of layers was judged."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return [_frontier(name, mixture) for name, mixture in record.mixtures.items() if len(mixture.points) > 1]


def _frontier(name: str, mixture: MixtureInfo) -> Picture:
    """SQNR, or where there is none the drop of the metric, by the number of nodes in float."""
    figure = empty_figure(190)
    ax = figure.subplots()
    by_sqnr = [(p.num_in_float, p.sqnr_db, p.holds) for p in mixture.points if p.sqnr_db is not None]
    by_drop = [(p.num_in_float, p.metric_drop, p.holds) for p in mixture.points if p.metric_drop is not None]
    rows, unit = (by_drop, "drop of the metric") if by_drop else (by_sqnr, "SQNR, dB")
    for holds, color, marker, label in ((True, ACCENT, "o", "holds the bound"), (False, QUIET, "x", "does not")):
        if points := [(number, value) for number, value, each in rows if each is holds]:
            ax.plot(*zip(*points), color=color, marker=marker, ls="", ms=5, label=label)
    ax.axvline(len(mixture.in_float), color=QUIET, lw=1, ls=(0, (4, 3)), zorder=1)
    ax.set_xlabel("nodes in float")
    ax.set_ylabel(unit)
    ax.legend(frameon=False)
    alt = "; ".join(f"{number} in float: {value:.4g}" for number, value, _ in rows)
    key = "mixture-" + name.replace("+", "-").replace("@", "-")
    caption = (
        f"{len(mixture.in_float)} of the nodes that INT8's noise comes from stay in float for {mixture.bound} "
        "(vertical line); each point is a set that was judged as a whole, on calibration samples."
    )
    return Picture(key, f"Mixed precision: {name}", caption, alt, svg_from_figure(figure, key))
