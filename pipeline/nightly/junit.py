"""A night as JUnit XML: a suite for each device, a case for each model. What is not decided is an error, no skip.

See ``pipeline.gate.junit`` for why, and for how viewers read it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from pipeline.errors import EXIT_STATUS, CheckFailed
from pipeline.gate.junit import xml_text
from pipeline.nightly.record import LineRecord, NightRecord

FAILED = EXIT_STATUS[CheckFailed]


def junit_from_night(night: NightRecord) -> str:
    """The text of nightly.xml."""
    lines = [line for line in night.lines if line.state != "left out"]
    root = ET.Element("testsuites", {"name": "trtforge nightly", **_counts(lines)})
    for device in dict.fromkeys(line.device for line in lines):
        cases = [line for line in lines if line.device == device]
        suite = ET.SubElement(root, "testsuite", {"name": device, "timestamp": night.began, **_counts(cases)})
        for line in cases:
            _add_case(suite, line)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _counts(lines: list[LineRecord]) -> dict[str, str]:
    return {
        "tests": str(len(lines)),
        "failures": str(sum(line.status == FAILED for line in lines)),
        "errors": str(sum(line.status not in (0, FAILED) for line in lines)),
        "skipped": "0",
        "time": f"{sum(_seconds(line) for line in lines):.3f}",
    }


def _add_case(suite: ET.Element, line: LineRecord) -> None:
    named = {"classname": f"nightly.{line.device}", "name": line.model, "time": f"{_seconds(line):.3f}"}
    case = ET.SubElement(suite, "testcase", named)
    message = xml_text(line.sentence)
    text = xml_text("\n".join([line.sentence, *line.why, line.command]))
    if line.status == 0:
        ET.SubElement(case, "system-out").text = "served" if line.state == "served" else text
        return
    kind = "failure" if line.status == FAILED else "error"
    element = ET.SubElement(case, kind, {"type": f"exit status {line.status}", "message": message})
    element.text = text


def _seconds(line: LineRecord) -> float:
    return 0.0 if line.state == "served" else line.seconds
