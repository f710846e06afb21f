"""The benchmark of faults: it counts what is right, and says why inputs may end with 0."""

from __future__ import annotations

from typing import Any

from benchmarks.faults import RIGHT, row_of, text_of


def test_what_is_right_is_counted() -> None:
    lines: list[dict[str, Any]] = [{"faults": []}, {"faults": ["half: ..."]}, {"faults": []}]
    row = row_of("kill", "verbs", "every 1. of 3 calls", lines)
    assert (row.num, row.num_right) == (3, 2)
    text = text_of([row], ["another byte is another weight"], 7)
    assert "| kill | verbs | every 1. of 3 calls | 3 | 2 |" in text
    assert "7 of the inputs end with 0, which is right for these reasons:\n\n- another byte is another weight\n" in text
    assert all(f"- **{kind}**: " in text for kind in RIGHT)
