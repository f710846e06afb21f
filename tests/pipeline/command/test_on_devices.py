"""`--on`: a plan packed here, built and gated on a device by ssh, and what it made brought here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.command.on_devices import backend_of
from pipeline.command.on_options import OnOptions
from pipeline.errors import ConfigError
from pipeline.gate.baseline import gate_from_folder
from pipeline.plan import read_plan
from pipeline.remote.ssh import VARIABLE
from pipeline.report.table import report_from_json
from tests.conftest import plan_in, tiny_in
from tests.pipeline.bundles import unpacked
from tests.pipeline.remote.devices import Device, client_of, device_in, needs_sshd

if TYPE_CHECKING:
    from tests.conftest import Command, Packed, Said

HERE = ("--on", "orin", "--on-python", sys.executable, "--backend", "onnxruntime")


@pytest.fixture(scope="module")
def orin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A device, also reached as `nano`."""
    with device_in(tmp_path_factory.mktemp("orin"), "nano") as device:
        yield device


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network's plan, with FP32 alone, whose results stay for the next test."""
    made = tmp_path_factory.mktemp("desk")
    tiny_in(made)
    plan = plan_in(made)
    plan.write_text(plan.read_text().replace('["fp32", "int8"]', '["fp32"]') + "\n[gate]\npays = false\nhtml = false\n")
    return made


@pytest.fixture
def desk(orin: Device, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the plan is the current one, and ssh reaches the device."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setenv(VARIABLE, client_of(orin))
    monkeypatch.chdir(folder)
    return folder


def ended(said: Said, status: int = 0) -> Said:
    assert said.status == status, said.err
    return said


@needs_sshd
def test_engines_records_and_report_come_to_the_desk(desk: Path, command: Command, orin: Device) -> None:
    said = ended(command("build", "plan.toml", *HERE))
    engine = "trtforge-on-orin/engines/fp32@onnxruntime/model.onnx"
    assert said.out == f"fp32@onnxruntime\t{engine}\n"
    assert "[orin] trtforge: build " in said.err
    folder = desk / "trtforge-on-orin"
    record = report_from_json(folder / "report/report.json")
    assert [(variant.name, variant.artifact) for variant in record.variants] == [
        ("fp32@onnxruntime", str(desk / engine))
    ]
    beside = json.loads((desk / f"{engine}.json").read_text())
    assert beside["backend"] == "onnxruntime"
    assert {path.name for path in orin.home.iterdir()} == {".trtforge"}, "nothing lies beside our own folder"
    # The report and the engine are of use here.
    assert "fp32@onnxruntime" in ended(command("report", folder / "report/report.json")).out
    budgets = ("--budget", "size_mib <= 1", "--data", "data.npz", "-o", desk / "own-gate")
    assert "may ship" in ended(command("gate", "--candidate", engine, "--no-html", *budgets)).out
    # The same again as `run`: it prints the table, nothing is copied, what was built is served.
    again = ended(command("run", "plan.toml", *HERE))
    assert "copies" not in again.err
    assert "[orin] trtforge: build " in again.err
    assert "served" in again.err
    assert again.out.endswith("trtforge-on-orin/report/report.json\n")
    assert " fp32@onnxruntime " in again.out


@needs_sshd
def test_a_gate_is_held_there_against_what_is_kept_there(desk: Path, command: Command) -> None:
    chosen = desk / "chosen"
    first = ended(command("gate", "plan.toml", *HERE, "--budget", "size_mib <= 1", "-o", chosen))
    assert "fp32@onnxruntime may ship" in first.out
    assert first.out.endswith(f"{chosen}\n")
    gate = gate_from_folder(chosen)
    assert gate.outcome == "pass"
    assert gate.engines[0].path == str(desk / "trtforge-on-orin/engines/fp32@onnxruntime/model.onnx")
    assert (desk / "trtforge-on-orin/gate/gate.xml").is_file()
    failed = command("gate", "plan.toml", *HERE, "--budget", "size_mib <= 0.0001")
    assert failed.status == 5
    assert "[orin] trtforge: must not ship: fp32@onnxruntime: " in failed.err
    assert gate_from_folder(desk / "trtforge-on-orin/gate").outcome == "fail"
    unknown = command("gate", "plan.toml", *HERE, "--budget", "size_mib <= 1 x baseline", "--baseline", "last")
    assert unknown.status == 6, unknown.err
    assert "o baseline 'last' is kept in ../../../store yet" in unknown.out


@needs_sshd
def test_several_devices_and_the_worst_exit_status(desk: Path, command: Command, orin: Device) -> None:
    config = orin.folder / "ssh_config"
    text = config.read_text()
    try:
        config.write_text(text + "Host off\nHostName 127.0.0.1\nPort 1\n")
        said = command("run", "plan.toml", *HERE[2:], "--on", "orin,off")
        assert said.status == 3
        assert "trtforge: off: cannot be reached (" in said.err
        assert said.out.startswith("orin:\n")
        assert not (desk / "trtforge-on-off").exists()
    finally:
        config.write_text(text)


@needs_sshd
def test_what_the_plan_says_goes_along(desk: Path, command: Command, orin: Device) -> None:
    """A key of the command line is in the bundle's plan, which then is another bundle."""
    before = set((orin.ours / "work").iterdir()) if orin.ours.exists() else set()
    said = ended(command("run", "plan.toml", *HERE, "--set", "benchmark.protocol.seed=7"))
    (new,) = set((orin.ours / "work").iterdir()) - before
    assert "seed = 7" in (new / "bundle/plan.toml").read_text()
    assert "The command line changed a key of the plan: --set benchmark.protocol.seed=7" in " ".join(said.out.split())


@needs_sshd
def test_an_error_there_is_told_here(desk: Path, command: Command) -> None:
    said = command("gate", "plan.toml", *HERE, "--candidate", "int4@onnxruntime", "--budget", "size_mib <= 1")
    assert said.status == 2
    assert "[orin] trtforge: plan.toml: [gate] candidate: there is no variant 'int4@onnxruntime'" in said.err
    assert said.out == ""


@needs_sshd
def test_ctrl_c_stops_both_sides(desk: Path, orin: Device, tmp_path: Path) -> None:
    """The desk's process group gets SIGINT, as from a terminal, while engines are timed there for minutes."""
    plan = tmp_path / "long.toml"
    for name in ("tiny.onnx", "data.npz"):
        shutil.copy(desk / name, tmp_path)
    text = (desk / "plan.toml").read_text()
    plan.write_text(text.replace("warmup_seconds = 0.0", "warmup_seconds = 500.0"))
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "pipeline", "run", str(plan), *HERE, "--store", str(desk / ".trtforge")]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "[orin] trtforge: validate" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130, "".join(lines) + rest
    assert rest.endswith(
        "trtforge: interrupted; no incomplete results are left, a plan continues from what was finished\n"
    )
    ends = [json.loads(file.read_text()) for file in orin.ours.glob("work/*/end.json")]
    assert [end["stopped"] for end in ends].count(True) == 1
    assert not (tmp_path / "trtforge-on-orin-long").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "plan.toml", "--clean"), "--clean: has an effect only with --on; drop it"),
        (("run", "plan.toml", "--on-python", "x"), "--on-python: has an effect only with --on; drop it"),
        (("build", "tiny.onnx", "--on", "orin"), "--on: takes a plan (.toml), tiny.onnx is none"),
        (("gate", "--candidate", "tiny.onnx", "--on", "orin"), "--on: takes a plan (.toml)"),
        (("run", "plan.toml", "--on", "-oProxyCommand=x"), "'-oProxyCommand=x': is no address for ssh"),
        (("run", "plan.toml", "--on", "a,a"), "--on 'a': is there twice"),
        (("run", "none.toml", "--on", "a"), "none.toml: cannot be read"),
        (("build", "plan.toml", "--on", "a", "--precision", "int8"), "--precision: has no effect together with --on"),
        (("gate", "plan.toml", "--on", "a", "--metric", "top1"), "--metric: has no effect together with a plan"),
        (("gate", "plan.toml", "--on", "a,b", "-o", "x"), "-o: is one folder, and --on names several machines"),
        (("run", "plan.toml", "--on", "a", "--backend", "no"), "--backend 'no': no such backend"),
        (
            ("run", "plan.toml", "--on", "a", "--backend", "onnxruntime", "--backend", "reference"),
            "--on: builds for one backend, and onnxruntime, reference are named",
        ),
    ],
)
def test_wrong_commands(plan: Path, command: Command, arguments: tuple[str, ...], words: str) -> None:
    said = command(*arguments)
    assert said.status == 2
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert not (plan.parent / ".trtforge").exists(), "nothing was begun"


