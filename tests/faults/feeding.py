"""Feeds each input of `broken_files.py` to the command, in a fork of this process with a bound on time and memory.

    python -m tests.faults.feeding WORK --every N [--only TEXT]

prints a line of JSON for each; `--quick` leaves out what TensorFlow reads, which takes long to load. Right is a
sentence, a status of the project's table, nothing left beside, a bound that is met.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from tests.faults.broken_files import Broken, all_broken
from tests.faults.injection import load_everything, run
from tests.faults.scenarios import EVALUATION, GATE, PREPARING, RUN, SHAPES, copied, prepare
from tests.pipeline.bundles import unpacked

MOST_SECONDS, MOST_BYTES = 30, 6 << 30
"""Of the CPU's time, since others may keep the machine busy; of address space, which libraries take two GiB of."""
BUNDLE = ("pack", "plan.toml", "-o", "bundle.tar")
MAKING = (
    *PREPARING,
    ("build", "net.onnx", *SHAPES, "-o", "engine.onnx"),
    ("infer", "net.onnx", *EVALUATION, "-o", "outputs.json"),
    ("ranges", "convert", "ranges", "--tensorrt", "8.5.2", "-o", "table.cache"),
    ("ranges", "convert", "ranges", "--to", "ort", "-o", "table.flatbuffers"),
    ("ranges", "convert", "ranges", "--to", "ort", "-o", "table.json"),
    ("tolerate", "net.onnx", "--data", "many.npy", "--num-draws", "3", "-o", "tolerances.json"),
    RUN,
    BUNDLE,
    (*GATE, "-o", "new-gate"),
    ("baseline", "set", "good", "new-gate"),
)
"""Calls that make a file of each kind."""


@dataclass(frozen=True)
class Fed:
    """What one input came to."""

    name: str
    status: int
    seconds: float
    text: str
    faults: list[str]
    excuse: str


def make_one_of_each(folder: Path, log: Path) -> None:
    """A folder with a file of each kind, all right."""
    prepare(folder)
    np.save(folder / "image.npy", np.load(folder / "data.npz")["x_evaluation"])
    np.save(folder / "many.npy", np.random.default_rng(5).normal(size=(64, 4, 8, 8)).astype(np.float32))
    (folder / "names.json").write_text(json.dumps({"image": "image:0"}))
    (folder / "circle.onnx").symlink_to("circle.onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 8, 8] x) => (float[N, 3] y)'
        "{ p = GlobalAveragePool (x) y = Flatten (p) }"
    )
    onnx.save(model, folder / "pictures.onnx")
    (folder / "pictures").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"pictures/{number}.png")
    (folder / "pictures/labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(8)))
    for arguments in MAKING:
        status = run(arguments, folder, log)
        assert status == 0, f"{arguments}: {status}\n{log.read_text()}"
    unpacked(folder / "bundle.tar").rename(folder / "bundle")
    (folder / "device").rmdir()


def faults_of(broken: Broken, status: int, text: str, left: list[str]) -> list[str]:
    """What is wrong with how a call ended."""
    lines = [line for line in text.splitlines() if line.strip()]
    faults = []
    if "Traceback" in text:
        faults.append(f"traceback: {lines[-1][:300]}")
    if status == 0 and not broken.may_pass:
        faults.append("taken as if it were right")
    if status not in (0, *broken.statuses):
        faults.append(f"status {status}")
    if status != 0 and not any(line.startswith(("trtforge:", "Error:", "Usage:")) for line in lines):
        faults.append("no sentence")
    if any(character in text for character in "\x1b\x00\x07"):
        faults.append("control characters")
    if status != 0 and len(max(lines, key=len, default="")) > 5000:
        faults.append("a line of more than 5000 letters")
    return faults + [f"left: {name}" for name in left]


def feed(broken: Broken, template: Path, folder: Path, log: Path) -> Fed:
    """One input to a fork of this process."""
    copied(template, folder)
    broken.write(folder)
    before = {path.name for path in folder.iterdir()}
    begin = time.monotonic()
    status = run(broken.arguments, folder, log, bounds)
    return _fed(broken, status, time.monotonic() - begin, log.read_text(errors="replace"), folder, before)


def feed_a_process(broken: Broken, template: Path, folder: Path, log: Path) -> Fed:
    """One input to the real command."""
    copied(template, folder)
    broken.write(folder)
    before = {path.name for path in folder.iterdir()}
    root = Path(__file__).resolve().parents[2]
    begin = time.monotonic()
    with log.open("w") as stream:
        status = subprocess.run(
            [sys.executable, "-m", "pipeline", *broken.arguments],
            cwd=folder, stdout=stream, stderr=stream, env=os.environ | {"PYTHONPATH": str(root)},
        ).returncode  # fmt: skip
    return _fed(broken, status, time.monotonic() - begin, log.read_text(errors="replace"), folder, before)


def bounds() -> None:
    """Of each process."""
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


def _fed(broken: Broken, status: int, seconds: float, text: str, folder: Path, before: set[str]) -> Fed:
    outputs = {"out.onnx", "out.onnx.json", "out", "out.json", "out.cache", "o", ".trtforge"}
    left = sorted(path.name for path in folder.iterdir() if path.name not in before and path.name.startswith("."))
    left += [path.name for path in folder.iterdir() if status and path.name in outputs - before - {".trtforge"}]
    left = [name for name in left if name != ".trtforge"]
    faults = faults_of(broken, status, text, left)
    return Fed(broken.name, status, seconds, text[-600:], faults, broken.may_pass if status == 0 else "")


def main() -> None:
    """As the first lines say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", action="store_true")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    load_everything()
    template = work / "template"
    if not template.exists():
        make_one_of_each(template, work / "log")
    chosen = [broken for broken in all_broken(template) if options.only in broken.name]
    if options.quick:
        chosen = [broken for broken in chosen if not broken.name.endswith((".h5", ".keras", "savedmodel"))]
    do = feed_a_process if options.processes else feed
    for broken in chosen[:: options.every]:
        sys.stdout.write(json.dumps(asdict(do(broken, template, work / "folder", work / "log"))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
