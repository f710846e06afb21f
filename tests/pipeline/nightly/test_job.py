"""The nightly job on a tiny fleet: what is made, served, promoted and refused, and what the report says of it."""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.gate.baseline import read_baseline
from tests.conftest import Command, Said
from tests.pipeline.nightly.fleets import UNGATED, change, fleet_of


@pytest.fixture
def nightly(command: Command, tiny: Path) -> Command:
    """`trtforge nightly` on a fleet, with the store in the current folder."""
    return lambda fleet, *options: command("nightly", fleet, *options)


def night(fleet: Path) -> dict[str, Any]:
    return dict(json.loads((fleet.parent / "nightly/nightly.json").read_text()))


def states(fleet: Path) -> dict[str, tuple[str, int]]:
    return {f"{line['model']}.{line['device']}": (line["state"], line["status"]) for line in night(fleet)["lines"]}


def line(fleet: Path, name: str) -> dict[str, Any]:
    (record,) = (line for line in night(fleet)["lines"] if f"{line['model']}.{line['device']}" == name)
    return dict(record)


def test_a_fleet_from_its_first_night_on(nightly: Command, plan: Path, command: Command) -> None:
    fleet = fleet_of(plan, "a", "b", "broken")
    change(fleet.parent / "broken/plan.toml", "tiny.onnx", "none.onnx")

    dry = nightly(fleet, "--dry-run")
    assert dry.status == 0
    assert [text.partition(":")[0] for text in dry.out.splitlines()] == ["a.here", "b.here", "broken.here"]
    assert "a.here: export: nothing like it is in the store\n" in dry.out
    assert "none.onnx: does not exist" in dry.out
    assert not (fleet.parent / "nightly").exists(), "a dry run writes nothing"

    # The first night: what lacks nothing but a baseline becomes the first one; the broken plan stops no other.
    first = nightly(fleet)
    assert first.status == 2, first.err
    assert states(fleet) == {"a.here": ("made", 0), "b.here": ("made", 0), "broken.here": ("failed", 2)}
    assert "the plan or its data is wrong" in first.out
    assert "Night 1: 3 lines, 2 made, 0 unchanged; 1 to look at" in first.out
    made = line(fleet, "a.here")
    assert (made["outcome"], made["promoted"], made["baseline"]) == ("pass", True, "")
    good = read_baseline(Path(".trtforge/baselines/a.here")).record.engine
    assert (good.digest, good.name) == (made["candidate"]["digest"], "int8@onnxruntime")
    assert line(fleet, "broken.here")["sentence"].startswith(str(fleet.parent / "broken/none.onnx"))

    # Nothing changed: nothing is made, nothing is measured, and the report says so in a line.
    (fleet.parent / "broken/plan.toml").write_text((fleet.parent / "a/plan.toml").read_text())
    (fleet.parent / "broken").rename(fleet.parent / "c")
    shutil.rmtree(fleet.parent / "c")
    before = sorted(path for path in Path(".trtforge").rglob("*"))
    second = nightly(fleet)
    assert (second.status, second.err) == (0, "")
    assert second.out.splitlines()[0] == "Night 2: 2 lines, 0 made, 2 unchanged; all good"
    assert states(fleet) == {"a.here": ("served", 0), "b.here": ("served", 0)}
    assert sorted(path for path in Path(".trtforge").rglob("*")) == before

    # One plan changed: it alone is made, the report says why, and by which command it is made again.
    change(fleet.parent / "b/plan.toml", 'method = "minmax"', 'method = "mse"')
    third = nightly(fleet)
    assert third.status == 0, third.out
    assert states(fleet) == {"a.here": ("served", 0), "b.here": ("made", 0)}
    record = line(fleet, "b.here")
    assert record["why"] == ["[calibrate] method minmax -> mse"]
    assert record["baseline"], "it was held against the last good engine"
    assert record["command"].startswith(f"trtforge gate {fleet.parent / 'b/plan.toml'} --store .trtforge -o ")
    assert "--baseline b.here --budget 'size_mib <= 1.0 x baseline' --set gate.pays=false" in record["command"]
    again = command(*shlex.split(record["command"])[1:])
    assert again.status == 0, again.err
    rows = (fleet.parent / "nightly/history.csv").read_text().splitlines()
    assert [row.split(",")[1:4] for row in rows[1:]] == [["1", "a", "here"], ["1", "b", "here"], ["3", "b", "here"]]


