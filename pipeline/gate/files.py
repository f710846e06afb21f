"""The files of a gate: gate.json, gate.xml (JUnit), gate.md, gate.html and the raw latencies."""

from __future__ import annotations

from pathlib import Path

from pipeline.gate.junit import junit_from_gate
from pipeline.gate.record import GateRecord
from pipeline.gate.summary import summary_from_gate
from pipeline.json_record import write_json
from pipeline.page.template import check_drawable

OWN_FILES = ("gate.json", "gate.xml", "gate.md", "gate.html", "samples")
"""All that a gate's folder may hold."""


def check_html(html: bool) -> None:
    """Raise Unavailable if a page is requested that cannot be drawn here, before an hour of work."""
    if html:
        check_drawable("gate.html (or write html = false)")


def write_gate(gate: GateRecord, folder: Path, *, html: bool) -> None:
    """Write all of them; the raw latencies are there already.

    Raises:
        Unavailable: ``html`` is requested and jinja2 or matplotlib is not installed.
    """
    write_json(gate, folder / "gate.json")
    (folder / "gate.xml").write_text(junit_from_gate(gate), encoding="utf-8")
    (folder / "gate.md").write_text(summary_from_gate(gate), encoding="utf-8")
    if html:
        from pipeline.gate.page import html_from_gate

        (folder / "gate.html").write_text(html_from_gate(gate, folder), encoding="utf-8")
