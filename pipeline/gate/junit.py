"""A gate as JUnit XML, as GitLab, GitHub's actions and Jenkins read it: one test case per budget.

A budget that is broken is a ``failure``, one that is not decided an ``error``. It is not ``skipped``: GitLab counts a
skipped case as no failure, Jenkins leaves a build with skipped cases stable, and a gate that could not decide is no
pass. Names are unique within a file, since GitLab ignores all but the first of a name. The numbers stand in
``message`` and again in the text, since some viewers show the one and some the other.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from pipeline.gate.record import Check, Gated

ELEMENTS = {"fail": "failure", "not decided": "error"}
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
"""Characters that XML 1.0 cannot hold."""


def junit_from_gated(gated: Gated) -> str:
    """The text of gate.xml."""
    counts = {
        "tests": str(len(gated.checks)),
        "failures": str(sum(check.outcome == "fail" for check in gated.checks)),
        "errors": str(sum(check.outcome == "not decided" for check in gated.checks)),
        "time": f"{gated.seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "trtforge gate", **counts})
    named = {"name": _text(f"gate {gated.candidate}"), "skipped": "0", "timestamp": gated.created}
    suite = ET.SubElement(root, "testsuite", {**named, **counts})
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(gated):
        ET.SubElement(properties, "property", {"name": name, "value": _text(value)})
    for check in gated.checks:
        _add_case(suite, check)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _properties(gated: Gated) -> list[tuple[str, str]]:
    found = [(f"engine {engine.name}", engine.digest) for engine in gated.engines]
    found += [("baseline", gated.baseline)] if gated.baseline else []
    return [*found, ("outcome", gated.outcome), ("machine", gated.machine.describe())]


def _add_case(suite: ET.Element, check: Check) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": _text(f"gate.{check.variant}"), "name": _text(check.budget)})
    said = _text(check.sentence + (f"; {check.advice}" if check.advice else ""))
    if check.outcome == "pass":
        ET.SubElement(case, "system-out").text = said
        return
    element = ET.SubElement(case, ELEMENTS[check.outcome], {"type": check.outcome, "message": said})
    element.text = said


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
