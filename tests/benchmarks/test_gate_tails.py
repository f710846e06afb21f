"""The benchmark of tails: its page from made-up loads, and one real measurement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gate_tails import CASES, drawn, ratios, record, table
from pipeline.stats.intervals import Limit


def write_loads(folder: Path, delay: float) -> None:
    """Loads of 100 queries around 1 ms; one in ten has a tail of 8 ms on one side or the other."""
    random = np.random.default_rng(0)
    ours, theirs = random.normal(1.0, 0.01, (2, 200, 100))
    for side in (ours, theirs):
        side[:, :12] += 8.0 * (random.random((200, 1)) < 0.05)
    np.savez(folder / f"delay_{delay:g}.npz", candidate=(1 + delay) * ours, baseline=theirs)
    about = {"query_ms": 1.0, "seconds": 50.0, "num_loads": 200, "others": 0.5}
    (folder / f"delay_{delay:g}.json").write_text(json.dumps(about))


def test_the_page_shows_both_ways(tmp_path: Path) -> None:
    for delay in {delay for _, delay, _ in CASES}:
        write_loads(tmp_path, delay)
    page = table(tmp_path, 20, "the command")
    lines = [line.strip("| ").split(" | ") for line in page.splitlines()]
    rows = {tuple(cells[:4]): cells[4:] for cells in lines if len(cells) == 12}
    assert rows["p50", "none", "1.03", "60"] == ["100.0", "0.0", "0.0", "2.0"] * 2
    assert rows["p50", "5%", "1.03", "60"][:3] == ["0.0", "100.0", "0.0"]
    ours, plain = (float(rows["p99", "none", "1.03", "300"][place]) for place in (0, 4))
    assert ours > max(plain, 90)
    assert "`the command`" in page
    assert "took 50%, 50%, 50% of the CPU time while these delays" in page


def test_a_gate_that_is_drawn_is_decided_at_a_look() -> None:
    random = np.random.default_rng(0)
    logs = np.log(random.normal(1.0, 0.01, 200))
    assert drawn(logs, np.inf, Limit(1.1, at_most=True), 100, random) == ("pass", 8)
    assert drawn(logs + 0.2, np.inf, Limit(1.1, at_most=True), 100, random) == ("fail", 8)
    assert drawn(logs, np.inf, Limit(1.0, at_most=True), 100, random) == ("not decided", 100)


def test_a_real_measurement_is_kept_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, 0.0, 1.5)
    about = json.loads((tmp_path / "delay_0.json").read_text())
    assert len(ratios(tmp_path, 0.0, "p99")) == about["num_loads"] >= 1
    monkeypatch.setattr("benchmarks.gate_tails.compare_paired", None)
    record(tmp_path, 0.0, 1.5)
