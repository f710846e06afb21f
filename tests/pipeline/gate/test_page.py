"""gate.html: self-contained, whole, and with pictures of what was measured."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from calibration.arrays import Floats
from pipeline.errors import ConfigError
from pipeline.gate.page import html_from_gate
from pipeline.gate.pictures import LatencySamples, budget_picture, ends_of, latency_pictures, share_of
from pipeline.gate.record import GateRecord
from pipeline.latency.benchmark import Queries
from tests.pipeline.gate.made_gate import FAILED, OPEN, PASSED, made_gate


def queries(p50_ms: float) -> Queries:
    """20 rounds of 20 queries, skewed to the right."""
    latency = p50_ms * (0.93 + 0.07 * np.random.default_rng(7).lognormal(0.0, 0.5, 400))
    return Queries(latency, np.repeat(np.arange(20), 20), np.cumsum(latency), np.full(400, np.nan))


@pytest.fixture
def gated(tmp_path: Path) -> GateRecord:
    """A made-up gate whose raw latencies and sensors lie in the test's folder."""
    found = made_gate(PASSED, FAILED, OPEN)
    (measured,) = found.measured
    queries(0.28).write(tmp_path / measured.queries_file)
    queries(0.25).write(tmp_path / measured.baseline_file)
    times_ms = np.arange(-100.0, 7000.0, 100.0)
    values = np.stack([51 + times_ms / 7000, np.full_like(times_ms, np.nan), times_ms], axis=1)
    np.savez(
        tmp_path / "samples" / "monitor.npz", time_ms=times_ms, values=values,
        kinds=np.array(["temperature_c", "temperature_c", "available_mib"]), names=np.array(["x86_pkg_temp", "b", "c"]),
    )  # fmt: skip
    return found


class Balanced(HTMLParser):
    """Fails on a tag that is closed without having been opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> str:
    """The page's text in one line; its tags must be balanced."""
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return " ".join(" ".join(parser.texts).split())


def test_the_page_is_whole_and_needs_nothing_from_outside(gated: GateRecord, tmp_path: Path) -> None:
    page = html_from_gate(gated, tmp_path)
    text = read(page)
    assert "int8@onnxruntime must not ship" in text
    for check in gated.checks:
        assert check.budget in text
    assert FAILED.sentence in text
    assert f"{OPEN.sentence}; {OPEN.advice}" in text
    assert "Baseline: last-good, set 2025-12-24" in text
    assert "1.120 (1.100 to 1.140)" in text
    assert gated.steps[0].sentence in text
    assert "data/<eval>.npz" in text
    assert "Other programs used 2.0 % of the CPU time during the measurement." in text
    assert "Frequency governor performance performance" in text
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    assert "<script" not in page
    assert len(set(re.findall(r'id="([^"]+)"', page))) == len(re.findall(r'id="([^"]+)"', page))


def test_the_same_record_gives_the_same_page(gated: GateRecord, tmp_path: Path) -> None:
    assert html_from_gate(gated, tmp_path) == html_from_gate(gated, tmp_path)


def test_every_picture_says_itself_in_words(gated: GateRecord, tmp_path: Path) -> None:
    page = html_from_gate(gated, tmp_path)
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert titles == [
        "Budgets at a glance", "Latency distributions", "Share of queries by latency", "Difference by percentile",
        "Over time",
    ]  # fmt: skip
    assert 'aria-label="Difference by percentile: p50 +12.0 %; p99 +16.0 %"' in page
    assert "x86_pkg_temp 51 to 52 °C" in page


def test_without_a_baseline_nothing_is_compared(gated: GateRecord, tmp_path: Path) -> None:
    rows = tuple(replace(row, baseline_ms=None, ratio=None) for row in gated.measured[0].percentiles)
    alone = replace(gated, baseline="", measured=(replace(gated.measured[0], baseline_file="", percentiles=rows),))
    (tmp_path / "samples" / "monitor.npz").unlink()
    text = read(html_from_gate(alone, tmp_path))
    assert "Difference by percentile" not in text
    assert "Baseline:" not in text
    assert "No temperature sensor was readable." in text


def test_a_gate_without_latencies_has_a_page_too(gated: GateRecord, tmp_path: Path) -> None:
    bare = replace(gated, measured=(), accuracy=(), steps=(), advice="", metric=None, notes=(), checks=(OPEN,))
    text = read(html_from_gate(bare, tmp_path))
    assert "Budgets at a glance" not in text
    assert OPEN.sentence in text


def test_a_missing_file_of_latencies_is_said(gated: GateRecord, tmp_path: Path) -> None:
    (tmp_path / gated.measured[0].queries_file).unlink()
    with pytest.raises(ConfigError, match="holds no raw latencies"):
        html_from_gate(gated, tmp_path)


def test_a_budgets_share_is_of_its_bound_either_way() -> None:
    assert share_of(PASSED, 6.0) == 0.5
    floor = replace(PASSED, at_most=False, bound=400.0)
    assert share_of(floor, 800.0) == 0.5, "twice what is requested: half the budget is used"
    assert share_of(floor, 0.0) is None
    assert share_of(replace(PASSED, bound=0.0), 1.0) is None
    assert share_of(OPEN, OPEN.estimate) is None
    assert budget_picture([OPEN]) is None


def test_a_budget_of_at_least_so_much_reads_as_headroom(gated: GateRecord) -> None:
    first = replace(gated.checks[0], relative=False, estimate=0.99, bound=0.9, low=0.98, high=0.995)
    picture = budget_picture(
        [replace(first, at_most=False), replace(first, at_most=False, estimate=0.81), replace(first, at_most=True)]
    )
    assert picture is not None
    assert picture.svg.count(" headroom)") == 1
    assert "(10.0% headroom)" in picture.svg
    assert "(10.0% short)" in picture.svg


def test_an_end_that_is_not_known_is_drawn_as_anywhere() -> None:
    assert ends_of(replace(PASSED, low=6.0, high=18.0)) == (0.5, 1.5)
    assert ends_of(replace(PASSED, high=None)) == (11 / 12, 2.0), "p99 of few queries has no upper bound"
    assert ends_of(replace(PASSED, low=None, high=30.0)) == (0.0, 2.0)
    floor = replace(PASSED, at_most=False, bound=400.0, estimate=800.0)
    assert ends_of(replace(floor, low=500.0, high=None)) == (0.8, 0.0)
    assert ends_of(replace(floor, low=0.0, high=1600.0)) == (2.0, 0.25)


def drawn(ours: Floats, theirs: Floats, gated: GateRecord) -> list[str]:
    sides = {
        side: Queries(
            values, np.repeat(np.arange(20), len(values) // 20), np.cumsum(values), np.full(len(values), np.nan)
        )
        for side, values in {"candidate": ours, "baseline": theirs}.items()
    }
    return [picture.svg for picture in latency_pictures(LatencySamples(gated.measured[0], sides, {}))]


def test_latencies_of_any_shape_can_be_drawn(gated: GateRecord) -> None:
    equal, far = np.full(400, 0.25), np.geomspace(0.01, 100.0, 400)
    for ours, theirs in ((equal, equal), (far, equal), (equal, far)):
        for svg in drawn(ours, theirs, gated):
            assert svg.startswith("<svg aria-hidden")
            assert "nan" not in svg
