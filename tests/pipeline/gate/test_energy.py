"""Energy held to a budget, from made-up readings of a power monitor."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.gate.budget import budget_from_text
from pipeline.gate.checks import EngineBudget
from pipeline.gate.energy import check_energy
from pipeline.latency.benchmark import Latency, Queries, Timing
from pipeline.machine.monitor import Readings
from pipeline.machine.sensors import Sensor
from pipeline.stages.benchmark import BenchmarkResult

NS_PER_MS = 1_000_000
NUM_BLOCKS = 10
BEGAN_NS = 7_000_000_000


def timing(name: str, first_ms: float) -> Timing:
    """Blocks of 400 ms with 40 queries of 10 ms, one block a second from ``first_ms`` on."""
    started = np.concatenate([first_ms + 1000 * block + 10 * np.arange(40.0) for block in range(NUM_BLOCKS)])
    latency = np.full(40 * NUM_BLOCKS, 10.0)
    block = np.repeat(np.arange(NUM_BLOCKS), 40)
    summary = Latency(10, 10, 10, 10, 10)
    queries = Queries(latency, block, started, np.full(len(latency), math.nan))
    return Timing(name, 1, summary, 100.0, None, len(latency), True, "", queries)


def readings(new_mw: float, old_mw: float) -> Readings:
    """Every 20 ms; ``new`` runs in the first half of each second, ``old`` in the second."""
    times_ms = np.arange(0.0, 1000.0 * NUM_BLOCKS + 1, 20)
    power = np.where(times_ms % 1000 < 500, new_mw, old_mw)
    sensor = Sensor("power_mw", "VDD_IN", lambda: math.nan)
    return Readings((sensor,), (BEGAN_NS + times_ms * NS_PER_MS).astype(np.int64), power[:, None])


def measured() -> BenchmarkResult:
    return BenchmarkResult([timing("new", 50), timing("old", 550)], BEGAN_NS, {}, [], {}, {})


@pytest.mark.parametrize(
    ("text", "estimate", "outcome"),
    [
        # 6 W for 10 ms are 60 mJ, 5 W are 50 mJ.
        ("energy_mj <= 61", 60.0, "pass"),
        ("energy_mj <= 59", 60.0, "fail"),
        ("energy_mj <= 1.21 x baseline", 1.2, "pass"),
        ("energy_mj <= 1.19 x baseline", 1.2, "fail"),
    ],
)
def test_energy_of_one_inference(text: str, estimate: float, outcome: str) -> None:
    budget = budget_from_text(text.replace("energy_mj", "energy_mj at batch 1"), "")
    check = check_energy(EngineBudget("new", budget), measured(), "old", (readings(6000, 5000), ""), 0.99)
    assert check.estimate == pytest.approx(estimate, rel=1e-3)
    assert check.outcome == outcome


def test_no_gauge_is_no_pass() -> None:
    budget = budget_from_text("energy_mj at batch 1 <= 61", "")
    nothing = Readings((), np.zeros(0, dtype=np.int64), np.zeros((0, 0)))
    check = check_energy(EngineBudget("new", budget), measured(), "", (nothing, "nobody measures it"), 0.99)
    assert check.outcome == "not decided"
    assert check.sentence == "energy_mj at batch 1 is not known: nobody measures it"


def test_too_few_readings_are_no_pass() -> None:
    budget = budget_from_text("energy_mj at batch 1 <= 61", "")
    whole = readings(6000, 5000)
    few = Readings(whole.sensors, whole.times_ns[::200], whole.values[::200])
    check = check_energy(EngineBudget("new", budget), measured(), "", (few, ""), 0.99)
    assert check.outcome == "not decided"
    assert "readings of the power fell into its blocks" in check.sentence
