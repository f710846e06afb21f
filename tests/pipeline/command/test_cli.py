"""The command: its help, its exit statuses, what goes where, and what a signal or a kill leaves behind.

When options change on purpose, renew the frozen text with
``.venv/bin/python tests/pipeline/command/test_cli.py > tests/pipeline/command/options.txt``.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from pipeline.command.cli import ROOMS, trtforge, verb_files
from tests.terminal import read_until_closed

if TYPE_CHECKING:
    from tests.conftest import Command

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = Path(__file__).with_name("options.txt")
PATIENCE_SECONDS = 300
"""How long a process may take on a machine that has much else to do; what fails hangs, and waits for so long."""

SLOW = """
import time
from pathlib import Path
import numpy as np

def batches():
    random = np.random.default_rng(3)
    for index in range(3):
        in_a_stage = any(Path(".trtforge").glob("tmp/*"))
        if index == 1 and in_a_stage and not Path("go").exists():
            Path("started").touch()
            time.sleep(1000)
        yield {"image": random.normal(size=(4, 4, 8, 8)).astype(np.float32)}
"""
"""Data that stands still in the middle of the stage that reads it, until there is a file `go`."""


OLD_PYTHON = """
import runpy, sys
sys.version_info = (3, 8, 10, "final", 0)
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""A file, run as JetPack 5's Python would."""


@pytest.mark.parametrize(("file", "status"), [("pipeline/__main__.py", 3), ("setup.py", 1)])
def test_an_older_python_is_one_sentence(file: str, status: int) -> None:
    ast.parse((ROOT / file).read_text(), feature_version=(3, 8))
    done = subprocess.run(
        [sys.executable, "-c", OLD_PYTHON, ROOT / file], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert done.stderr.startswith("trtforge: this is Python 3.8, 3.10 is the oldest that works; on JetPack 5 scripts/")
    assert done.stderr.count("\n") == 1


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """`trtforge ...` in a process group of its own, as a shell starts it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **options,
    )


def every_help() -> str:
    """`--help` of the command and of each verb, as it stands in 80 columns, without the lines of prose."""
    said = []
    commands = {name: trtforge.get_command(click.Context(trtforge), name) for name in verb_files()}
    groups = {name: group for name, group in commands.items() if isinstance(group, click.Group)}
    commands |= {f"{name} {sub}": one for name, group in groups.items() for sub, one in group.commands.items()}
    for name, command in {"": trtforge, **commands}.items():
        assert command is not None
        context = click.Context(
            command, info_name=f"trtforge {name}".strip(), terminal_width=110, help_option_names=["-h", "--help"]
        )
        text = command.get_help(context)
        said.append(text[: text.index("\n")] + "\n" + text[text.index("Options:") :])
    return "\n\n".join(said) + "\n"


def whole(store: Path) -> bool:
    """Whether nothing half-made stands where results do."""
    entries = [entry for entry in store.glob("*/*") if entry.parent.name != "tmp"]
    return bool(entries) and all((entry / "result.json").is_file() for entry in entries)


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    """Until the file is there; an error if the process ends before."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < limit, f"no {path}"
        time.sleep(0.02)


def group_is_gone(running: subprocess.Popen[str]) -> bool:
    """Whether no process of the group lives any more, given a moment."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit:
        try:
            os.killpg(running.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def slow_plan(plan: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plan with one data set standing still: calibration's in the command's process, evaluation's in another."""
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    (plan.parent / "slow.py").write_text(SLOW)
    text = plan.read_text().replace('metric = "top1"\n', "")
    which = {"calibration": '{ path = "data.npz", limit = 12 }', "evaluation": '{ path = "data.npz", labels = "y" }'}
    old = f"{request.param} = {which[request.param]}"
    assert old in text
    plan.write_text(text.replace(old, f'{request.param} = "slow:batches"'))
    return plan


def test_options_are_frozen() -> None:
    assert every_help() == OPTIONS.read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", verb_files())
def test_every_option_says_what_it_is(verb: str) -> None:
    command = trtforge.get_command(click.Context(trtforge), verb)
    assert command is not None
    assert command.help
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert silent == []


def test_help_in_a_narrow_terminal_has_one_line_per_verb(command: Command) -> None:
    said = command("--help")
    assert said.status == 0
    assert said.err == ""
    lines = said.out[said.out.index("Whole plans:") :].splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(verb_files())
    assert [line for line in lines if line and not line.startswith("  ")] == [f"{name}:" for name in ROOMS.values()]
    assert max(map(len, lines)) <= 80


def test_version(command: Command) -> None:
    said = command("--version")
    assert said.status == 0
    assert re.fullmatch(r"trtforge, version \d+\.\d+\.\d+\n", said.out)


@pytest.mark.parametrize(
    ("typed", "meant"), [("quantise", "quantize"), ("bench", "benchmark"), ("docter", "doctor"), ("reprot", "report")]
)
def test_an_unknown_verb_offers_the_nearest(command: Command, typed: str, meant: str) -> None:
    said = command(typed)
    assert said.status == 2
    assert said.out == ""
    assert f"no such verb '{typed}'; did you mean '{meant}'?" in said.err


def test_an_unknown_verb_like_nothing_lists_all(command: Command) -> None:
    said = command("zzz")
    assert said.status == 2
    assert f"no such verb 'zzz'; verbs: {', '.join(verb_files())}" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: trtforge [OPTIONS] VERB [ARGS]..."),
        (["run"], "Missing argument 'PLAN'"),
        (["quantize", "m.onnx", "--metod", "mse"], "No such option: --metod"),
        (
            ["quantize", "m.onnx", "--method", "best"],
            "'best' is not one of 'auto', 'entropy', 'minmax', 'percentile', 'mse'",
        ),
        (["build", "m.onnx", "--backend", "tensorflow"], "'tensorflow' is not one of 'litert', 'onnxruntime',"),
        (["infer", "m.onnx", "--batch-size", "x"], "'x' is not a valid integer"),
        (["show", "a", "b"], "Got unexpected extra argument (b)"),
    ],
)
def test_a_wrong_command_line_is_2(command: Command, arguments: list[str], said: str) -> None:
    found = command(*arguments)
    assert found.status == 2
    assert found.out == ""
    assert said in found.err.replace("No such option '--metod'", "No such option: --metod")


