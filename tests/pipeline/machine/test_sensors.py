"""What can be read of a machine, from made-up trees: rails of each module, RAPL, clocks, temperatures, throttling."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.machine.sensors import readable_sensors, total_rails, why_no_power
from tests.pipeline.machine.jetsons import jetson_files, tree

HWMON = "sys/class/hwmon/hwmon4"

ORIN_NX = {
    f"{HWMON}/name": "ina3221\n",
    f"{HWMON}/in1_label": "VDD_IN\n", f"{HWMON}/in1_input": "5000\n", f"{HWMON}/curr1_input": "1040\n",
    f"{HWMON}/in2_label": "VDD_CPU_GPU_CV\n", f"{HWMON}/in2_input": "5000\n", f"{HWMON}/curr2_input": "200\n",
    f"{HWMON}/in3_label": "VDD_SOC\n", f"{HWMON}/in3_input": "5000\n", f"{HWMON}/curr3_input": "290\n",
    f"{HWMON}/in7_label": "sum of shunt voltages\n", f"{HWMON}/in7_input": "77\n",
}  # fmt: skip
AGX_ORIN = {
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    **{f"sys/class/hwmon/hwmon3/in{n}_input": "19000\n" for n in (1, 2, 3)},
    **{f"sys/class/hwmon/hwmon3/curr{n}_input": f"{n}00\n" for n in (1, 2, 3)},
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_CV\n",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0\n",
    f"{HWMON}/name": "ina3221\n",
    f"{HWMON}/in1_label": "NC\n", f"{HWMON}/in1_input": "0\n", f"{HWMON}/curr1_input": "0\n",
    f"{HWMON}/in2_label": "VDDQ_VDD2_1V8AO\n", f"{HWMON}/in2_input": "5000\n", f"{HWMON}/curr2_input": "100\n",
}  # fmt: skip
XAVIER = {
    **{f"sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0/rail_name_{n}": name
       for n, name in enumerate(("GPU", "CPU", "SOC"))},
    **{f"sys/bus/i2c/drivers/ina3221x/1-0041/iio:device1/rail_name_{n}": name
       for n, name in enumerate(("CV", "VDDRQ", "SYS5V"))},
    **{f"sys/bus/i2c/drivers/ina3221x/1-004{c}/iio:device{c}/in_power{n}_input": f"{100 * (3 * c + n + 1)}\n"
       for c in (0, 1) for n in (0, 1, 2)},
}  # fmt: skip
THOR = AGX_ORIN | {
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_SOC_MSS\n",
    f"{HWMON}/name": "ina238\n", f"{HWMON}/in1_label": "", f"{HWMON}/in2_label": "",
    f"{HWMON}/power1_input": "42000000\n",
}  # fmt: skip
PC = {
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "123456789\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "1000\n",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone0/temp": "48000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "3100000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "2\n",
    "proc/meminfo": "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n",
}


def read(root: Path, kind: str) -> dict[str, float]:
    return {sensor.name: sensor.read() for sensor in readable_sensors(root) if sensor.kind == kind}


@pytest.mark.parametrize(
    ("files", "rails_mw", "total"),
    [
        (ORIN_NX, {"VDD_IN": 5200, "VDD_CPU_GPU_CV": 1000, "VDD_SOC": 1450}, ("VDD_IN",)),
        (
            AGX_ORIN,
            {"VDD_GPU_SOC": 1900, "VDD_CPU_CV": 3800, "VIN_SYS_5V0": 5700, "VDDQ_VDD2_1V8AO": 500},
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ),
        (
            XAVIER,
            {"GPU": 100, "CPU": 200, "SOC": 300, "CV": 400, "VDDRQ": 500, "SYS5V": 600},
            ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
        ),
        (THOR, {"VDD_GPU": 1900, "VDD_CPU_SOC_MSS": 3800, "VIN_SYS_5V0": 5700, "VIN": 42000}, ("VIN",)),
    ],
    ids=["Orin NX", "AGX Orin", "AGX Xavier, JetPack 4", "AGX Thor"],
)
def test_rails_of_each_module(
    tmp_path: Path, files: dict[str, str], rails_mw: dict[str, float], total: tuple[str, ...]
) -> None:
    found = read(tree(tmp_path, files), "power_mw")
    assert found == pytest.approx(rails_mw)
    assert total_rails(tuple(found)) == total


def test_a_pc(tmp_path: Path) -> None:
    tree(tmp_path, PC)
    assert read(tmp_path, "energy_uj") == {"package-0": 123456789}, "the core's energy is within the package's"
    assert [g.wraps_at for g in readable_sensors(tmp_path) if g.kind == "energy_uj"] == [262143328850]
    assert read(tmp_path, "temperature_c") == {"x86_pkg_temp": 48.0}
    assert read(tmp_path, "clock_mhz") == {"cpu policy0": 3100.0}
    assert read(tmp_path, "num_throttles") == {"cpu0": 2}
    assert read(tmp_path, "available_mib") == {"memory": 1.0}


def test_a_jetsons_clocks_and_counters(tmp_path: Path) -> None:
    tree(tmp_path, jetson_files("6.2"))
    assert read(tmp_path, "clock_mhz") == {"cpu policy0": pytest.approx(1510.4), "gpu 17000000.gpu": 624.75}
    assert read(tmp_path, "num_throttles") == {"oc1": 0, "oc3": 0}


@pytest.mark.parametrize("garbage", ["", "\n", "-", "inf", "nan", "0x10", "\0\0\0"])
def test_what_gives_no_number_is_no_gauge(tmp_path: Path, garbage: str) -> None:
    tree(tmp_path, ORIN_NX | {f"{HWMON}/curr2_input": garbage, "sys/class/thermal/thermal_zone0/temp": garbage})
    assert set(read(tmp_path, "power_mw")) == {"VDD_IN", "VDD_SOC"}
    assert read(tmp_path, "temperature_c") == {}


def test_a_file_that_goes_or_turns_to_garbage_gives_nan(tmp_path: Path) -> None:
    tree(tmp_path, ORIN_NX)
    rail = next(sensor for sensor in readable_sensors(tmp_path) if sensor.name == "VDD_IN")
    (tmp_path / HWMON / "curr1_input").write_text("I/O error")
    assert math.isnan(rail.read())
    (tmp_path / HWMON / "curr1_input").unlink()
    assert math.isnan(rail.read())


def test_why_there_is_no_power(tmp_path: Path) -> None:
    assert "has no power monitor (INA3221, INA238, RAPL)" in why_no_power(tmp_path)
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": ""})
    assert why_no_power(tmp_path) == "RAPL's energy counters are there, but only root may read them"


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert readable_sensors(tmp_path) == ()
