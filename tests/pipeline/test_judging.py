"""Tolerances from the command line, and the two tables that `validate` and `benchmark` print."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifact import Timings
from pipeline.command.verbs.engines.benchmark import print_timings
from pipeline.command.verbs.engines.validate import TOLERANCES, print_verdict, tolerance_from
from pipeline.stages.validate import Validate

NOT_GIVEN: dict[str, Any] = dict.fromkeys(TOLERANCES)


def test_what_is_not_given_is_the_precisions_default() -> None:
    for precision in ("fp32", "fp16", "int8"):
        assert tolerance_from(precision, dict(NOT_GIVEN)) == Validate().tolerance(precision)


def test_what_is_given_replaces_that_alone() -> None:
    found = tolerance_from("int8", NOT_GIVEN | {"atol": 0.0, "min_cosine": 0.5})
    default = Validate().tolerance("int8")
    assert (found.atol, found.min_cosine) == (0.0, 0.5), "zero is given too"
    assert (found.rtol, found.max_metric_drop) == (default.rtol, default.max_metric_drop)


def verdict(**changes: Any) -> dict[str, Any]:
    row = {"max_abs": 0.5, "mean_abs": 0.125, "cosine_min": 0.75, "psnr_db": math.inf, "passed": True}
    return {
        "passed": True,
        "comparison": {"scores": row, "a[b]c": row | {"passed": False, "max_abs": math.nan}},
        "metric": None,
        "reference_metric": None,
        "agreement": None,
    } | changes


def test_a_verdict_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(verdict(passed=False, metric=0.5, reference_metric=0.75, agreement=0.875))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [
        "out of bound",
        "         max   mean    cosine  PSNR min",
        " output  |Δ|    |Δ|       min        dB  passed",
        " ──────────────────────────────────────────────",
        " scores  0.5  0.125  0.750000       inf     yes",
        " a[b]c   nan  0.125  0.750000       inf      no",
        "metric 0.5000, reference 0.7500",
        "same arg max on 87.50% of the samples",
    ]


def test_a_verdict_without_metric_or_classes(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(verdict())
    out = capsys.readouterr().out
    assert out.startswith("passed")
    assert "metric" not in out
    assert "arg max" not in out


def timings(folder: Path, device: dict[str, float] | None, energy_mj: float | None = None) -> Timings:
    latency = {"mean": 0.012345, "p50": 0.01, "p90": 1.5, "p95": 2.0, "p99": 1234.5}
    row = {"batch_size": 1, "latency_ms": latency, "device_ms": device, "throughput_per_s": 81004.5, "split_ms": None}
    rows = [
        row | {"name": "model.onnx", "stable": True, "note": ""},
        row
        | {"name": "a_rather_long_name_of_an_engine[1].plan", "stable": False, "note": "too few", "device_ms": None},
    ]
    energies = [{"name": r["name"], "batch_size": 1, "energy_mj": energy_mj if r["stable"] else None} for r in rows]
    none: dict[str, Any] = {"monitor": None, "runners": {}, "layers": {}}
    record = none | {"protocol": "one [query] at a time", "timings": rows, "energies": energies}
    (folder / "timings.json").write_text(json.dumps(record))
    return Timings(folder / "timings.json")


def test_timings_on_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_timings(timings(tmp_path, None))
    said = capsys.readouterr()
    assert "device" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert [line.split() for line in said.out.splitlines() if "model.onnx" in line] == [
        ["model.onnx", "1", "0.0100", "1.50", "1,234", "0.0123", "81,004", "yes"]
    ]
    assert "one [query] at a time" in said.out
    assert said.err == "trtforge: a_rather_long_name_of_an_engine[1].plan at batch 1: too few\n"
    named = "".join(line[:27].strip() for line in said.out.splitlines()[4:7])
    assert named.startswith("model.onnxa_rather_long_name_of_an_engine[1].plan")


def test_timings_with_device_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_timings(timings(tmp_path, {"p50": 0.5}))
    lines = capsys.readouterr().out.splitlines()
    assert any("device" in line for line in lines)
    assert [line.split()[-2:] for line in lines if " yes " in line or " no " in line] == [["yes", "0.500"], ["no", "–"]]


def test_timings_with_energy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_timings(timings(tmp_path, None, energy_mj=12.345))
    lines = capsys.readouterr().out.splitlines()
    assert any("energy" in line for line in lines)
    assert [line.split()[-2:] for line in lines if " yes " in line or " no " in line] == [["yes", "12.3"], ["no", "–"]]
