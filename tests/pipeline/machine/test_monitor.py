"""Energy out of readings: the arithmetic on made-up readings, and the thread on a tree that changes under it."""

from __future__ import annotations

import math
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.latency.benchmark import Candidate, Queries, Timing, latency_from_ms, measure
from pipeline.latency.energy import Energy, block_windows_ns, energies_of, total_energy
from pipeline.latency.protocol import Protocol
from pipeline.machine.monitor import Monitor, Readings
from pipeline.machine.sensors import Sensor
from pipeline.stages import benchmark
from tests.pipeline.machine.jetsons import jetson_files, tree

if TYPE_CHECKING:
    from tests.conftest import Command

RAIL = "sys/class/hwmon/hwmon4"
WATT_FIVE = {
    f"{RAIL}/name": "ina3221",
    f"{RAIL}/in1_label": "VDD_IN",
    f"{RAIL}/in1_input": "5000",
    f"{RAIL}/curr1_input": "1000",
}
"""Five watts, for ever."""


def nothing() -> float:
    return math.nan


def readings(seconds: list[float], **columns: list[float]) -> Readings:
    """Readings of power by rail name, milliwatts."""
    found = tuple(Sensor("power_mw", name, nothing) for name in columns)
    times_ns = (np.array(seconds) * 1e9).astype(np.int64)
    return Readings(found, times_ns, np.array(list(columns.values())).T.astype(np.float64))


def timing_in(blocks_ms: list[tuple[float, float]], batch_size: int = 1) -> Timing:
    """One query per block, from and to these milliseconds."""
    begin, end = np.array(blocks_ms).T
    latency = (end - begin).astype(np.float64)
    queries = Queries(latency, np.arange(len(begin)), begin.astype(np.float64), np.full(len(begin), np.nan))
    return Timing("e", batch_size, latency_from_ms(latency), 1.0, None, len(begin), True, "", queries)


def energy_of(timing: Timing, found: Readings, root: Path, began_ns: int = 0) -> Energy:
    """What a monitor with these readings says."""
    monitor = Monitor(root, 100)
    monitor._sensors, monitor._times_ns = found.sensors, found.times_ns.tolist()
    monitor._rows = found.values.tolist()
    (one,) = energies_of(monitor, [timing], began_ns)
    return one


def test_constant_power_times_time(tmp_path: Path) -> None:
    steady = readings([0.1 * i for i in range(21)], VDD_IN=[5000.0] * 21, VDD_SOC=[900.0] * 21)
    one = energy_of(timing_in([(0, 500), (1000, 1500)], batch_size=4), steady, tmp_path)
    assert one.power_mw == pytest.approx(5000), "VDD_IN is the whole module: VDD_SOC is within it"
    assert one.energy_mj == pytest.approx(5000 * 1.0 / 8), "one second, two queries of four samples"
    assert one.missing == ""


def test_power_of_another_engines_blocks_does_not_count(tmp_path: Path) -> None:
    seconds = [0.01 * i for i in range(201)]
    mine = [2000.0 if int(s * 2) % 2 == 0 else 9000.0 for s in seconds]
    one = energy_of(timing_in([(0, 480), (1000, 1480)]), readings(seconds, VDD_IN=mine), tmp_path)
    assert one.power_mw == pytest.approx(2000)


def test_the_clock_of_the_blocks_begins_where_they_do(tmp_path: Path) -> None:
    later = readings([5 + 0.1 * i for i in range(21)], VDD_IN=[5000.0] * 21)
    timing = timing_in([(0, 1000)])
    assert block_windows_ns(timing.queries, 5_000_000_000).tolist() == [[5e9, 6e9]]
    assert energy_of(timing, later, tmp_path, began_ns=5_000_000_000).energy_mj == pytest.approx(5000)
    assert "only 0 readings" in energy_of(timing, later, tmp_path, began_ns=0).missing