def test_0_and_what_goes_where(command: Command, plan: Path) -> None:
    said = command("run", plan)
    assert said.status == 0, said.err
    assert "fp32@onnxruntime" in said.out
    assert "int8@onnxruntime" in said.out
    assert said.out.splitlines()[-1] == str(plan.parent / "trtforge-report" / "report.json")
    assert all(line.startswith("trtforge: ") for line in said.err.splitlines())
    assert re.search(r"^trtforge: quantize  [0-9a-f]{12}  made in \d+\.\d s  int8@onnxruntime$", said.err, re.MULTILINE)
    assert "\x1b" not in said.out + said.err
    again = command("run", plan)
    assert again.status == 0
    assert [line for line in again.err.splitlines() if "made in" in line and "benchmark" not in line] == []
    assert re.search(r"^trtforge: quantize  [0-9a-f]{12}  served  int8@onnxruntime$", again.err, re.MULTILINE)


def test_2_a_plan_that_is_wrong(command: Command, plan: Path) -> None:
    plan.write_text(plan.read_text().replace("[report]", "[raport]"))
    said = command("run", plan)
    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith(f"trtforge: {plan}: unknown key 'raport'; did you mean 'report'?")
    assert not Path(".trtforge").exists()


def test_3_a_backend_that_is_not_installed(command: Command, plan: Path) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed here")
    plan.write_text(plan.read_text().replace("[calibrate]", 'backends = ["tensorrt"]\n[calibrate]'))
    said = command("run", plan)
    assert said.status == 3
    last = said.err.splitlines()[-1]
    assert last.startswith("trtforge: tensorrt: is not installed; ")
    assert "pip install tensorrt" in last
    assert list(Path(".trtforge").glob("*/*")) == [], "it was known before the first stage"


def test_4_a_truncated_model(command: Command, plan: Path) -> None:
    model = plan.parent / "tiny.onnx"
    model.write_bytes(model.read_bytes()[:-40])
    said = command("run", plan)
    assert said.status == 4
    assert said.out == ""
    assert re.fullmatch(r"trtforge: \S*tiny\.onnx: is not a whole ONNX model \(.*\); export it again\n", said.err)


def test_5_accuracy_out_of_bound_and_still_a_report(command: Command, plan: Path) -> None:
    plan.write_text(plan.read_text() + "\n[validate.int8]\natol = 1e-9\n")
    said = command("run", plan)
    assert said.status == 5
    assert "trtforge: out of tolerance: int8@onnxruntime: output 'scores' differs by up to " in said.err
    assert (plan.parent / "trtforge-report" / "report.json").is_file()
    assert "int8@onnxruntime" in said.out


def test_a_bug_of_ours_keeps_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.command.verbs.engines import doctor

    def broken(**_given: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor.doctor, "callback", broken)
    with pytest.raises(ZeroDivisionError):
        command("doctor")


@pytest.mark.parametrize("slow_plan", ["calibration", "evaluation"], indirect=True)
def test_ctrl_c_in_a_stage(command: Command, slow_plan: Path) -> None:
    folder = slow_plan.parent
    running = process("calibrate", str(slow_plan), cwd=folder)
    wait_for(folder / "started", running)
    os.killpg(running.pid, signal.SIGINT)  # As a terminal does: to every process of the group.
    out, err = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == (
        "trtforge: interrupted; no incomplete results are left, a plan continues from what was finished"
    )
    assert "Traceback" not in err
    assert group_is_gone(running)
    assert whole(folder / ".trtforge")
    assert list((folder / ".trtforge" / "tmp").iterdir()) == []

    (folder / "go").touch()
    said = command("calibrate", slow_plan)
    assert said.status == 0, said.err
    assert re.search(r"^trtforge: export    [0-9a-f]{12}  served$", said.err, re.MULTILINE)
    assert Path(said.out.strip(), "ranges.json").is_file()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("slow", ["click", "onnx"], ids=["of the command", "of a verb"])
