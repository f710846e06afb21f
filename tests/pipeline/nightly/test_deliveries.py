"""What passed in a night is delivered where the fleet file says: once, and again if it failed or was rolled back."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.gate.baseline import RECORD
from pipeline.nightly.deliveries import deliveries_of
from pipeline.nightly.fleet import lines_of, read_fleet
from pipeline.nightly.line import Job, Wanted, last_good
from tests.conftest import Command
from tests.pipeline.nightly.fleets import FLEET, change, fleet_of
from tests.pipeline.nightly.test_job import line, night, states

TO_TRITON = FLEET + '[device.here.deliver]\nto = "triton"\nfolder = "served"\nmax_batch = 4\n'


def versions(fleet: Path, model: str) -> list[str]:
    return sorted(path.name for path in (fleet.parent / "served" / model).iterdir() if path.is_dir())


def test_what_passed_is_delivered_once_and_again_after_a_rollback(command: Command, plan: Path) -> None:
    fleet = fleet_of(plan, "a", "b", text=TO_TRITON)
    (fleet.parent / "served").mkdir()
    (fleet.parent / "served/b").write_text("a file is in the way")
    first = command("nightly", fleet)
    # What cannot be delivered is promoted, and a line to act on, with the command that delivers it.
    assert first.status == 2, first.err
    assert states(fleet) == {"a.here": ("made", 0), "b.here": ("made", 2)}
    assert line(fleet, "a.here")["sentence"].endswith(f"; delivered to {fleet.parent / 'served/a'}")
    assert "max_batch_size: 4" in (fleet.parent / "served/a/config.pbtxt").read_text()
    failed = line(fleet, "b.here")
    assert (failed["outcome"], failed["promoted"], failed["delivered"]) == ("pass", True, "")
    assert f"; not delivered: {fleet.parent / 'served/b'}" in failed["sentence"]
    assert failed["command"].startswith(f"trtforge deliver b.here --to triton {fleet.parent / 'served'} --as b")
    (fleet.parent / "served/b").unlink()
    assert command(*shlex.split(failed["command"])[1:]).status == 0

    # The next night does it, and makes nothing; the one after does nothing at all.
    second = command("nightly", fleet)
    assert (second.status, states(fleet)) == (0, {"a.here": ("served", 0), "b.here": ("served", 0)}), second.out
    assert night(fleet)["notes"] == [f"b.here; delivered to {fleet.parent / 'served/b'}."]
    assert line(fleet, "b.here")["command"].startswith("trtforge gate ")
    before = {path: path.stat().st_mtime_ns for path in (fleet.parent / "served").rglob("*")}
    third = command("nightly", fleet)
    assert (third.status, night(fleet)["notes"]) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in (fleet.parent / "served").rglob("*")} == before

    # A new engine is a new version; a rollback is delivered too.
    old = last_good(Path(".trtforge"), "a.here")
    change(fleet.parent / "a/plan.toml", 'method = "minmax"', 'method = "mse"')
    assert command("nightly", fleet).status == 0
    assert (versions(fleet, "a"), versions(fleet, "b")) == (["1", "2"], ["1"])
    assert command("baseline", "rollback", "a.here").status == 0
    assert last_good(Path(".trtforge"), "a.here") == old
    assert command("nightly", fleet).status == 0
    assert "versions: 1" in (fleet.parent / "served/a/config.pbtxt").read_text().replace("[ 1 ]", "1")


def test_a_mixed_fleet_is_delivered_together(plan: Path) -> None:
    place = '.deliver]\nto = "triton"\nfolder = "served"\n'
    own = '[device.alone.deliver]\nto = "deepstream"\nfolder = "apps"\nnetwork_type = "detector"\n'
    file = fleet_of(plan, "a", "b", text=f"{FLEET}[device.orin{place}[device.xavier{place}{own}")
    fleet, store = read_fleet(file), Path("store")
    for name in ("a.orin", "a.xavier", "b.xavier", "b.alone", "b.here"):
        (store / "baselines" / name).mkdir(parents=True)
        (store / "baselines" / name / RECORD).write_text('{"engine": {"digest": "ab"}}')
    lines = lines_of(fleet)
    job = Job(fleet, store, None, Wanted(), len)

    def commands(*names: str) -> list[str]:
        chosen = {line for line in lines if line.name in names}
        return [" ".join(delivery.command(store)) for delivery in deliveries_of(job, lines, chosen)]

    folder = file.parent
    assert commands("a.orin", "b.orin", "a.here") == [
        f"deliver a.orin a.xavier --to triton {folder / 'served'} --as a --store store",
        f"deliver b.xavier --to triton {folder / 'served'} --as b --store store",
    ]
    assert commands("b.alone", "a.alone") == [
        f"deliver b.alone --to deepstream {folder / 'apps/b'} --plan {folder / 'b/plan.toml'} "
        "--network-type detector --store store"
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[device.a.deliver]\nto = "triton"', "[device.a.deliver] folder is missing"),
        ('[device.a.deliver]\nfolder = "m"', "[device.a.deliver] to is missing"),
        ('[device.a.deliver]\nto = "tritn"\nfolder = "m"', "triton"),
        ('[device.a.deliver]\nto = "cpp"\nfolder = "m"\nmax_batch = 2', "max_batch: has an effect only with"),
        ('[device.a.deliver]\nto = "cpp"\nfolder = "m"\nnetwork_type = "detector"', "network_type: has an effect only"),
        ('[device.a.deliver]\nto = "triton"\nfolder = "m"\nmax_batch = -1', "max_batch is -1"),
        ('[device.a]\non = "nano"\n[device.a.deliver]\nto = "triton"\nfolder = "m"', "has no effect with on"),
        ('until = "build"\n[device.a.deliver]\nto = "triton"\nfolder = "m"', 'only with [fleet] until = "gate"'),
        (
            '[device.a.deliver]\nto = "cpp"\nfolder = "m"\n[device.b.deliver]\nto = "cpp"\nfolder = "m/"',
            "[device.b.deliver] folder: [device.a.deliver] names 'm/' too; name another",
        ),
        (
            '[device.a.deliver]\nto = "triton"\nfolder = "m"\n[device.b.deliver]\nto = "triton"\nfolder = "m"\n'
            "max_batch = 3",
            "with other keys; write the same",
        ),
    ],
)
def test_what_is_wrong_with_a_place_is_said(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "fleet.toml").write_text(f'[fleet]\nplans = ["*/plan.toml"]\n{text}\n')
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        read_fleet(tmp_path / "fleet.toml")
    assert str(caught.value).startswith(str(tmp_path / "fleet.toml"))
