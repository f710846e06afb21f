"""The morning report: who must act comes first, every file tells the same, and an odd name breaks none of them."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.json_record import record_from_json
from pipeline.nightly.history import rows_of, with_night
from pipeline.nightly.junit import junit_from_night
from pipeline.nightly.page import html_from_night
from pipeline.nightly.record import RECORD, SCHEMA_VERSION, LineRecord, NightRecord
from pipeline.nightly.report import write_report
from pipeline.nightly.summary import headline, markdown_from_night, to_act_on
from pipeline.nightly.trend import picture, trends
from tests.pipeline.nightly.made_night import BROKEN, FAILED, LEFT_OUT, MADE, OPEN, SERVED, made_night

NIGHT = made_night(MADE, SERVED, FAILED, BROKEN, OPEN, LEFT_OUT)


class Checker(HTMLParser):
    """Every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_headline_counts_what_was_asked_for() -> None:
    assert headline(NIGHT) == "Night 14: 5 lines, 3 made, 1 unchanged; 3 to look at"
    assert headline(made_night(SERVED)) == "Night 14: 1 line, 0 made, 1 unchanged; all good"


def test_whose_turn_it_is_is_told_the_most_urgent_first() -> None:
    assert [(words, [line.model for line in lines]) for words, lines in to_act_on(NIGHT)] == [
        ("the plan or its data is wrong", ["new|one"]), ("must not ship", ["yolo"]), ("not decided", ["noisy"]),
    ]  # fmt: skip
    crashed = replace(BROKEN, status=-9)
    assert to_act_on(made_night(crashed)) == [("it ended otherwise", [crashed])]


def test_markdown_takes_any_name() -> None:
    text = markdown_from_night(NIGHT)
    assert "- new\\|one.x86: plan.toml: \\[quantise\\] unknown" in text
    assert "| resnet.orin | tensorrt 10.3.0 -\\> 10.7.0 | int8@tensorrt may ship |" in text
    assert "other" not in text


def test_junit_has_a_suite_for_each_device_and_skips_nothing() -> None:
    root = ET.fromstring(junit_from_night(NIGHT))
    assert (root.get("tests"), root.get("failures"), root.get("errors"), root.get("skipped")) == ("5", "1", "2", "0")
    suites = {suite.get("name"): [case.get("name") for case in suite] for suite in root}
    assert suites == {"orin": ["resnet", "mobilenet", "yolo", "noisy"], "x86": ["new|one"]}
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert [cases[name][0].tag for name in ("resnet", "yolo", "noisy", "new|one")] == [
        "system-out", "failure", "error", "error",
    ]  # fmt: skip
    assert (cases["mobilenet"].findtext("system-out"), cases["mobilenet"].get("time")) == ("served", "0.000")


def test_history_has_a_row_for_what_was_made_and_a_night_that_goes_on_replaces_its_own() -> None:
    first = with_night("", made_night(replace(MADE, night=13), night=13))
    text = with_night(with_night(first, NIGHT), NIGHT)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["night"], row["model"]) for row in rows] == [
        ("13", "resnet"), ("14", "resnet"), ("14", "yolo"), ("14", "noisy"),
    ]  # fmt: skip
    assert (rows[1]["p50_ms"], rows[1]["size_bytes"], rows[1]["metric"]) == ("1.25", "3145728", "0.75")
    assert rows_of(text + "14,cut off") == rows


def many_nights() -> str:
    text = ""
    for night in range(1, 15):
        version = {"tensorrt": "10.3.0" if night < 9 else "10.7.0", "driver": "5"}
        engine = replace(MADE.candidate, p50_ms=1.0 + 0.01 * night) if MADE.candidate else None
        text = with_night(text, made_night(replace(MADE, night=night, versions=version, candidate=engine), night=night))
    return text


def test_a_trend_marks_the_night_in_which_a_version_changed() -> None:
    (quantities,) = trends(rows_of(many_nights())).values()
    points = quantities["p50_ms"]
    assert [point.night for point in points if point.change] == [9]
    assert points[8].change == "tensorrt 10.3.0 -> 10.7.0"
    svg = picture(points, 'a "quoted" & name')
    root = ET.fromstring(svg)
    assert root.get("aria-label") == 'a "quoted" & name: 1.01 in night 1, 1.14 in night 14'
    assert len(root.findall("line")) == 1
    assert picture([replace(points[0], value=0.0), replace(points[1], value=0.0)], "flat")


def test_the_page_tells_all_of_it_and_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    page = html_from_night(NIGHT, many_nights(), tmp_path)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert re.search("To act on.*new\\|one.*yolo.*noisy.*Made, and in order.*By device.*Trend", page, re.DOTALL)
    assert "p50_ms of &lt;b&gt; is 1.2 x baseline" in page
    assert "tensorrt 10.3.0 -&gt; 10.7.0" in page
    assert "other" not in re.findall("<tbody>.*?</tbody>", page, re.DOTALL)[0]
    quiet = html_from_night(made_night(SERVED), "", tmp_path)
    assert "To act on" not in quiet
    assert "Trend" not in quiet


def test_the_files_are_written_and_read_back(tmp_path: Path) -> None:
    write_report(NIGHT, tmp_path / "nightly", html=False)
    names = {path.name for path in (tmp_path / "nightly").iterdir()}
    assert names == {"history.csv", "nightly.xml", "nightly.md", "nightly.json"}
    read = record_from_json(tmp_path / "nightly" / RECORD, NightRecord, SCHEMA_VERSION, "")
    assert read == NIGHT
    assert isinstance(read.lines[0], LineRecord)