def test_what_fails_its_gate_is_not_promoted_and_stays_on_the_list(nightly: Command, plan: Path) -> None:
    fleet = fleet_of(plan, "a")
    assert nightly(fleet).status == 0
    good = line(fleet, "a.here")["candidate"]["digest"]
    change(fleet.parent / "a/plan.toml", "[calibrate]", '[quantize]\nexclude = ["Conv*"]\n[calibrate]')
    change(fleet, "1.0 x", "0.5 x")
    failed = nightly(fleet)
    assert failed.status == 5
    assert "must not ship:" in failed.out
    assert (line(fleet, "a.here")["promoted"], line(fleet, "a.here")["baseline"]) == (False, good)
    assert read_baseline(Path(".trtforge/baselines/a.here")).record.engine.digest == good
    # The next night nothing is measured again, and it is no better.
    later = nightly(fleet)
    assert (later.status, states(fleet)) == (5, {"a.here": ("served", 5)})
    # Another budget decides anew, without anything being built.
    change(fleet, "0.5 x", "2 x")
    assert nightly(fleet).status == 0
    record = line(fleet, "a.here")
    assert (record["why"], record["promoted"]) == (["[gate], [benchmark] or the metric changed"], True)


def test_what_was_rolled_back_from_is_not_promoted_again(nightly: Command, plan: Path, command: Command) -> None:
    fleet = fleet_of(plan, "a")
    assert nightly(fleet).status == 0
    good = line(fleet, "a.here")["candidate"]["digest"]
    change(fleet.parent / "a/plan.toml", 'method = "minmax"', 'method = "mse"')
    assert nightly(fleet).status == 0
    newer = line(fleet, "a.here")["candidate"]["digest"]
    assert newer != good
    assert command("baseline", "rollback", "a.here").status == 0
    assert nightly(fleet).status == 0
    record = line(fleet, "a.here")
    assert record["why"] == ["the last good engine is another one since"]
    assert (record["candidate"]["digest"], record["baseline"], record["promoted"]) == (newer, good, False)
    assert "not promoted: this engine was withdrawn on " in record["sentence"]
    assert nightly(fleet).status == 0
    assert states(fleet) == {"a.here": ("served", 0)}


def test_without_gates_it_goes_as_far_as_the_fleet_says(nightly: Command, plan: Path) -> None:
    fleet = fleet_of(plan, "a", text=UNGATED.replace("build", "validate").replace("[nightly]", "jobs = 2\n[nightly]"))
    assert nightly(fleet).status == 0
    record = line(fleet, "a.here")
    assert (record["state"], record["outcome"], record["candidate"]) == ("made", None, None)
    assert nightly(fleet).status == 0
    assert states(fleet) == {"a.here": ("served", 0)}
    assert not Path(".trtforge/baselines").exists()


def test_only_some_lines_and_always(nightly: Command, plan: Path) -> None:
    fleet = fleet_of(plan, "a", "b", text=UNGATED)
    assert nightly(fleet, "--only", "a").status == 0
    assert states(fleet) == {"a.here": ("made", 0)}
    assert nightly(fleet, "--only", "b.*").status == 0
    assert states(fleet) == {"a.here": ("left out", 0), "b.here": ("made", 0)}
    assert nightly(fleet, "--only", "a", "--always").status == 0
    assert line(fleet, "a.here")["why"] == ["it is always measured again"]
    assert "--only 'z': matches no model or device of the fleet" in nightly(fleet, "--only", "z").err


def test_a_night_that_was_stopped_goes_on(nightly: Command, plan: Path) -> None:
    fleet = fleet_of(plan, "a", "b", text=UNGATED)
    assert nightly(fleet, "--only", "a").status == 0
    (fleet.parent / "nightly/nightly.json").unlink()  # As if it had been killed before the report.
    assert nightly(fleet).status == 0
    assert night(fleet)["night"] == 1
    assert states(fleet) == {"a.here": ("made", 0), "b.here": ("made", 0)}, "a was made in this night"


def test_two_at_once_on_one_store_are_refused(nightly: Command, plan: Path) -> None:
    fleet = fleet_of(plan, "a")
    Path(".trtforge").mkdir()
    with Path(".trtforge/nightly.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second: Said = nightly(fleet)
    assert second.status == 3
    assert second.err == "trtforge: .trtforge: another nightly job works on this store; wait for its end\n"


def test_a_folder_of_something_else_is_not_written_into(nightly: Command, plan: Path) -> None:
    fleet = fleet_of(plan, "a")
    (fleet.parent / "nightly").mkdir()
    (fleet.parent / "nightly/photo.jpg").touch()
    refused = nightly(fleet)
    assert refused.status == 2
    assert "photo.jpg: is no part of a nightly report" in refused.err
