"""index.html: the morning report as one self-contained page, from the night's record and history.csv."""

from __future__ import annotations

from pathlib import Path

from pipeline.nightly.history import rows_of
from pipeline.nightly.record import LineRecord, NightRecord
from pipeline.nightly.summary import by_device, changed, figures_text, headline, to_act_on
from pipeline.nightly.trend import QUANTITIES, TrendPoint, picture, trends
from pipeline.page import numbers
from pipeline.page.template import check_drawable, machine_rows, style, template_named


def html_from_night(night: NightRecord, history: str, folder: Path) -> str:
    """The whole page.

    Args:
        night: the night.
        history: the text of history.csv, with this night.
        folder: where the report lies; links are relative to it.

    Raises:
        Unavailable: jinja2 or matplotlib is not installed.
    """
    check_drawable("index.html")
    return template_named("nightly/nightly.html.j2").render(
        style=style(),
        night=night,
        headline=headline(night),
        to_act_on=to_act_on(night),
        changed=changed(night),
        devices=by_device(night),
        figures_text=figures_text,
        trend_rows=_trend_rows(night, history),
        quantities=QUANTITIES,
        gate_page=lambda line: _gate_page(line, folder),
        machine_rows=machine_rows(night.machine),
        dash=numbers.NONE,
    )


def _trend_rows(night: NightRecord, history: str) -> list[tuple[LineRecord, list[tuple[str, str]]]]:
    """Of each line that has a trend: the picture of each quantity, and its last value."""
    known = trends(rows_of(history))
    rows = []
    for line in night.lines:
        quantities = known.get((line.model, line.device), {})
        if any(quantities.values()):
            rows.append((line, [_cell(line, quantities.get(name, []), name) for name in QUANTITIES]))
    return rows


def _cell(line: LineRecord, points: list[TrendPoint], name: str) -> tuple[str, str]:
    if not points:
        return "", ""
    value = points[-1].value
    text = numbers.size_text(int(value)) if name == "size_bytes" else f"{value:.4g}"
    return picture(points, f"{line.name}, {QUANTITIES[name]}"), text


def _gate_page(line: LineRecord, folder: Path) -> str:
    """The link to the page of a line's gate; empty where it has none."""
    page = f"{line.gate}/gate.html"
    return page if line.gate and (folder / page).is_file() else ""
