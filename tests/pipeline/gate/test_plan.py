"""The gate of a plan: run from the store, judged, and held to [gate]."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import ConfigError
from pipeline.gate.gather_inputs import candidate_of
from pipeline.gate.record import SCHEMA_VERSION, GateRecord
from pipeline.json_record import record_from_json
from pipeline.plan import Plan, read_plan

if TYPE_CHECKING:
    from tests.conftest import Command

GATE = """
[gate]
baseline = "fp32@onnxruntime"
budgets = ["p50_ms <= 10000", "size_mib <= 8 x baseline", "p50_ms of fp32@onnxruntime <= 10000"]
max_other_load = 1.0
max_other_load_relative = 1.0
max_drift = inf
html = false

[gate.pairing]
max_seconds = 600.0

[validate.int8]
max_metric_drop = 1.0
min_cosine = 0.0
"""


def test_a_plan_is_run_and_gated(plan: Path, command: Command) -> None:
    plan.write_text(plan.read_text() + GATE)
    said = command("gate", "plan.toml", "--budget", "agreement >= 0.2")
    assert said.status == 0, said.err
    assert "int8@onnxruntime may ship" in said.out
    gated = record_from_json(plan.parent / "trtforge-gate" / "gate.json", GateRecord, SCHEMA_VERSION, "")
    assert (gated.candidate, gated.baseline, gated.num_threads) == ("int8@onnxruntime", "fp32@onnxruntime", 1)
    assert [check.variant for check in gated.checks] == [
        "int8@onnxruntime", "int8@onnxruntime", "fp32@onnxruntime", "int8@onnxruntime",
        "int8@onnxruntime", "fp32@onnxruntime",
    ]  # fmt: skip
    assert [check.quantity for check in gated.checks][-3:] == ["agreement", "answers", "answers"]
    (step,) = gated.steps
    assert (step.lower, step.higher) == ("int8@onnxruntime", "fp32@onnxruntime")
    assert step.sentence in " ".join(said.out.split())
    assert gated.advice
    assert gated.plan is not None

    quick = re.sub("budgets = .*", 'budgets = ["size_mib <= 1"]\npays = false', plan.read_text())
    plan.write_text(quick)
    again = command("gate", "plan.toml")
    assert again.status == 0
    assert "served" in again.err
    assert "made in" not in again.err


def test_what_validation_refuses_must_not_ship(plan: Path, command: Command) -> None:
    strict = GATE.replace("min_cosine = 0.0", "min_cosine = 1.0").replace("html = false", "pays = false\nhtml = false")
    held = re.sub("budgets = .*", 'budgets = ["size_mib <= 1"]', strict)
    plan.write_text(plan.read_text() + held)
    said = command("gate", "plan.toml")
    assert said.status == 5
    assert "must not ship: int8@onnxruntime: outputs of int8@onnxruntime are outside [validate.int8]: " in said.err
    gated = record_from_json(plan.parent / "trtforge-gate" / "gate.json", GateRecord, SCHEMA_VERSION, "")
    assert gated.steps == ()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "[gate] budgets: there is no budget, so nothing could fail; write at least one"),
        ('budgets = ["p50 <= 3"]', "[gate] budgets: 'p50 <= 3': there is no quantity 'p50'; did you mean 'p50_ms'?"),
        ('budgets = ["size_mib <= 3"]\ncandidate = "int8@onnx"', "there is no variant 'int8@onnx'; did you mean 'int8"),
        ('budgets = ["size_mib <= 3"]\nbaseline = "fp16@onnxruntime"', "[gate] baseline: there is no variant 'fp16@"),
        ('budgets = ["size_mib <= 3"]\nbaseline = "last good"', "baseline 'last good': is not a valid name"),
        (
            'budgets = ["size_mib of int8@onnx <= 3"]',
            "'size_mib of int8@onnx <= 3': there is no variant 'int8@onnx'; did",
        ),
        ('budgets = ["size_mib <= 3 x baseline"]', "'size_mib <= 3 x baseline': there is no baseline to compare with"),
        (
            'budgets = ["p50_ms <= 3", "p50_ms at batch 1 <= 4"]',
            "'p50_ms at batch 1 <= 3' and 'p50_ms at batch 1 <= 4' bound the same quantity of int8@onnxruntime; "
            "leave one",
        ),
        (
            'budgets = ["size_mib <= 3", "size_mib of int8@onnxruntime <= 4"]',
            "'size_mib <= 3' and 'size_mib of int8@onnxruntime <= 4' bound the same quantity of int8@onnxruntime",
        ),
        ('budgets = ["metric <= 0.5"]', "top1 is better when higher; write metric >= …"),
        (
            'budgets = ["throughput_per_s >= 3"]\n[gate.pairing]\nscenario = "server"\nqueries_per_s = 3',
            "throughput_per_s of a server is what arrives; bound a latency",
        ),
        (
            'budgets = ["throughput_per_s >= 3", "p50_ms <= 3"]\n[gate.pairing]\nscenario = "offline"',
            "p50_ms: scenario offline has no latency, as several batches may be in flight; bound throughput_per_s",
        ),
        ('budget = ["size_mib <= 3"]', "[gate] unknown key 'budget'; did you mean 'budgets'?"),
        ('budgets = ["size_mib <= 3"]\ncold_starts = 0', "[gate] cold_starts is 0, but must be at least 1"),
    ],
)
def test_a_wrong_table_is_said_before_anything_is_made(plan: Path, command: Command, table: str, said: str) -> None:
    plan.write_text(plan.read_text() + f"\n[gate]\n{table}\n")
    found = command("gate", "plan.toml")
    assert found.status == 2
    assert said in found.err
    assert "made in" not in found.err


def test_options_of_engines_have_no_effect_beside_a_plan(plan: Path, command: Command) -> None:
    said = command("gate", "plan.toml", "--cold-starts", 3)
    assert said.status == 2
    assert "--cold-starts: has no effect together with a plan; write it into plan.toml" in said.err


def test_the_candidate_is_the_only_reduced_one(plan: Path) -> None:
    read: Plan = read_plan(plan)
    assert candidate_of(read, ["fp32@onnxruntime", "int8@onnxruntime"]) == "int8@onnxruntime"
    assert candidate_of(read, ["fp32@onnxruntime"]) == "fp32@onnxruntime"
    with pytest.raises(
        ConfigError,
        match=r"fp16@a, int8@a could ship, but a gate checks one; write candidate = "
        r'"int8@a"',
    ):
        candidate_of(read, ["fp32@a", "fp16@a", "int8@a"])
