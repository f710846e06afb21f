"""Baselines: kept whole from a gate that passed, refused from another machine, and caught when they are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.command.cli import status_of
from pipeline.errors import ConfigError, DataError, NotDecided
from pipeline.gate import baseline as baseline_module
from pipeline.gate import decide
from pipeline.gate.baseline import baseline_named, generations, machine_change, read_baseline, set_baseline
from pipeline.gate.record import SCHEMA_VERSION, GateRecord
from pipeline.json_record import record_from_json
from pipeline.machine.identity import Machine, this_machine
from pipeline.machine.upgrade import MachineChange
from tests.conftest import process_as_before
from tests.pipeline.gate.gates import ANY_MACHINE, Engines, make_engines

if TYPE_CHECKING:
    from tests.conftest import Command, Said

STORE = Path(".trtforge")
QUICK = (*ANY_MACHINE, "--num-threads", 1, "--no-html")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return make_engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def gate(engines: Engines, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`trtforge gate` of a candidate, in a folder of the test's own; further words are its options."""
    monkeypatch.chdir(tmp_path)

    def call(candidate: Path, *words: object) -> Said:
        data = ("--data", engines.data, "--labels", "y", "--metric", "top1")
        return command("gate", "--candidate", candidate, *data, *QUICK, *words)

    return call


