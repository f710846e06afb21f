"""The benchmark of calibration's cost: whole processes against whole processes, and the passes alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.calibration import OURS, PASS, Cost, against_targets, in_passes, run


def test_the_pass_alone_is_read_from_what_the_process_says(tmp_path: Path) -> None:
    told = run(["sh", "-c", "echo 'CPU s of the pass alone: 0.25'"], tmp_path, 1.0)
    assert told is not None
    assert told.pass_cpu_s == 0.25
    silent = run(["true"], tmp_path, 1.0)
    assert silent is not None
    assert silent.pass_cpu_s is None


def test_a_failed_process_has_no_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sh", "-c", "echo broken; exit 3"], tmp_path, 1.0) is None
    assert "broken" in capsys.readouterr().err


def test_ours_in_plain_passes_by_both_measures() -> None:
    plain = [Cost(1.0, 1.0, 100.0, 0.64), Cost(2.0, 2.0, 100.0, 0.64)]
    costs = {
        ("MobileNetV2", 64): {
            "plain": plain,
            OURS: [Cost(3.0, 3.0, 150.0), Cost(6.0, 6.0, 150.0)],
            PASS: [Cost(9.0, 9.0, 150.0, 1.28), Cost(9.0, 9.0, 150.0, 1.28)],
        }
    }
    assert "| MobileNetV2 | 64 | 3.00 | 2.00 | 10.00, 20.00 |" in in_passes(costs)
    rows = against_targets(costs)
    assert "| plain passes that ours costs, whole processes | 3.00 (at most 1.7) |" in rows
    assert "| the same, the pass alone | 2.00 (at most 1.7) |" in rows
    assert "| times faster than ModelOpt | not measured |" in rows
