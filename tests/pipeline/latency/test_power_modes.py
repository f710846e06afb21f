"""What another power mode brings: by the table, and measured, with a made-up nvpmodel and engines that really run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calibration.arrays import Floats
from pipeline.errors import StageError
from pipeline.latency.benchmark import Queries, timing_of
from pipeline.latency.energy import BlockEnergies
from pipeline.latency.power_modes import MeasuredMode, compare_modes, compared, power_modes_here
from pipeline.latency.protocol import Protocol
from pipeline.machine import power_mode as module
from pipeline.machine.jetson import power_mode
from pipeline.machine.power_mode import asked_models, power_models
from tests.pipeline.machine.jetsons import tree
from tests.pipeline.machine.nvpmodels import add_nvpmodel, device_in

QUICK = Protocol(warmup_queries=1, warmup_seconds=0.0, min_queries=8, min_seconds=0.0, num_blocks=4)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device in MODE_30W with its nvpmodel."""
    root = tmp_path / "device"
    root.mkdir()
    add_nvpmodel(tree(root, device_in(root, 2)), monkeypatch)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return root


def measured(p50_ms: float, energy_mj: float | None, num_throttles: int | None = 0) -> MeasuredMode:
    """One engine, every query of which takes as long."""
    block = np.repeat(np.arange(4), 50)
    queries = Queries(np.full(200, p50_ms), block, np.arange(200.0) * p50_ms, np.full(200, np.nan))
    energies = {} if energy_mj is None else {("int8", 1): BlockEnergies(np.full(4, 50 * energy_mj), np.full(4, 50.0))}
    return MeasuredMode([timing_of("int8", 1, queries, QUICK)], energies, num_throttles)


def in_blocks(p50_ms: Floats, energy_mj: Floats) -> MeasuredMode:
    """One engine, whose blocks of 20 queries take so long and that energy per inference."""
    block = np.repeat(np.arange(len(p50_ms)), 20)
    latency = p50_ms[block]
    queries = Queries(latency, block, np.cumsum(latency), np.full(len(latency), np.nan))
    energies = {("int8", 1): BlockEnergies(20 * energy_mj, np.full(len(energy_mj), 20.0))}
    return MeasuredMode([timing_of("int8", 1, queries, QUICK)], energies, 0)


def test_the_report_says_what_the_table_says_and_that_nothing_was_changed(root: Path) -> None:
    modes = power_modes_here(root)
    assert modes is not None
    (sentence,) = modes.sentences
    assert sentence.startswith(
        "Power mode MODE_30W. By nvpmodel's table others allow: MAXN: GPU up to 1300 MHz instead"
    )
    assert "; MODE_7W: GPU up to 420 MHz instead of 612, 1 cores instead of 2" in sentence
    assert sentence.endswith("(--power-mode) measures what one brings; nothing was changed.")
    assert (root / "calls").read_text() == ""
    assert power_modes_here(root / "nowhere") is None


def test_modes_are_compared_by_latency_and_energy_and_the_first_is_measured_again(root: Path) -> None:
    seen: list[str] = []
    runs = iter([measured(2.0, 12.0, num_throttles=3), measured(4.2, 10.0)])

    def measure() -> MeasuredMode:
        seen.append(power_mode(root))
        return next(runs)

    modes = compare_modes(root, asked_models(root, ("MAXN",)), measured(4.0, 10.0), measure)
    assert seen == ["MAXN", "MODE_30W"]
    assert power_mode(root) == "MODE_30W"
    (maxn,) = modes.compared
    (row,) = maxn.engines
    assert (row.latency_ratio, row.energy_ratio) == (0.5, 1.2)
    assert row.latency_ratio_interval == (0.5, 0.5)
    assert row.energy_ratio_interval is not None
    assert np.allclose(row.energy_ratio_interval, 1.2)
    assert row.p50_low_ms <= row.latency_ms.p50 <= row.p50_high_ms
    assert modes.drift == pytest.approx(0.05)
    assert modes.sentences == (
        "In power mode MAXN instead of MODE_30W: int8 (batch 1) takes 0.50 (0.50 to 0.50) times as long (2 ms "
        "instead of 4 ms) and 1.20 (1.20 to 1.20) times the energy; the hardware throttled 3 times.",
        "Put back to MODE_30W, int8 differed from before by 5.0%.",
    )


