"""The files of the morning report: nightly.json, nightly.xml (JUnit), nightly.md, history.csv and index.html."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.json_record import json_from_record
from pipeline.nightly.fleet import FleetFile
from pipeline.nightly.history import FILE as HISTORY
from pipeline.nightly.history import with_night
from pipeline.nightly.junit import junit_from_night
from pipeline.nightly.line import LINES
from pipeline.nightly.record import RECORD, NightRecord
from pipeline.nightly.summary import markdown_from_night
from pipeline.page.template import check_drawable
from pipeline.page.whole_text import put_text

JUNIT, SUMMARY, PAGE = "nightly.xml", "nightly.md", "index.html"
OWN = {RECORD, JUNIT, SUMMARY, PAGE, HISTORY, LINES}
"""All that the folder of a report may hold."""
WORK = tuple(f".{name}." for name in sorted(OWN))
"""How what a process that was killed left there begins; the next one removes it."""


def check_report(fleet_file: FleetFile) -> None:
    """Refuse a report that could not be written, before an hour of work.

    Raises:
        ConfigError: its folder is a file, or holds something else than a nightly report.
        Unavailable: the page cannot be drawn here.
    """
    folder = fleet_file.report_folder
    if fleet_file.nightly.html:
        check_drawable(f"{PAGE} (or write html = false into [nightly])")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name another folder in [nightly] report")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if foreign := sorted(name for name in names - OWN if not name.startswith(WORK)):
        raise ConfigError(
            f"{folder / foreign[0]}: is no part of a nightly report; name a folder of its own in [nightly] report"
        )


def write_report(night: NightRecord, folder: Path, *, html: bool) -> None:
    """Write all of them, each whole or not at all; nightly.json last, which says that the night is over.

    Raises:
        Unavailable: ``html`` is requested and jinja2 or matplotlib is not installed; or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    history = folder / HISTORY
    rows = with_night(history.read_text(encoding="utf-8") if history.is_file() else "", night)
    texts = {HISTORY: rows, JUNIT: junit_from_night(night), SUMMARY: markdown_from_night(night)}
    if html:
        from pipeline.nightly.page import html_from_night

        texts[PAGE] = html_from_night(night, rows, folder)
    for name, text in {**texts, RECORD: json_from_record(night)}.items():
        put_text(text, folder / name)
