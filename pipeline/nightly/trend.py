"""What history.csv tells of a line: how latency, size and metric went, and the nights in which something changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

QUANTITIES = {"p50_ms": "p50, ms", "size_bytes": "size, bytes", "metric": "metric"}
"""Column of history.csv -> what it is called."""
WIDTH, HEIGHT, PAD = 120, 28, 3
LEAST_SPAN = 0.1
"""The height of a picture stands for this part of the largest value at least, so that noise does not look like more."""
MOST_NIGHTS = 90


@dataclass(frozen=True)
class TrendPoint:
    """One quantity in one night."""

    night: int
    value: float
    change: str
    """What had changed since the night before; empty where nothing that explains a step had."""


def trends(rows: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], dict[str, list[TrendPoint]]]:
    """Model and device -> quantity -> its values, the oldest first."""
    lines: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        lines.setdefault((row["model"], row["device"]), []).append(row)
    return {
        line: {
            quantity: _points(line_rows[-MOST_NIGHTS:], quantity)
            for quantity in QUANTITIES
            if sum(bool(row[quantity]) for row in line_rows) > 1
        }
        for line, line_rows in lines.items()
    }


def _points(rows: Sequence[Mapping[str, str]], quantity: str) -> list[TrendPoint]:
    points: list[TrendPoint] = []
    before: Mapping[str, str] | None = None
    for row in rows:
        if row[quantity]:
            change = "" if before is None else _change(before, row)
            points.append(TrendPoint(int(row["night"]), float(row[quantity]), change))
            before = row
    return points


def _change(before: Mapping[str, str], row: Mapping[str, str]) -> str:
    """Other versions, else what the line was made for."""
    old, new = (dict(part.partition("=")[::2] for part in each["versions"].split()) for each in (before, row))
    versions = [f"{name} {old.get(name, 'none')} -> {new[name]}" for name in new if old.get(name) != new[name]]
    return "; ".join(versions) or (row["why"] if row["digest"] != before["digest"] else "")


def picture(points: Sequence[TrendPoint], title: str) -> str:
    """An SVG of the values over the nights, with a mark at each change; its words are its label."""
    low, high = min(p.value for p in points), max(p.value for p in points)
    span = max(high - low, LEAST_SPAN * abs(high)) or 1.0
    bottom = (low + high - span) / 2
    first, last = points[0].night, points[-1].night

    def x(night: int) -> float:
        return PAD + (WIDTH - 2 * PAD) * (night - first) / max(last - first, 1)

    def y(value: float) -> float:
        return HEIGHT - PAD - (HEIGHT - 2 * PAD) * (value - bottom) / span

    marks = "".join(
        f'<line class="mark" x1="{x(p.night):.1f}" x2="{x(p.night):.1f}" y1="0" y2="{HEIGHT}">'
        f"<title>{_escaped(f'night {p.night}: {p.change}')}</title></line>"
        for p in points
        if p.change
    )
    way = " ".join(f"{x(p.night):.1f},{y(p.value):.1f}" for p in points)
    words = f"{title}: {points[0].value:.4g} in night {first}, {points[-1].value:.4g} in night {last}"
    return (
        f'<svg class="trend" role="img" aria-label={quoteattr(words)} viewBox="0 0 {WIDTH} {HEIGHT}">{marks}'
        f'<polyline points="{way}"/><circle cx="{x(last):.1f}" cy="{y(points[-1].value):.1f}" r="2.5"/></svg>'
    )


def _escaped(text: str) -> str:
    return quoteattr(text)[1:-1]