def test_rails_are_summed_where_none_is_the_whole(tmp_path: Path) -> None:
    rails = {"VDD_GPU_SOC": [1000.0] * 11, "VDD_CPU_CV": [500.0] * 11, "VIN_SYS_5V0": [2000.0] * 11}
    found = readings([0.1 * i for i in range(11)], **rails, VDDQ_VDD2_1V8AO=[700.0] * 11)
    assert energy_of(timing_in([(0, 1000)]), found, tmp_path).power_mw == pytest.approx(3500)


def test_a_reading_that_failed_is_bridged_and_many_are_not(tmp_path: Path) -> None:
    seconds = [0.1 * i for i in range(21)]
    one_lost = [5000.0] * 21
    one_lost[7] = math.nan
    assert energy_of(timing_in([(0, 2000)]), readings(seconds, VDD_IN=one_lost), tmp_path).power_mw == pytest.approx(
        5000
    )
    three_lost = [*one_lost[:10], math.nan, math.nan, *one_lost[12:]]
    lost = energy_of(timing_in([(0, 2000)]), readings(seconds, VDD_IN=three_lost), tmp_path)
    assert (lost.power_mw, lost.energy_mj) == (None, None)
    assert lost.missing == "3 of 21 readings of the power failed (VDD_IN)"


def counters(values_uj: list[float], wraps_at: float) -> Readings:
    sensor = Sensor("energy_uj", "package-0", nothing, wraps_at)
    times_ns = np.arange(len(values_uj), dtype=np.int64) * 100_000_000
    return Readings((sensor,), times_ns, np.array(values_uj)[:, None])


def test_a_counter_of_energy_that_starts_again(tmp_path: Path) -> None:
    once_around = [(900_000.0 + 100_000 * i) % 1_500_000 for i in range(11)]
    times_ns, energy_mj, why = total_energy(counters(once_around, wraps_at=1_500_000))
    assert (len(times_ns), why) == (11, "")
    assert energy_mj[-1] == pytest.approx(1000)
    one = energy_of(timing_in([(0, 1000)]), counters(once_around, 1_500_000), tmp_path)
    assert one.power_mw == pytest.approx(1000)
    backwards = energy_of(timing_in([(0, 1000)]), counters([5.0, 4.0] * 6, math.inf), tmp_path)
    assert backwards.missing == "an energy counter went backwards"


def measured_on(root: Path, period_ms: int, disturb: Any = None) -> tuple[Monitor, Energy]:
    """A real measurement of something that sleeps, with the monitor on a tree.

    In its midst one query disturbs the tree, and lasts until there are at least as many readings after it as before.
    """
    began_ns: list[int] = []
    calls: list[int] = []
    protocol = Protocol(warmup_seconds=0, min_queries=100, min_seconds=0.4, num_blocks=4)
    with Monitor(root, period_ms) as monitor:

        def call() -> None:
            calls.append(len(monitor._times_ns))
            time.sleep(0.002)
            if len(calls) == 60 and period_ms:
                if disturb is not None:
                    disturb()
                until = time.monotonic() + 300
                while len(monitor._times_ns) < max(2 * calls[-1], 30) and time.monotonic() < until:
                    time.sleep(0.002)

        timings = measure([Candidate("sleeper", 1, call, lambda: None)], protocol, on_begin=began_ns.append)
    (energy,) = energies_of(monitor, timings, began_ns[0])
    return monitor, energy