@pytest.fixture(scope="module")
def once(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a baseline `last-good`, set from a gate that passed."""
    folder = tmp_path_factory.mktemp("once")
    data = ("--data", engines.data, "--labels", "y", "--metric", "top1")
    held = ("--budget", "p50_ms <= 10000", "--budget", "metric >= 0.9")
    with pytest.MonkeyPatch.context() as patch, process_as_before():
        patch.chdir(folder)
        assert status_of(list(map(str, ("gate", "--candidate", engines.fp32, *data, *held, *QUICK)))) == 0
        assert status_of(["baseline", "set", "last-good", "trtforge-gate"]) == 0
    return folder


@pytest.fixture
def kept(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a baseline `last-good`, in a store of the test's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once, tmp_path, symlinks=True, dirs_exist_ok=True)
    return STORE / "baselines" / "last-good"


def test_what_is_kept(engines: Engines, kept: Path, command: Command) -> None:
    found = read_baseline(kept)
    assert found.engine.path.read_bytes() == engines.fp32.read_bytes()
    assert found.record.machine == this_machine()
    assert found.record.engine.digest == read_baseline(kept).record.engine.digest
    (measured,) = found.record.measured
    assert (kept / measured.queries_file).is_file()
    assert sorted(path.name for path in kept.parent.iterdir()) == [".generations", ".lock", "last-good"]
    shown = command("baseline", "show", "last-good")
    assert "pass: metric is 1.000" in shown.out
    assert str(found.engine.path) in shown.out
    listed = command("baseline", "list")
    assert "last-good" in listed.out
    assert "fp32.onnx" in listed.out


def test_a_later_gate_measures_it_again(engines: Engines, kept: Path, gate: Callable[..., Said]) -> None:
    said = gate(engines.slow, "--baseline", "last-good", "--budget", "p50_ms <= 1.03 x baseline")
    assert said.status == 5
    assert "must not ship: slow.onnx: p50_ms at batch 1 is" in said.err
    gated = record_from_json(Path("trtforge-gate/gate.json"), GateRecord, SCHEMA_VERSION, "")
    assert gated.baseline == "last-good"
    assert gated.baseline_set == read_baseline(kept).record.set_on
    assert [engine.name for engine in gated.engines] == ["slow.onnx", "baseline last-good"]
    assert gated.notes == ()


def test_other_labels_than_it_was_gated_on_are_said(engines: Engines, kept: Path, gate: Callable[..., Said]) -> None:
    said = gate(engines.int8, "--labels", "swapped", "--baseline", "last-good", "--budget", "metric >= 0.9")
    assert said.status == 5
    assert "the baseline has " in said.err
    assert "check the labels and the data first" in said.err
    assert "The evaluation samples or their labels are not those that baseline" in said.out


def test_the_first_one(engines: Engines, gate: Callable[..., Said], command: Command) -> None:
    held = ("--baseline", "last-good", "--budget", "p50_ms <= 1.03 x baseline", "--budget", "size_mib <= 1")
    said = gate(engines.fp32, *held)
    assert said.status == 6
    assert "is not known: no baseline 'last-good' is kept in .trtforge yet; set a first one, with `trtforge" in said.err
    assert "No baseline 'last-good' is kept in .trtforge yet." in said.out
    refused = command("baseline", "set", "last-good", "trtforge-gate")
    assert refused.status == 2
    because = "there was no baseline to compare with (p50_ms at batch 1 <= 1.03 x baseline); add --first"
    assert f"was not decided because {because}" in refused.err
    assert command("baseline", "set", "last-good", "trtforge-gate", "--first").status == 0
    assert gate(engines.fp32, *held[:2], "--budget", "p50_ms <= 99 x baseline").status == 0


def test_a_gate_that_failed_sets_nothing(
    engines: Engines, kept: Path, gate: Callable[..., Said], command: Command
) -> None:
    before = read_baseline(kept).record
    assert gate(engines.fp32, "--budget", "size_mib <= 0.0001").status == 5
    said = command("baseline", "set", "last-good", "trtforge-gate", "--first")
    assert said.status == 2
    assert "the gate of fp32.onnx did not pass (size_mib <= 0.0001: fail); a baseline must have passed" in said.err
    assert read_baseline(kept).record == before


def test_one_of_the_same_name_is_replaced(engines: Engines, kept: Path, gate: Callable[..., Said]) -> None:
    assert gate(engines.int8, "--budget", "size_mib <= 1").status == 0
    set_baseline("last-good", Path("trtforge-gate"), STORE, first=False)
    assert read_baseline(kept).engine.path.read_bytes() == engines.int8.read_bytes()
    assert sorted(path.name for path in kept.parent.iterdir()) == [".generations", ".lock", "last-good"]


def test_an_engine_in_the_store_is_linked(engines: Engines, gate: Callable[..., Said]) -> None:
    stored = STORE / "build" / "0" / "model.onnx"
    stored.parent.mkdir(parents=True)
    shutil.copy(engines.fp32, stored)
    assert gate(stored, "--budget", "size_mib <= 1").status == 0
    found = set_baseline("linked", Path("trtforge-gate"), STORE, first=False)
    assert found.engine.path.stat().st_ino == stored.stat().st_ino


def test_an_engine_that_changed_since_its_gate(engines: Engines, gate: Callable[..., Said], command: Command) -> None:
    mine = Path(shutil.copy(engines.fp32, "mine.onnx"))
    assert gate(mine, "--budget", "size_mib <= 1").status == 0
    shutil.copy(engines.slow, mine)
    said = command("baseline", "set", "last-good", "trtforge-gate")
    assert said.status == 2
    assert "mine.onnx: is not what was gated; gate it again, and set the baseline from that" in said.err
    mine.unlink()
    assert "is no longer there" in command("baseline", "set", "last-good", "trtforge-gate").err


@pytest.mark.parametrize("damage", ["engine/fp32.onnx", "baseline.json", "SHA256SUMS", "samples/fp32.onnx-batch1.npz"])
def test_a_truncated_baseline_is_caught(
    engines: Engines, kept: Path, gate: Callable[..., Said], command: Command, damage: str
) -> None:
    file = kept / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = gate(engines.fp32, "--baseline", "last-good", "--budget", "p50_ms <= 1.03 x baseline", "-o", "new")
    assert said.status == 2
    assert said.err.startswith("trtforge: baseline 'last-good': ")
    assert "set it again from a gate that passed, with `trtforge baseline set`" in said.err
    assert not Path("new").exists()
    if damage != "SHA256SUMS":
        assert f"{kept.parent / kept.readlink() / damage} is not what was set (SHA-256 differs)" in said.err
    assert "last-good" in command("baseline", "list").out
    assert command("baseline", "show", "last-good").status == 2


@pytest.mark.parametrize("num_lines", [0, 1, 2])
def test_a_list_of_sums_that_was_cut_off_between_two_lines_is_caught(kept: Path, num_lines: int) -> None:
    sums = kept / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    sums.write_text("".join(lines[:num_lines]))
    with pytest.raises(DataError, match=r"SHA256SUMS does not list .*, so it is incomplete; set it again from a gate"):
        read_baseline(kept)


def test_a_baseline_without_its_engine_is_not_whole(kept: Path) -> None:
    sums = kept / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "  engine/" not in line))
    shutil.rmtree(kept / "engine")
    with pytest.raises(DataError, match=r"its engine .*fp32\.onnx is missing; set it again"):
        read_baseline(kept)


def test_a_file_in_the_place_of_a_baseline_is_no_missing_one(kept: Path) -> None:
    kept.unlink()
    kept.write_text("not a folder")
    with pytest.raises(DataError, match="baseline 'last-good': "):
        baseline_named("last-good", STORE)


@pytest.mark.parametrize("missing", ["engine/fp32.onnx", "baseline.json", "SHA256SUMS"])
def test_a_baseline_with_a_file_missing_is_caught(kept: Path, missing: str) -> None:
    (kept / missing).unlink()
    with pytest.raises(DataError, match="baseline 'last-good': "):
        read_baseline(kept)


def on(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    """From now on this is the machine."""
    for module in (baseline_module, decide):
        patch.setattr(module, "this_machine", lambda: machine)


def test_another_machine_is_refused_with_the_fields(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = this_machine()
    elsewhere = replace(here, cpu="Example CPU 4000", board="", num_cores=64)
    on(elsewhere, monkeypatch)
    with pytest.raises(ConfigError) as caught:
        baseline_named("last-good", STORE)
    assert str(caught.value) == (
        f"baseline 'last-good': was measured on another machine (cpu {here.cpu} -> Example CPU 4000; num_cores "
        f"{here.num_cores} -> 64), and runs of different machines are not compared; gate there, or set one that was "
        "measured here"
    )
    change = machine_change("last-good", STORE, elsewhere)
    assert change is not None
    assert change.kind == "other machine"


def test_other_settings_are_to_be_set_back(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(replace(this_machine(), governor="made-up"), monkeypatch)
    with pytest.raises(ConfigError, match=r"with other settings of this machine \(governor .* -> made-up\); set them"):
        baseline_named("last-good", STORE)


def test_after_an_upgrade_nothing_is_compared_until_a_first_engine_is_accepted(
    engines: Engines, kept: Path, gate: Callable[..., Said], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = this_machine()
    later = replace(here, kernel="99.1")
    assert machine_change("last-good", STORE, here) == MachineChange("none", ())
    assert machine_change("other", STORE, here) is None
    on(later, monkeypatch)
    assert machine_change("last-good", STORE, later) == MachineChange("upgrade", (f"kernel {here.kernel} -> 99.1",))
    with pytest.raises(NotDecided, match=r"accept the first engine of the new system with `trtforge baseline set last"):
        baseline_named("last-good", STORE)
    held = ("--baseline", "last-good", "--budget", "size_mib <= 1", "--budget", "p50_ms <= 99 x baseline")
    said = gate(engines.int8, *held)
    assert said.status == 6
    upgraded = f"aseline 'last-good' was measured before this machine was upgraded (kernel {here.kernel} -> 99.1)"
    assert f"b{upgraded}, and is not compared with what is measured now; set a first one, with `trtforge" in said.err
    assert f"B{upgraded}" in " ".join(said.out.split())
    assert "add --first" in command("baseline", "set", "last-good", "trtforge-gate").err
    assert command("baseline", "set", "last-good", "trtforge-gate", "--first").status == 0
    assert gate(engines.int8, *held).status == 0
    assert [generation.record.machine.kernel for generation in generations("last-good", STORE)] == [here.kernel, "99.1"]


def test_a_gate_of_another_machine_sets_nothing(engines: Engines, gate: Callable[..., Said], command: Command) -> None:
    assert gate(engines.fp32, "--budget", "size_mib <= 1").status == 0
    record = json.loads(Path("trtforge-gate/gate.json").read_text())
    record["machine"]["num_cores"] = 64
    Path("trtforge-gate/gate.json").write_text(json.dumps(record))
    said = command("baseline", "set", "last-good", "trtforge-gate")
    assert said.status == 2
    assert "was gated on another machine (num_cores: " in said.err


def test_none_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("baseline", "list")
    assert (said.status, said.out) == (0, "")
    assert "no baseline is stored in .trtforge; set one with `trtforge baseline set`" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "last good", "x"), "baseline 'last good': is not a valid name; use letters, digits"),
        (("set", "../up", "x"), "baseline '../up': is not a valid name"),
        (("set", "good", "x"), "x: has no gate.json; give the folder that `trtforge gate` wrote"),
        (
            ("show", "good"),
            "baseline 'good': is not stored in .trtforge; set one with `trtforge baseline set`, or name its --store",
        ),
    ],
)
def test_a_wrong_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = command("baseline", *words)
    assert found.status == 2
    assert said in found.err
