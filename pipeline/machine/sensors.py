"""What a machine can be asked for while it works: power, clocks, temperatures, throttling, free memory.

Power comes from the INA3221 and INA238 monitors of a Jetson (hwmon since JetPack 5, industrial I/O before; kernel
documents hwmon/ina3221 and hwmon/ina238) or from RAPL's energy counters (powercap); all of it is read from sysfs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.machine.jetson import GPU_CLOCK
from pipeline.machine.raspberry_pi import firmware_throttling
from pipeline.machine.system_files import folders, memory_kib, number_of, text_of

SensorKind = Literal["power_mw", "energy_uj", "clock_mhz", "temperature_c", "available_mib", "num_throttles"]
"""``energy_uj`` and ``num_throttles`` count up; the others are the moment's."""

WHOLE_MODULE = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that are a module's whole input: Orin NX and Nano and Xavier NX; Nano and TX; AGX Thor."""
WITHIN_OTHERS = ("VDDQ_VDD2_1V8AO",)
"""Fed by VIN_SYS_5V0 on an AGX Orin: adding it would count it twice."""
POWER_MONITORS = re.compile("ina3221x?|ina238")
NOT_CONNECTED = re.compile(r"NC|sum of shunt voltages")


@dataclass(frozen=True)
class Sensor:
    """One thing to read, again and again."""

    kind: SensorKind
    name: str
    read: Callable[[], float]
    """The value in the kind's unit; NaN when the file is gone or holds no number."""
    wraps_at: float = math.inf
    """A counter starts again from 0 here."""


def readable_sensors(root: Path) -> tuple[Sensor, ...]:
    """Everything that this machine has, and this user may read at this moment."""
    present = [*_rails(root), *_rapl(root), *_clocks(root), *_temperatures(root), *_throttles(root)]
    present.append(Sensor("available_mib", "memory", partial(available_mib, root)))
    return tuple(sensor for sensor in present if not math.isnan(sensor.read()))


def total_rails(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those rails whose sum is the power of the whole module: its input, or else all that are not within others."""
    whole = tuple(name for name in names if name in WHOLE_MODULE)
    return whole[:1] or tuple(name for name in names if name not in WITHIN_OTHERS)


def why_no_power(root: Path) -> str:
    """Why there is no power sensor, in one sentence without an end."""
    if any(counter.is_file() for counter in folders(root, "sys/class/powercap/intel-rapl:*/energy_uj")):
        return "RAPL's energy counters are there, but only root may read them"
    return "this machine has no power monitor (INA3221, INA238, RAPL) that can be read"


def available_mib(root: Path) -> float:
    """Memory that can be had without swapping, MiB; NaN where the system does not tell."""
    return memory_kib(root).get("MemAvailable", math.nan) / 1024


def _product(paths: tuple[Path, ...], scale: float) -> float:
    return math.prod(map(number_of, paths)) * scale


def _rails(root: Path) -> Iterator[Sensor]:
    for monitor in folders(root, "sys/class/hwmon/hwmon*"):
        chip = text_of(monitor / "name")
        if not POWER_MONITORS.fullmatch(chip):
            continue
        for number in (1, 2, 3):
            label = text_of(monitor / f"in{number}_label") or ("VIN" if chip == "ina238" and number == 1 else "")
            if not label or NOT_CONNECTED.search(label):
                continue
            measured = monitor / f"power{number}_input"
            amounts = (
                (measured,) if measured.is_file() else (monitor / f"in{number}_input", monitor / f"curr{number}_input")
            )
            yield Sensor("power_mw", label, partial(_product, amounts, 1e-3))
    for device in folders(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*"):
        for named in folders(device, "rail_name_*"):
            if not NOT_CONNECTED.search(label := text_of(named)):
                number_text = named.name.removeprefix("rail_name_")
                yield Sensor("power_mw", label, partial(number_of, device / f"in_power{number_text}_input"))


def _rapl(root: Path) -> Iterator[Sensor]:
    """Whole packages; their parts, ``intel-rapl:0:0``, are counted in them."""
    for zone in folders(root, "sys/class/powercap/intel-rapl:*"):
        if zone.name.count(":") == 1:
            wraps_at = number_of(zone / "max_energy_range_uj")
            name, read = text_of(zone / "name") or zone.name, partial(number_of, zone / "energy_uj")
            yield Sensor("energy_uj", name, read, math.inf if math.isnan(wraps_at) else wraps_at)


def _clocks(root: Path) -> Iterator[Sensor]:
    for policy in folders(root, "sys/devices/system/cpu/cpufreq/policy*"):
        yield Sensor("clock_mhz", f"cpu {policy.name}", partial(_product, (policy / "scaling_cur_freq",), 1e-3))
    for gpu in folders(root, "sys/class/devfreq/*"):
        if GPU_CLOCK.fullmatch(gpu.name):
            yield Sensor("clock_mhz", f"gpu {gpu.name}", partial(_product, (gpu / "cur_freq",), 1e-6))


def _temperatures(root: Path) -> Iterator[Sensor]:
    for zone in folders(root, "sys/class/thermal/thermal_zone*"):
        yield Sensor("temperature_c", text_of(zone / "type") or zone.name, partial(_product, (zone / "temp",), 1e-3))


def _throttles(root: Path) -> Iterator[Sensor]:
    """Counters of a Jetson's over-current events, of an x86 package's throttling, of a Raspberry Pi's firmware."""
    for counter in folders(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"):
        yield Sensor("num_throttles", counter.name.removesuffix("_event_cnt"), partial(number_of, counter))
    for counter in folders(root, "sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count"):
        yield Sensor("num_throttles", counter.parent.parent.name, partial(number_of, counter))
    if (firmware := firmware_throttling(root)) is not None:
        yield Sensor("num_throttles", "firmware", firmware)
