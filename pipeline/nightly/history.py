"""history.csv: a row for each engine that a night measured; spreadsheets and change-point detectors read it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.nightly.record import LineRecord, NightRecord

FILE = "history.csv"
COLUMNS = (
    "time", "night", "model", "device", "engine", "p50_ms", "size_bytes", "metric", "outcome", "digest", "versions",
    "why",
)  # fmt: skip


def with_night(text: str, night: NightRecord) -> str:
    """The text of history.csv, with the rows of a night after it; rows that the same night has already are replaced."""
    rows = [row for row in rows_of(text) if row["night"] != str(night.night)]
    rows += [_row(line, night) for line in night.lines if line.state == "made" and line.night == night.night]
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of history.csv; those that are not whole are left out."""
    return [row for row in csv.DictReader(io.StringIO(text)) if None not in row and None not in row.values()]


def rows_in(folder: Path) -> Iterator[Mapping[str, str]]:
    """The rows in a report's folder."""
    file = folder / FILE
    yield from rows_of(file.read_text(encoding="utf-8") if file.is_file() else "")


def _row(line: LineRecord, night: NightRecord) -> dict[str, str]:
    engine = line.candidate
    return {
        "time": line.began,
        "night": str(night.night),
        "model": line.model,
        "device": line.device,
        "engine": "" if engine is None else engine.engine,
        "p50_ms": "" if engine is None or engine.p50_ms is None else f"{engine.p50_ms:.6g}",
        "size_bytes": "" if engine is None else str(engine.size_bytes),
        "metric": "" if engine is None or engine.metric is None else f"{engine.metric:.6g}",
        "outcome": line.outcome or "done",
        "digest": "" if engine is None else engine.digest,
        "versions": " ".join(f"{name}={version}" for name, version in line.versions.items()),
        "why": "; ".join(line.why),
    }
