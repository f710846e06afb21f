"""What `--on` costs beside copying and building by hand: the same bundle, by ssh to an sshd of this machine.

    python benchmarks/remote.py --mib 50 --rounds 3 --output benchmarks/results/remote.md

Makes a plan whose bundle has that size (nearly all of it evaluation samples), starts an sshd of its own on this
machine, with an empty home for what logs in, and measures in turns the wall time of

- by hand: `trtforge pack`, `scp` of the bundle, `ssh` with scripts/build_on_jetson in a checkout that is there, and
  `scp` of the report and the store's engines back;
- `trtforge run --on`: first where nothing is there, then where program and bundle are there, which is run again.

Before each round the device's home is emptied, and all results there are made anew. All that the plan's first half
makes is in the desk's store before the first round, for both. The network is loopback: what a slow one adds is the same
for both, but for the program, which is copied once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.calibration import cpu_name
from tests.conftest import tiny_model
from tests.pipeline.remote.devices import Device, client_of, device_in

SAMPLE_BYTES = 4 * 32 * 32 * 4
PLAN = """
[model]
source = "tiny.onnx"

[data]
calibration = { path = "data.npz", limit = 64 }
evaluation = { path = "data.npz", labels = "y" }
metric = "top1"

[lint]
allow = ["labels", "overlap", "few"]

[pack]
backends = ["onnxruntime"]

[report]
html = false
"""
WAYS = ("by hand", "--on, nothing there", "--on again, nothing changed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=50, help="size of the bundle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "device").mkdir()
        desk = desk_in(folder / "desk", options.mib)
        with device_in(folder / "device") as device:
            environment = os.environ | {"TRTFORGE_SSH": client_of(device), "PYTHONPATH": str(ROOT)}
            run([sys.executable, "-m", "pipeline", "pack", "plan.toml", "-o", "bundle.tar"], desk, environment)
            num_bytes = (desk / "bundle.tar").stat().st_size
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(options.rounds):
                empty(device)
                seconds[WAYS[0]].append(by_hand(device, desk, environment))
                empty(device)
                for way in WAYS[1:]:
                    seconds[way].append(by_command(desk, environment))
                print(number + 1, {way: round(taken[-1], 2) for way, taken in seconds.items()}, file=sys.stderr)
    text = report(seconds, num_bytes, options.mib, options.rounds)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text)


def desk_in(folder: Path, mib: int) -> Path:
    """A folder with a plan, its network and its data, drawn once and for all."""
    folder.mkdir()
    random = np.random.default_rng(19)
    num_samples = mib * (1 << 20) // SAMPLE_BYTES
    images = random.normal(size=(num_samples, 4, 32, 32)).astype(np.float32)
    np.savez(folder / "data.npz", image=images, y=np.arange(num_samples) % 3)
    model = tiny_model()
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = 32
    onnx.save(model, folder / "tiny.onnx")
    (folder / "plan.toml").write_text(PLAN, encoding="utf-8")
    return folder


def empty(device: Device) -> None:
    """Nothing is left of a run before."""
    shutil.rmtree(device.home)
    device.home.mkdir()


def by_hand(device: Device, desk: Path, environment: Mapping[str, str]) -> float:
    """Seconds of the commands that docs/jetson.md has for it."""
    config = ["-q", "-F", str(device.folder / "ssh_config")]
    script = f"READY={shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'scripts/build_on_jetson'))}"
    commands = (
        [sys.executable, "-m", "pipeline", "pack", "plan.toml", "-o", "bundle.tar"],
        ["scp", *config, "bundle.tar", f"orin:{device.home}/bundle.tar"],
        ["ssh", *config, "orin", f"cd {shlex.quote(str(device.home))} && {script} bundle.tar --backend onnxruntime"],
        ["scp", *config, "-r", f"orin:{device.home}/bundle/trtforge-report", "by-hand-report"],
        ["scp", *config, "-r", f"orin:{device.home}/bundle/.trtforge/build", "by-hand-engines"],
    )
    began = time.perf_counter()
    for command in commands:
        run(command, desk, environment)
    seconds = time.perf_counter() - began
    for name in ("by-hand-report", "by-hand-engines"):
        shutil.rmtree(desk / name)
    return seconds


def by_command(desk: Path, environment: Mapping[str, str]) -> float:
    """Seconds of one command."""
    began = time.perf_counter()
    run(
        [sys.executable, "-m", "pipeline", "run", "plan.toml", "--on", "orin", "--on-python", sys.executable],
        desk,
        environment,
    )
    return time.perf_counter() - began


def run(command: list[str], cwd: Path, environment: Mapping[str, str]) -> None:
    """A command that has to succeed, or to find accuracy out of bounds, which is no matter here."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 5):
        sys.exit(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stderr}")


def report(seconds: Mapping[str, list[float]], num_bytes: int, mib: int, rounds: int) -> str:
    """The page."""
    hand = seconds[WAYS[0]]
    rows = []
    for way, taken in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, hand)]
        spread = f"{min(taken):.2f} to {max(taken):.2f}"
        rows.append(f"| {way} | {statistics.median(taken):.2f} | {spread} | {statistics.median(ratios):.2f} |")
    command = f"python benchmarks/remote.py --mib {mib} --rounds {rounds} --output benchmarks/results/remote.md"
    return "\n".join(
        [
            "# One command from the desk",
            "",
            f"Made by `{command}` on",
            f"{cpu_name()}, {os.cpu_count()} cores; {num_bytes / (1 << 20):.1f} MiB of bundle, sshd on loopback, ONNX",
            "Runtime at both ends; wall time of whole commands, in turns; the ratio is the median of the rounds'.",
            "",
            "| way | median s | s | ratio to by hand |",
            "|---|---|---|---|",
            *rows,
            "",
            "The goal for the second row is at most 1.2. By hand: pack, scp, build_on_jetson by ssh, scp of results.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
