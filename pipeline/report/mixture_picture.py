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
    timed = [(point.num_in_float, point.cpu_ms) for point in mixture.points if point.cpu_ms is not None]
    ax, *beside = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
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
    beside_it = ""
    for times in beside:
        times.plot(*zip(*timed), color=ACCENT, marker="o", ls="", ms=5, label="mixed")
        if mixture.fp32_ms is not None:
            times.axhline(mixture.fp32_ms, color=QUIET, lw=1, label="FP32")
        times.axvline(len(mixture.in_float), color=QUIET, lw=1, ls=(0, (4, 3)), zorder=1)
        times.set_ylim(bottom=0)
        times.set_xlabel("nodes in float")
        times.set_ylabel("CPU time of a sample, ms")
        times.legend(frameon=False)
        alt += "; " + "; ".join(f"{number} in float: {ms:.4g} ms" for number, ms in timed)
        beside_it = " Beside it the CPU time of one sample in ONNX Runtime, on one thread, all in turns."
    key = "mixture-" + name.replace("+", "-").replace("@", "-")
    caption = (
        f"{len(mixture.in_float)} of the nodes that INT8's noise comes from stay in float for {mixture.bound} "
        f"(vertical line); each point is a set that was judged as a whole, on calibration samples.{beside_it}"
    )
    return Picture(key, f"Mixed precision: {name}", caption, alt, svg_from_figure(figure, key))