def test_the_thread(tmp_path: Path) -> None:
    monitor, energy = measured_on(tree(tmp_path, jetson_files("6.2") | WATT_FIVE), 5)
    watched = monitor.watched()
    assert watched.num_readings > 20
    assert watched.power_mode == "MAXN"
    assert watched.total_rails == ("VDD_IN",)
    assert [span.name for span in watched.clocks_mhz] == ["cpu policy0", "gpu 17000000.gpu"]
    assert (watched.num_throttles, watched.notes) == (0, ())
    assert energy.power_mw == pytest.approx(5000)
    assert energy.energy_mj is not None
    assert 10 <= energy.energy_mj < 5000, "five watts for at least two milliseconds, and no second"
    monitor.readings().write(tmp_path / "m.npz", 0)
    with np.load(tmp_path / "m.npz") as kept:
        assert kept["values"].shape == (watched.num_readings, len(kept["names"]))
        assert kept["kinds"][kept["names"] == "VDD_IN"].tolist() == ["power_mw"]


def test_a_rail_that_vanishes_while_it_is_read(tmp_path: Path) -> None:
    root = tree(tmp_path, WATT_FIVE)
    monitor, energy = measured_on(root, 5, lambda: shutil.rmtree(root / RAIL))
    assert energy.power_mw is None
    assert "readings of the power failed (VDD_IN)" in energy.missing
    assert monitor.watched().rails_mw[0].mean == pytest.approx(5000), "of what was read"


def test_a_rail_that_turns_to_garbage_while_it_is_read(tmp_path: Path) -> None:
    root = tree(tmp_path, WATT_FIVE)
    _, energy = measured_on(root, 5, lambda: (root / RAIL / "curr1_input").write_text("\0garbage"))
    assert energy.power_mw is None
    assert "readings of the power failed (VDD_IN)" in energy.missing


def test_throttling_and_another_power_mode_meanwhile_are_said(tmp_path: Path) -> None:
    root = tree(tmp_path, jetson_files("6.2"))

    def disturb() -> None:
        (root / "sys/class/hwmon/hwmon2/oc3_event_cnt").write_text("3")
        (root / "var/lib/nvpmodel/status").write_text("pmode:0002 fmode:quiet")

    watched = measured_on(root, 5, disturb)[0].watched()
    assert watched.num_throttles == 3
    assert watched.notes == (
        "The power mode changed from MAXN to MODE_30W while engines were timed.",
        "The hardware throttled 3 times while engines were timed: measured latencies are too high.",
    )


def test_nothing_to_read_and_nothing_asked_for(tmp_path: Path) -> None:
    monitor, energy = measured_on(tmp_path, 5)
    assert energy.missing == "this machine has no power monitor (INA3221, INA238, RAPL) that can be read"
    assert monitor.watched().num_throttles is None
    _, unwatched = measured_on(tmp_path, 0)
    assert unwatched.missing == "the machine was not monitored (monitor_ms = 0)"


def test_an_error_of_the_measurement_ends_the_thread(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Monitor(tmp_path, 5):
        raise ZeroDivisionError
    assert "monitor" not in {thread.name for thread in threading.enumerate()}


def test_from_the_rails_to_the_report(command: Command, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.report.table import report_from_json

    root = tree(plan.parent / "jetson", jetson_files("6.2") | WATT_FIVE)
    monkeypatch.setattr(benchmark, "ROOT", root)
    text = plan.read_text().replace("[benchmark]", "[benchmark]\nmonitor_ms = 2")
    plan.write_text(text.replace("min_seconds = 0.0", "min_seconds = 0.2"))
    said = command("run", plan)
    assert said.status == 0, said.err
    record = report_from_json(plan.parent / "trtforge-report" / "report.json")
    assert record.monitor is not None
    assert record.monitor.power_mode == "MAXN"
    for variant in record.variants:
        (timing,) = variant.by_batch
        assert timing.power_mw == pytest.approx(5000)
        assert timing.energy_mj is not None
        assert 0.9 <= timing.energy_mj / (5000 * timing.latency_ms.mean / 1000) < 100, "of queries and between them"
        assert timing.energy_missing == ""
        assert variant.ram_change_mib is not None
    assert "Energy per inference, mJ: fp32@onnxruntime" in " ".join(said.out.split())
    assert (plan.parent / "trtforge-report" / "samples" / "monitor.npz").is_file()
