"""gate.xml: what a CI server is told, read back with an XML parser."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

from pipeline.gate.junit import junit_from_gate
from tests.pipeline.gate.made_gate import FAILED, OPEN, PASSED, made_gate


def test_one_case_per_budget_with_its_numbers() -> None:
    root = ET.fromstring(junit_from_gate(made_gate(PASSED, FAILED, OPEN)))
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "1")
    passed, failed, undecided = root.findall("testsuite/testcase")
    assert (passed.get("name"), passed.get("classname")) == (PASSED.budget, "gate.int8@onnxruntime")
    assert [child.tag for child in passed] == ["system-out"]
    assert passed.findtext("system-out") == PASSED.sentence
    (failure,) = failed
    assert (failure.tag, failure.get("message"), failure.text) == ("failure", FAILED.sentence, FAILED.sentence)
    (error,) = undecided
    assert (error.tag, error.get("type")) == ("error", "not decided")
    assert error.get("message") == f"{OPEN.sentence}; {OPEN.advice}"


def test_nothing_is_skipped_since_that_shows_as_no_failure() -> None:
    text = junit_from_gate(made_gate(OPEN))
    assert "<skipped" not in text
    assert 'skipped="0"' in text


def test_the_suite_says_what_was_gated_where() -> None:
    root = ET.fromstring(junit_from_gate(made_gate(PASSED)))
    said = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert said["engine int8@onnxruntime"] == "ab" * 32
    assert said["baseline"] == "last-good"
    assert said["outcome"] == "pass"
    assert said["machine"] == "Example CPU 4000, 2 cores, 16 GiB, Linux x86_64"


def test_what_xml_cannot_hold_is_replaced() -> None:
    odd = replace(FAILED, budget="p50_ms of a\x00<b>&\ud800 <= 3", sentence="bell \x07 and ]]> and \U0001f600")
    (case,) = ET.fromstring(junit_from_gate(made_gate(odd))).iter("testcase")
    assert case.get("name") == "p50_ms of a\ufffd<b>&\ufffd <= 3"
    assert case[0].text == "bell \ufffd and ]]> and \U0001f600"
