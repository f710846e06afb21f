"""A gate as JUnit XML, as GitLab, GitHub's actions and Jenkins read it: one test case per budget.

A budget that is broken is a ``failure``, one that is not decided an ``error``. It is not ``skipped``: GitLab counts a
skipped case as no failure, Jenkins leaves a build with skipped cases stable, and a gate that could not decide is no
pass. Names are unique within a file, since GitLab ignores all but the first of a name. The numbers stand in
``message`` and again in the text, since some viewers show the one and some the other.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from pipeline.gate.record import Check, GateRecord

ELEMENTS = {"fail": "failure", "not decided": "error"}
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
"""Characters that XML 1.0 cannot hold."""


def junit_from_gate(gate: GateRecord) -> str:
    """The text of gate.xml."""
    counts = {
        "tests": str(len(gate.checks)),
        "failures": str(sum(check.outcome == "fail" for check in gate.checks)),
        "errors": str(sum(check.outcome == "not decided" for check in gate.checks)),
        "time": f"{gate.seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "trtforge gate", **counts})
    named = {"name": xml_text(f"gate {gate.candidate}"), "skipped": "0", "timestamp": gate.created}
    suite = ET.SubElement(root, "testsuite", {**named, **counts})
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(gate):
        ET.SubElement(properties, "property", {"name": name, "value": xml_text(value)})
    for check in gate.checks:
        _add_case(suite, check)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _properties(gate: GateRecord) -> list[tuple[str, str]]:
    properties = [(f"engine {engine.name}", engine.digest) for engine in gate.engines]
    properties += [("baseline", gate.baseline)] if gate.baseline else []
    return [*properties, ("outcome", gate.outcome), ("machine", gate.machine.describe())]


def _add_case(suite: ET.Element, check: Check) -> None:
    case = ET.SubElement(
        suite, "testcase", {"classname": xml_text(f"gate.{check.variant}"), "name": xml_text(check.budget)}
    )
    message = xml_text(check.sentence + (f"; {check.advice}" if check.advice else ""))
    if check.outcome == "pass":
        ET.SubElement(case, "system-out").text = message
        return
    element = ET.SubElement(case, ELEMENTS[check.outcome], {"type": check.outcome, "message": message})
    element.text = message


def xml_text(text: str) -> str:
    """The text without what XML cannot hold."""
    return _FORBIDDEN.sub("\ufffd", text)
