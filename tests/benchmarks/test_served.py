"""The benchmark of served runs: everything is served, and the table has medians and their ratio."""

from __future__ import annotations

from pathlib import Path

from benchmarks.served import RESULTS_PER_PLAN, ROOT, ROWS, Side, lines, write_fleet


def test_medians_and_ratios() -> None:
    runs = {
        "old": [dict.fromkeys(ROWS, seconds) for seconds in (4.0, 6.0, 60.0)],
        "now": [dict.fromkeys(ROWS, seconds) for seconds in (2.0, 0.1, 3.0)],
    }
    head, _, first, *_ = lines(runs, 7)
    assert head == "| CPU seconds | old | now | ratio |"
    assert first == "| 7 plans in one process, the cache folder empty | 6.00 | 2.00 | 3.0 |"
    assert lines({"now": runs["now"]}, 7)[0] == "| CPU seconds | now |"


def test_what_was_made_is_served(tmp_path: Path) -> None:
    write_fleet(tmp_path, 1)
    side = Side("now", ROOT, tmp_path)
    _, served, made = side.run_all("make")
    assert (served, made) == (0, RESULTS_PER_PLAN)
    seconds, served, made = side.run_all("serve")
    assert (served, made) == (RESULTS_PER_PLAN, 0)
    assert seconds > 0
