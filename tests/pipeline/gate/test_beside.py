"""Budgets of latency beside other engines: whom they are about, how they are judged, and one that is measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.timed_queries import Raw
from pipeline.errors import ConfigError
from pipeline.gate.budget import budget_from_text
from pipeline.gate.checks import EngineBudget
from pipeline.gate.latency import check_beside
from pipeline.gate.record import SCHEMA_VERSION, GateRecord
from pipeline.json_record import record_from_json
from pipeline.latency.benchmark import queries_from_npz
from pipeline.latency.protocol import Protocol
from pipeline.latency.together import PlannedBlock, TogetherTimings, timings_from_blocks
from tests.pipeline.gate.test_plan import GATE

if TYPE_CHECKING:
    from tests.conftest import Command

MS = 1_000_000


def raw(first_ms: float, latencies_ms: list[float]) -> Raw:
    """Queries one after the other."""
    starts, ends, at = [], [], first_ms * MS
    for latency_ms in latencies_ms:
        starts.append(round(at))
        at += latency_ms * MS
        ends.append(round(at))
    return starts, ends, [float("nan")] * len(starts)


@pytest.fixture(scope="module")
def timings() -> TogetherTimings:
    """Ten rounds of two engines: `a` takes 1 ms alone and 2 beside `b`, and one query of fifty 8 ms."""
    blocks: list[PlannedBlock] = []
    raws: list[list[Raw]] = [[], []]
    for number in range(10):
        at = 1000.0 * number
        for members, start in (((0,), at), ((1,), at + 200), ((0, 1), at + 400)):
            blocks.append(PlannedBlock(number, members, round(start * MS), round((start + 150) * MS)))
        raws[0] += [raw(at, [1.0] * 100), raw(at + 400, [2.0] * 49 + [8.0])]
        raws[1] += [raw(at + 200, [2.0] * 50), raw(at + 400, [2.0] * 60)]
    return timings_from_blocks([("a", 1), ("b", 1)], blocks, raws, Protocol())


@pytest.mark.parametrize(
    ("text", "outcome", "estimate"),
    [
        ("slowdown <= 2.5", "pass", 2.0), ("slowdown <= 1.5", "fail", 2.0),
        ("beside_p50_ms <= 3", "pass", 2.0), ("beside_p50_ms <= 1", "fail", 2.0),
        ("beside_p99_ms <= 1.5", "fail", 8.0),
    ],
)  # fmt: skip
def test_it_is_judged_by_rounds(timings: TogetherTimings, text: str, outcome: str, estimate: float) -> None:
    check = check_beside(EngineBudget("a", budget_from_text(text, "here")), timings, 0.99)
    assert check.outcome == outcome
    assert check.estimate == pytest.approx(estimate)
    assert check.advice == ""


def test_what_is_near_its_bound_says_what_would_decide(timings: TogetherTimings) -> None:
    check = check_beside(EngineBudget("a", budget_from_text("beside_p99_ms <= 8.5", "here")), timings, 0.99)
    assert check.outcome == "not decided"
    assert check.advice == "raise num_blocks or min_seconds in [benchmark.protocol]: this is of 10 rounds"


def test_a_gate_runs_the_engines_of_the_plan_at_once(plan: Path, command: Command) -> None:
    text = plan.read_text().replace("num_blocks = 4", "num_blocks = 8")
    held = GATE.replace("html = false", "html = false\npays = false")
    held = held.replace('["p50_ms', '["slowdown <= 1000", "p50_ms')
    plan.write_text(text + held)
    refused = command("gate", "plan.toml")
    assert refused.status == 2
    assert "'slowdown <= 1000': [benchmark] together does not name int8@onnxruntime, so that it runs" in refused.err
    plan.write_text((text + held).replace("[benchmark]\n", '[benchmark]\ntogether = ["all"]\n', 1))
    said = command("gate", "plan.toml")
    folder = plan.parent / "trtforge-gate"
    gated = record_from_json(folder / "gate.json", GateRecord, SCHEMA_VERSION, "")
    check = next(each for each in gated.checks if each.quantity == "slowdown")
    assert (check.variant, check.outcome) == ("int8@onnxruntime", "pass"), said.err
    assert len(queries_from_npz(folder / "samples/together-int8@onnxruntime-beside.npz").latency_ms) > 0


def test_the_quantities_have_no_batch_and_no_baseline() -> None:
    with pytest.raises(ConfigError, match="slowdown cannot be bounded by a multiple of the baseline's"):
        budget_from_text("slowdown <= 1.1 x baseline", "here")
    with pytest.raises(ConfigError, match="beside_p99_ms is not measured by batch size"):
        budget_from_text("beside_p99_ms at batch 2 <= 3", "here")
