"""A fleet with a device that is reached by ssh: gated there, promoted there, and told here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import ConfigError
from pipeline.gate.baseline import stored_baseline
from pipeline.nightly.fleet import lines_of, read_fleet
from pipeline.remote.ssh import VARIABLE
from tests.pipeline.nightly.fleets import change, fleet_of
from tests.pipeline.remote.devices import Device, client_of, device_in, needs_sshd

if TYPE_CHECKING:
    from tests.conftest import Command

FLEET = f"""
[fleet]
plans = ["*/plan.toml"]

[nightly]
budgets = ["size_mib <= 1.0 x baseline"]
html = false

[device.orin]
on = "orin"
on_python = "{sys.executable}"

[device.orin.set]
pack = {{ backends = ["onnxruntime"] }}
gate = {{ pays = false, html = false }}
variants = {{ precisions = ["fp32"] }}
"""


@pytest.fixture(scope="module")
def orin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    with device_in(tmp_path_factory.mktemp("orin")) as device:
        yield device


def line(fleet: Path) -> dict[str, Any]:
    """What is told of the one line."""
    return dict(json.loads((fleet.parent / "nightly/lines/a.orin/line.json").read_text()))


@needs_sshd
def test_a_line_is_gated_and_promoted_there(
    plan: Path, command: Command, orin: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setenv(VARIABLE, client_of(orin))
    fleet = fleet_of(plan, "a", text=FLEET)
    first = command("nightly", fleet)
    assert first.status == 0, first.out + first.err
    record = line(fleet)
    assert (record["state"], record["outcome"], record["promoted"]) == ("made", "pass", True)
    assert record["sentence"] == "it passed all that needs no baseline, and is the last good engine now"
    assert f"--on orin --on-python {sys.executable} --promote a.orin" in record["command"]
    kept = stored_baseline("a.orin", orin.ours / "store")
    assert kept is not None, "it is kept there"
    assert kept.record.engine.digest == record["candidate"]["digest"]
    assert not Path(".trtforge/baselines").exists()
    # Nothing changed: nobody is asked.
    second = command("nightly", fleet)
    assert second.status == 0
    assert second.out.startswith("Night 2: 1 line, 0 made, 1 unchanged")
    # Another budget: it is held against what is kept there.
    change(fleet, "1.0 x", "0.5 x")
    third = command("nightly", fleet)
    assert third.status == 5, third.out
    record = line(fleet)
    assert (record["outcome"], record["baseline"], record["promoted"]) == ("fail", kept.record.engine.digest, False)


@needs_sshd
def test_a_device_that_is_off_stops_no_other(
    plan: Path, command: Command, orin: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, client_of(orin))
    orin.stop()
    fleet = fleet_of(plan, "a", text=FLEET)
    assert command("nightly", fleet).status == 3
    record = line(fleet)
    assert (record["state"], record["status"]) == ("failed", 3)
    assert record["sentence"].startswith("orin: cannot be reached (")
    orin.start()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('on = "orin"', 'on = "-x"', "[device.orin] on '-x': is no address for ssh"),
        ('on = "orin"', 'on = "a,b"', "[device.orin] on: names several machines; write a table for each"),
        ('on = "orin"', "", "[device.orin] on_python: has an effect only with on; drop it"),
        ("[nightly]", 'until = "validate"\n[nightly]', '[fleet] until: is "validate", and [device.orin] on builds or'),
    ],
)
def test_wrong_tables(plan: Path, old: str, new: str, words: str) -> None:
    fleet = fleet_of(plan, "a", text=FLEET)
    change(fleet, old, new)
    with pytest.raises(ConfigError) as error:
        read_fleet(fleet)
    assert words in str(error.value)


def test_a_line_knows_where_it_is_built(plan: Path) -> None:
    (only,) = lines_of(read_fleet(fleet_of(plan, "a", text=FLEET)))
    assert (only.name, only.on, only.on_python) == ("a.orin", "orin", sys.executable)


def test_a_gate_of_what_is_not_built_there_is_refused_before_anything_is_sent(plan: Path, command: Command) -> None:
    fleet = fleet_of(plan, "a", text=FLEET.replace("gate = {", 'gate = { candidate = "int8@onnxruntime",'))
    asked = command("nightly", fleet)
    assert (asked.status, line(fleet)["state"]) == (2, "failed")
    assert line(fleet)["sentence"].startswith(str(fleet.parent / "a/plan.toml"))
    assert "[gate] candidate: there is no variant 'int8@onnxruntime'" in line(fleet)["sentence"]
    assert not (fleet.parent / "nightly/lines/a.orin/log.txt").exists()
