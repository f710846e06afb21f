"""gate.html: one self-contained page from the record of a gate, its pictures and ``gate.html.j2``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.gate.checks import beside
from pipeline.gate.pictures import Traced, budget_picture, latency_pictures
from pipeline.gate.record import Estimate, Gated, LatencyMeasurement
from pipeline.gate.steadiness import Moment
from pipeline.gate.summary import budget_of, headline, numbers_of, reasons
from pipeline.latency.benchmark import queries_from_npz
from pipeline.page import numbers
from pipeline.page.template import check_drawable, machine_rows, style, template_named

MOST_SENSORS = 2
"""So many temperatures are drawn: the hottest."""
MONITOR = "samples/monitor.npz"
BADGES = {"pass": "good", "fail": "bad", "not decided": ""}


def html_from_gated(gated: Gated, folder: Path) -> str:
    """The whole page.

    Args:
        gated: the gate.
        folder: where gate.json lies; the record's files are relative to it.

    Raises:
        Unavailable: jinja2 or matplotlib is not installed.
        ConfigError: a file of raw latencies is missing.
    """
    check_drawable("gate.html")
    return template_named("gate/gate.html.j2").render(
        style=style(),
        gated=gated,
        headline=headline(gated),
        reasons=reasons(gated),
        badge=BADGES[gated.outcome],
        badges=BADGES,
        rows=[(budget_of(check, gated), check, *numbers_of(check)) for check in gated.checks],
        budgets=budget_picture(gated.checks),
        bouts=[(one, latency_pictures(_traced(one, folder))) for one in gated.measured],
        bounds_text=_bounds_text,
        metric_title="metric" if gated.metric is None else numbers.metric_title(gated.metric),
        metric_text=lambda v: numbers.NONE if gated.metric is None else numbers.metric_text(gated.metric, v),
        machine_rows=machine_rows(gated.machine),
        condition_rows=_condition_rows(gated),
        dash=numbers.NONE,
    )


def _traced(measured: LatencyMeasurement, folder: Path) -> Traced:
    queries = {"candidate": queries_from_npz(folder / measured.queries_file)}
    if measured.baseline_file:
        queries["baseline"] = queries_from_npz(folder / measured.baseline_file)
    return Traced(measured, queries, _temperatures(folder / MONITOR, measured))


def _temperatures(file: Path, measured: LatencyMeasurement) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The hottest sensors while this was measured; none where there is no file, or none that told anything."""
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as kept:
        times_s = (kept["time_ms"] - measured.began_ms) / 1e3
        within = (times_s >= 0) & (times_s <= measured.seconds)
        found = {
            str(name): kept["values"][within, column]
            for column, (kind, name) in enumerate(zip(kept["kinds"], kept["names"]))
            if kind == "temperature_c"
        }
    told = {name: values for name, values in found.items() if np.isfinite(values).any()}
    hottest = sorted(told, key=lambda name: -float(np.nanmax(told[name])))[:MOST_SENSORS]
    return {name: (times_s[within], told[name]) for name in hottest}


def _bounds_text(bounds: Estimate | None) -> str:
    """An estimate with its interval: ``1.120 (1.100 to 1.140)``."""
    if bounds is None:
        return numbers.NONE
    low, high = (numbers.NONE if end is None else beside(end, 0.0) for end in (bounds.low, bounds.high))
    return f"{beside(bounds.estimate, 0.0)} ({low} to {high})"


def _condition_rows(gated: Gated) -> list[tuple[str, str, str]]:
    """What the machine was like before and after; rows of which it tells nothing are left out."""
    before, after = (_moment_rows(moment) for moment in (gated.conditions.before, gated.conditions.after))
    return [(name, before.get(name, ""), after.get(name, "")) for name in {**before, **after}]


def _moment_rows(moment: Moment) -> dict[str, str]:
    rows = {
        "Frequency governor": moment.governor,
        "Turbo": moment.turbo,
        "Power mode": moment.power_mode,
        "Load, 1 min": "" if moment.load_1min is None else f"{moment.load_1min:.2f}",
        **{f"Clock, {name}": f"{value:.0f} MHz" for name, value in moment.clocks_mhz.items()},
        **{f"Temperature, {name}": f"{value:.1f} °C" for name, value in moment.temperatures_c.items()},
    }
    return {name: value for name, value in rows.items() if value}
