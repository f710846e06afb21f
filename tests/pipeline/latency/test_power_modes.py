"""What another power mode brings: by the table, and measured, with a made-up nvpmodel and engines that really run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.latency.benchmark import Queries, timing_of
from pipeline.latency.power_modes import MeasuredMode, compare_modes, power_modes_here
from pipeline.latency.protocol import Protocol
from pipeline.machine import power_mode as module
from pipeline.machine.jetson import power_mode
from pipeline.machine.power_mode import asked_models
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
    return MeasuredMode([timing_of("int8", 1, queries, QUICK)], {("int8", 1): energy_mj}, num_throttles)


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
    assert row.p50_low_ms <= row.latency_ms.p50 <= row.p50_high_ms
    assert modes.drift == pytest.approx(0.05)
    assert modes.sentences == (
        "In power mode MAXN instead of MODE_30W: int8 (batch 1) takes 0.50 times as long (2 ms instead of 4 ms) "
        "and 1.20 times the energy; the hardware throttled 3 times.",
        "Put back to MODE_30W, int8 differed from before by 5.0%.",
    )


def test_a_mode_that_cannot_be_had_is_said_and_the_others_are_measured(root: Path) -> None:
    modes = compare_modes(root, asked_models(root, ("3", "0")), measured(4.0, None), lambda: measured(3.0, None))
    without, with_it = modes.compared
    assert without.sentence == (
        "Power mode MODE_7W was not measured: it needs a restart of the device, which is not done here; set it "
        "with sudo nvpmodel -m 3, and run again."
    )
    assert (without.engines, with_it.engines[0].energy_ratio) == ((), None)


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
