"""The verb `run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Command


def test_a_run_keeps_warnings_in_its_report(command: Command, plan: Path) -> None:
    said = command("run", plan)
    assert said.err.count("calibration samples are evaluation samples too") == 1
    assert "calibration data, overlap: " in " ".join(said.out.split())
    record = json.loads((plan.parent / "trtforge-report" / "report.json").read_text())
    assert [finding["code"] for finding in record["lint"]] == ["few", "overlap", "labels"]
    assert [point["num_samples"] for point in record["settling"]["points"]] == [1, 2, 4, 8, 12]