def test_without_a_client_nothing_is_begun(plan: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere/ssh")
    said = command("run", "plan.toml", "--on", "orin")
    assert said.status == 3
    assert said.err == (
        "trtforge: /nowhere/ssh: cannot be run (No such file or directory); sudo apt install openssh-client, or name a "
        "client with TRTFORGE_SSH\n"
    )
    assert not (plan.parent / ".trtforge").exists()


def test_a_folder_of_somebody_else_is_not_replaced(plan: Path, command: Command) -> None:
    (plan.parent / "trtforge-on-orin").mkdir()
    (plan.parent / "trtforge-on-orin/mine").write_text("")
    said = command("run", "plan.toml", "--on", "orin")
    assert said.status == 2
    assert "trtforge-on-orin/mine exists, but the folder of a device is replaced as a whole" in said.err


def test_the_plan_of_a_bundle_is_not_packed_again(
    packed_once: Packed, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unpacked(packed_once.bundle, tmp_path))
    said = command("run", "plan.toml", "--on", "orin", "--backend", "reference")
    assert said.status == 2
    assert "plan.toml: is the plan of a bundle; give --on the plan that the bundle was packed from" in said.err


def test_a_build_of_a_file_does_not_wait_for_what_a_plan_needs() -> None:
    code = "import pipeline.command.verbs.engines.build, sys; print('pipeline.flow' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_backend_is_that_of_pack_unless_it_is_named(plan: Path) -> None:
    read = read_plan(plan)
    assert backend_of(read, ()) == "tensorrt"
    assert backend_of(read, ("reference",)) == "reference"
    both = read_plan(plan, ('pack.backends=["tensorrt", "onnxruntime"]',))
    with pytest.raises(
        ConfigError, match=r"tensorrt, onnxruntime are named \(\[pack\] backends\); name it with --backend"
    ):
        backend_of(both, ())
    assert backend_of(both, ("onnxruntime",)) == "onnxruntime"
    assert not OnOptions()
    assert OnOptions(("orin",))