def test_a_signal_while_code_is_loaded(tmp_path: Path, slow: str, number: int, status: int) -> None:
    wait = "import pathlib, time; pathlib.Path('started').touch(); time.sleep(600)"
    (tmp_path / f"{slow}.py").write_text(wait)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "pipeline", "export", "model.onnx", "-o", "out.onnx"]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "started", running)
    running.send_signal(number)
    _, err = running.communicate(timeout=PATIENCE_SECONDS)
    assert (running.returncode, err) == (status, "trtforge: interrupted; nothing was begun\n")


@pytest.mark.parametrize("slow_plan", ["evaluation"], indirect=True)
def test_sigterm_in_a_stage(slow_plan: Path) -> None:
    folder = slow_plan.parent
    running = process("calibrate", str(slow_plan), cwd=folder)
    wait_for(folder / "started", running)
    running.terminate()  # As systemd, Docker and CI do: to the command alone.
    _, err = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 143
    assert "trtforge: interrupted; " in err
    assert "Traceback" not in err
    assert group_is_gone(running)
    assert whole(folder / ".trtforge")
    assert list((folder / ".trtforge" / "tmp").iterdir()) == []


@pytest.mark.parametrize("slow_plan", ["evaluation"], indirect=True)
def test_kill_9_in_a_stage(command: Command, slow_plan: Path) -> None:
    folder = slow_plan.parent
    running = process("calibrate", str(slow_plan), cwd=folder)
    wait_for(folder / "started", running)
    running.kill()
    running.communicate(timeout=PATIENCE_SECONDS)
    assert group_is_gone(running), "the process of the stage outlived the command"
    assert whole(folder / ".trtforge")
    assert len(list((folder / ".trtforge" / "tmp").iterdir())) == 1

    (folder / "go").touch()
    said = command("calibrate", slow_plan)
    assert said.status == 0, said.err
    assert re.search(r"^trtforge: export    [0-9a-f]{12}  served$", said.err, re.MULTILINE)
    assert list((folder / ".trtforge" / "tmp").iterdir()) == []


def test_two_runs_on_one_store_at_once(plan: Path) -> None:
    both = [process("build", str(plan), cwd=plan.parent) for _ in range(2)]
    said = [running.communicate(timeout=PATIENCE_SECONDS) for running in both]
    assert [running.returncode for running in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert said[0][0].count("\n") == 2
    assert whole(plan.parent / ".trtforge")
    assert list((plan.parent / ".trtforge" / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("size", "status"), [("8k", 3), ("20k", 3), ("72k", 3)], ids=["before all", "in a process of its own", "later"]
)
def test_a_full_disk(plan: Path, size: str, status: int) -> None:
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*mounted, "mount -t tmpfs tmpfs ."], cwd=plan.parent, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    store = plan.parent / "store"
    store.mkdir()
    after = (
        "find store -mindepth 2 -maxdepth 2 -type d | grep -v '^store/tmp' | while read d; do ls $d/result.json; done"
    )
    script = f"mount -t tmpfs -o size={size} tmpfs store && {{ {sys.executable} -m pipeline build plan.toml"
    script += f" --store store; s=$?; ls -A store/tmp; {after}; exit $s; }}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*mounted, script], cwd=plan.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert re.fullmatch(
        r"trtforge: store: (the disk is full \(\d+ MiB free\); free some space and run again: finished results are kept"
        r"|cannot be used as a store \(No space left on device\); name another with --store)",
        done.stderr.splitlines()[-1],
    )
    assert all(line.endswith("/result.json") for line in done.stdout.splitlines())


def test_a_reader_that_leaves_early(command: Command, plan: Path) -> None:
    assert command("run", plan).status == 0
    report = plan.parent / "trtforge-report" / "report.json"
    for arguments in (["report", str(report)], ["--help"]):
        read, write = os.pipe()
        running = process(*arguments, stdout=write)
        os.close(write)
        os.close(read)  # `trtforge report ... | head -0`
        _, err = running.communicate(timeout=PATIENCE_SECONDS)
        assert err == ""
        assert running.returncode == 0


def test_colours_are_for_terminals(command: Command, plan: Path) -> None:
    assert command("run", plan).status == 0
    report = str(plan.parent / "trtforge-report" / "report.json")
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm-256color", "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-m", "pipeline", "report", report]
    with subprocess.Popen(command_line, stdout=theirs, stderr=subprocess.PIPE, env=environment) as running:
        os.close(theirs)
        seen = read_until_closed(ours)
    os.close(ours)
    assert running.returncode == 0
    assert b"\x1b[" in seen
    assert "\x1b" not in command("report", report).out


if __name__ == "__main__":
    sys.stdout.write(every_help())
