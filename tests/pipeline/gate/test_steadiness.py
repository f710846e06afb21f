"""Whether a machine was quiet: from made-up /proc and /sys trees, and from this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.gate.steadiness import (
    MachineState,
    busy_with_others,
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
