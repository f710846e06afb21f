"""What a Raspberry Pi's firmware says of throttling, from a made-up tree."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.machine import raspberry_pi
from pipeline.machine.raspberry_pi import HeldBack, firmware_throttling
from pipeline.machine.sensors import readable_sensors
from tests.pipeline.machine.jetsons import tree

FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def test_readings_at_which_it_holds_the_processor_back_are_counted(tmp_path: Path) -> None:
    tree(tmp_path, {FILE: "50000"})
    sensor = next(each for each in readable_sensors(tmp_path) if each.kind == "num_throttles")
    assert (sensor.name, sensor.read()) == ("firmware", 0.0), "what was before is over"
    (tmp_path / FILE).write_text("50005\n")
    assert [sensor.read(), sensor.read()] == [1.0, 2.0]
    (tmp_path / FILE).write_text("50000\n")
    assert sensor.read() == 2.0
    (tmp_path / FILE).unlink()
    assert math.isnan(sensor.read())


def test_where_there_is_no_such_firmware(tmp_path: Path) -> None:
    assert firmware_throttling(tmp_path) is None


@pytest.mark.parametrize(("answer", "num"), [("throttled=0x4\n", 1.0), ("throttled=0x40000\n", 0.0), ("", math.nan)])
def test_the_commands_answer(answer: str, num: float) -> None:
    assert HeldBack(lambda: answer)() == pytest.approx(num, nan_ok=True)


def test_the_command_is_not_run_at_each_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["throttled=0x4\n"])
    monkeypatch.setattr(raspberry_pi, "_answer", lambda: next(answers))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    count = firmware_throttling(Path("/"))
    assert count is not None
    assert [count(), count()] == [1.0, 2.0]