def test_each_mode_draws_blocks_of_its_own_and_the_interval_misses_as_seldom_as_it_says(root: Path) -> None:
    """Blocks differ by 3 % in both quantities, the other mode takes half as long and three times the energy."""
    maxn, now, _ = power_models(root)
    random, missed = np.random.default_rng(19), np.zeros(2)
    for _ in range(150):
        here, there = (
            in_blocks(base * random.normal(1, 0.03, 10), energy * random.normal(1, 0.03, 10))
            for base, energy in ((4.0, 1.0), (2.0, 3.0))
        )
        (row,) = compared(maxn, now, here, there).engines
        assert row.energy_ratio_interval is not None
        for index, (true, (low, high)) in enumerate(
            ((0.5, row.latency_ratio_interval), (3.0, row.energy_ratio_interval))
        ):
            missed[index] += not low <= true <= high
    assert (missed <= 0.05 * 150 + 2 * np.sqrt(0.05 * 150)).all(), missed


def test_what_disturbed_both_by_the_same_block_numbers_does_not_cancel(root: Path) -> None:
    """Rounds of two modes did not run beside each other: the interval is as wide as both spread."""
    maxn, now, _ = power_models(root)
    levels = np.linspace(1.0, 1.5, 10)
    here = in_blocks(4.0 * levels, levels)
    (row,) = compared(maxn, now, here, here).engines
    assert row.latency_ratio_interval[0] < 0.95 < 1 < 1.05 < row.latency_ratio_interval[1]


def test_a_mode_that_cannot_be_had_is_said_and_the_others_are_measured(root: Path) -> None:
    modes = compare_modes(root, asked_models(root, ("3", "0")), measured(4.0, None), lambda: measured(3.0, None))
    without, with_it = modes.compared
    assert without.sentence == (
        "Power mode MODE_7W was not measured: it needs a restart of the device, which is not done here; set it "
        "with sudo nvpmodel -m 3, and run again."
    )
    row = with_it.engines[0]
    assert (without.engines, row.energy_ratio, row.energy_ratio_interval) == ((), None, None)
    assert "takes 0.75 (0.75 to 0.75) times as long (3 ms instead of 4 ms)." in with_it.sentence


def test_an_engine_that_crashes_leaves_the_mode_as_it_was(root: Path) -> None:
    def crash() -> MeasuredMode:
        raise StageError("engine: crashed")

    with pytest.raises(StageError, match="engine: crashed"):
        compare_modes(root, asked_models(root, ("MAXN",)), measured(4.0, None), crash)
    assert power_mode(root) == "MODE_30W"


TERMINATED = """
import os, signal, sys
from pathlib import Path
from pipeline.command.cli import _terminated
from pipeline.latency.power_modes import compare_modes
from pipeline.machine import power_mode
from tests.pipeline.latency.test_power_modes import measured
signal.signal(signal.SIGTERM, _terminated)
power_mode.os.geteuid = lambda: 0
root = Path(sys.argv[1])
def measure():
    print(power_mode.power_mode(root), flush=True)
    signal.pause()
try:
    compare_modes(root, power_mode.asked_models(root, ["MAXN"]), measured(1.0, None), measure)
except KeyboardInterrupt:
    print(power_mode.power_mode(root), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_puts_the_mode_back(root: Path, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", TERMINATED, str(root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "MAXN\n"
        process.send_signal(number)
        assert process.stdout.read() == "MODE_30W\n"
    assert power_mode(root) == "MODE_30W"
