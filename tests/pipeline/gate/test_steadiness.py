"""Whether a machine was quiet: from made-up /proc and /sys trees, and from this one."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.gate.steadiness import (
    TICKS_PER_S,
    CpuTimes,
    MachineState,
    busy_with_others,
    cpu_times,
    load_from_others,
    machine_state,
    objections,
)

QUIET = MachineState("performance", "off", "MAXN", 0.1, {"cpu policy0": 2400.0}, {"cpu": 51.0})


def test_a_moment_of_a_made_up_machine(tmp_path: Path) -> None:
    files = {
        "proc/loadavg": "0.52 0.30 0.20 1/100 4242",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2400000\n",
        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone0/temp": "51500\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine_state(tmp_path) == MachineState(
        "powersave", "off", "", 0.52, {"cpu policy0": 2400.0}, {"x86_pkg_temp": 51.5}
    )


def test_turbo_as_other_drivers_tell_it(tmp_path: Path) -> None:
    boost = tmp_path / "sys/devices/system/cpu/cpufreq/boost"
    boost.parent.mkdir(parents=True)
    boost.write_text("1\n")
    assert machine_state(tmp_path).turbo == "on"
    boost.write_text("0\n")
    assert machine_state(tmp_path).turbo == "off"


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert machine_state(tmp_path) == MachineState("", "", "", None, {}, {})
    times = cpu_times(tmp_path)
    assert load_from_others(times, replace(times, at_s=times.at_s + 1)) is None


def test_cpu_time_is_all_but_idle_and_waiting(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    columns = [100, 20, 30, 5000, 400, 0, 6, 44, 70, 0]  # The last two are in the first two already.
    row = " ".join(map(str, columns))
    (tmp_path / "proc/stat").write_text(f"cpu  {row}\ncpu0 {row}\ncpu1 {row}\nintr 12 0\n")
    times = cpu_times(tmp_path)
    assert times.busy_s == pytest.approx((100 + 20 + 30 + 6 + 44) / TICKS_PER_S)
    assert times.num_cores == 2


@pytest.mark.parametrize(
    ("busy_s", "own_s", "share"),
    [(10.0, 10.0, 0.0), (20.0, 10.0, 0.5), (12.0, 10.0, 0.1), (9.0, 10.0, 0.0), (99.0, 10.0, 1.0)],
)
def test_load_is_what_others_took_of_all_cores(busy_s: float, own_s: float, share: float) -> None:
    before = CpuTimes(100.0, 5.0, 2, 50.0)
    after = CpuTimes(100.0 + busy_s, 5.0 + own_s, 2, 60.0)
    assert load_from_others(before, after) == pytest.approx(share)


def test_this_process_is_not_among_the_others() -> None:
    before, own = cpu_times(Path("/")), os.times()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    after, spent = cpu_times(Path("/")), os.times()
    assert after.own_s - before.own_s >= 0.9 * (spent.user - own.user)
    share = load_from_others(before, after)
    assert share is not None
    assert 0 <= share <= 1


def test_a_quiet_machine_has_no_objections() -> None:
    assert objections(QUIET, replace(QUIET, load_1min=1.0), 0) == []
    assert busy_with_others(0.1, 0.25, "max_other_load") == busy_with_others(None, 0.25, "max_other_load") == []


def test_each_objection_says_what_to_do() -> None:
    after = replace(QUIET, governor="powersave", power_mode="15W")
    assert busy_with_others(0.4, 0.25, "max_other_load") == [
        "other programs used 40% of the machine's CPU time, above max_other_load 25%; stop them"
    ]
    assert objections(QUIET, after, 3) == [
        "the hardware throttled 3 times during the measurement; let it cool, or check its power supply",
        "the governor changed from 'performance' to 'powersave' during the measurement; keep it fixed",
        "the power mode changed from 'MAXN' to '15W' during the measurement; keep it fixed",
    ]
