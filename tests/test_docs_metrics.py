"""The page on metrics is held to the code: it has every metric, and says which way each is better."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.accuracy.metrics import METRICS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_page_has_every_metric_and_its_direction() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (higher|lower) \|$", PAGE, flags=re.MULTILINE)
    better = {name: "higher" if kind.higher_is_better else "lower" for name, kind in METRICS.items()}
    assert dict(rows) == better
    assert len(rows) == len(better)
