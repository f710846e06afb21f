"""The benchmark of the gate: its rows, its page, and one real comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate import DELAYS, OUTCOMES, add_row, main, read_rows, run_set, table


def row(number: int, delay: float, p50: str, low: float) -> dict[str, Any]:
    """A comparison as the benchmark keeps it."""
    return {
        "set": number,
        "delay": delay,
        "query_ms": 0.5,
        "load": 2.0,
        "p50": p50,
        "interval": [1 + delay, low, 1.1 + delay],
        "num_loads": 8,
        "num_queries": 320,
        "seconds": 2.5,
        "ratios": [1.0, 1.0, 1.0, 1.04],
    }


def rows() -> list[dict[str, Any]]:
    """Fifty of each delay: one A/A run is a false alarm, two of 5 % are missed."""
    found = []
    for delay in DELAYS:
        for number in range(50):
            p50 = "fail" if delay > 0.03 else "pass"
            if delay == 0 and number == 7:
                p50 = "fail"
            if delay == 0.05 and number < 2:
                p50 = "not decided"
            found.append(row(number, delay, p50, 0.9 if number != 7 else 1.05))
    return found


def test_the_page_counts_false_alarms_and_misses() -> None:
    page = table(rows(), "the command")
    assert "| none (A/A) | 50 | 98.0 | 2.0 | 0.0 | 2.5 |" in page
    assert "| 5 % | 50 | 0.0 | 96.0 | 4.0 | 2.5 |" in page
    assert "False alarms (A/A called fail): 1 of 50, 2.0 % (0.4 to 10.50)" in page
    assert "Detection of 5 % (called fail): 48 of 50, 96.0 % (86.5 to 98.90)" in page
    assert "leaves out 1: 1 of 50" in page
    assert "of 200 single loads in the A/A runs (about 40 queries of each side, in turns), 25.0 % have a p50" in page
    assert "`the command`" in page


def test_a_row_that_was_cut_off_is_left_out_and_what_is_there_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    text = "".join(json.dumps(one) + "\n" for one in rows() if one["set"] < 2)
    file.write_text(text + '{"set": 2, "delay": 0.0, "p50"')
    assert sorted(read_rows(file)) == sorted((number, delay) for number in range(2) for delay in DELAYS)
    command = ["gate.py", str(file), "--runs", "2", "--sparse", "1", "--output", str(page)]
    monkeypatch.setattr("sys.argv", command)
    main()
    assert page.read_text() == capsys.readouterr().out[:-1]
    assert file.read_text().startswith(text), "nothing was run, nothing was added"
    add_row(file, row(2, 0.01, "pass", 0.9))
    add_row(file, row(2, 0.02, "pass", 0.9))
    assert set(read_rows(file)) - {(number, delay) for number in range(2) for delay in DELAYS} == {(2, 0.01), (2, 0.02)}
    assert read_rows(tmp_path / "none") == {}


def test_a_real_comparison_of_an_engine_with_a_delay() -> None:
    (found,) = run_set(0, [4.0])
    assert found["p50"] in OUTCOMES
    assert found["interval"][0] > 1.2
    assert found["num_loads"] >= 8
    assert len(found["ratios"]) == found["num_loads"]
    assert json.loads(json.dumps(found)) == found
