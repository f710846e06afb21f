"""gate.html: one self-contained page from the record of a gate, its pictures and ``gate.html.j2``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.gate.checks import number_beside
from pipeline.gate.pictures import LatencySamples, budget_picture, latency_pictures
from pipeline.gate.record import Estimate, GateRecord, LatencyMeasurement
from pipeline.gate.steadiness import MachineState
from pipeline.gate.summary import budget_of, headline, numbers_of, reasons
from pipeline.latency.benchmark import queries_from_npz
from pipeline.page import numbers
from pipeline.page.template import check_drawable, machine_rows, style, template_named

MOST_SENSORS = 2
"""So many temperatures are drawn: the hottest."""
MONITOR = "samples/monitor.npz"
BADGES = {"pass": "good", "fail": "bad", "not decided": ""}


def html_from_gate(gate: GateRecord, folder: Path) -> str:
    """The whole page.

    Args:
        gate: the gate.
        folder: where gate.json lies; the record's files are relative to it.

    Raises:
        Unavailable: jinja2 or matplotlib is not installed.
        ConfigError: a file of raw latencies is missing.
    """
    check_drawable("gate.html")
    return template_named("gate/gate.html.j2").render(
        style=style(),
        gate=gate,
        headline=headline(gate),
        reasons=reasons(gate),
        badge=BADGES[gate.outcome],
        badges=BADGES,
        rows=[(budget_of(check, gate), check, *numbers_of(check)) for check in gate.checks],
        budgets=budget_picture(gate.checks),
        comparisons=[
            (measurement, latency_pictures(_samples_of(measurement, folder))) for measurement in gate.measured
        ],
        bounds_text=_bounds_text,
        metric_title="metric" if gate.metric is None else numbers.metric_title(gate.metric),
        metric_text=lambda v: numbers.NONE if gate.metric is None else numbers.metric_text(gate.metric, v),
        machine_rows=machine_rows(gate.machine),
        condition_rows=_condition_rows(gate),
        dash=numbers.NONE,
    )


def _samples_of(measured: LatencyMeasurement, folder: Path) -> LatencySamples:
    queries = {"candidate": queries_from_npz(folder / measured.queries_file)}
    if measured.baseline_file:
        queries["baseline"] = queries_from_npz(folder / measured.baseline_file)
    return LatencySamples(measured, queries, _temperatures(folder / MONITOR, measured))


def _temperatures(file: Path, measured: LatencyMeasurement) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The hottest sensors while this was measured; none where there is no file, or none that told anything."""
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as monitor:
        times_s = (monitor["time_ms"] - measured.began_ms) / 1e3
        in_window = (times_s >= 0) & (times_s <= measured.seconds)
        readings = {
            str(name): monitor["values"][in_window, column]
            for column, (kind, name) in enumerate(zip(monitor["kinds"], monitor["names"]))
            if kind == "temperature_c"
        }
    finite = {name: values for name, values in readings.items() if np.isfinite(values).any()}
    hottest = sorted(finite, key=lambda name: -float(np.nanmax(finite[name])))[:MOST_SENSORS]
    return {name: (times_s[in_window], finite[name]) for name in hottest}


def _bounds_text(bounds: Estimate | None) -> str:
    """An estimate with its interval: ``1.120 (1.100 to 1.140)``."""
    if bounds is None:
        return numbers.NONE
    low, high = (numbers.NONE if end is None else number_beside(end, 0.0) for end in (bounds.low, bounds.high))
    return f"{number_beside(bounds.estimate, 0.0)} ({low} to {high})"


def _condition_rows(gate: GateRecord) -> list[tuple[str, str, str]]:
    """What the machine was like before and after; rows of which it tells nothing are left out."""
    before, after = (_state_rows(state) for state in (gate.conditions.before, gate.conditions.after))
    return [(name, before.get(name, ""), after.get(name, "")) for name in {**before, **after}]


def _state_rows(state: MachineState) -> dict[str, str]:
    rows = {
        "Frequency governor": state.governor,
        "Turbo": state.turbo,
        "Power mode": state.power_mode,
        "Load, 1 min": "" if state.load_1min is None else f"{state.load_1min:.2f}",
        **{f"Clock, {name}": f"{value:.0f} MHz" for name, value in state.clocks_mhz.items()},
        **{f"Temperature, {name}": f"{value:.1f} °C" for name, value in state.temperatures_c.items()},
    }
    return {name: value for name, value in rows.items() if value}
