"""What it costs to find that nothing has changed: plans whose results are all in the store, asked for once more.

    python benchmarks/served.py --plans 100 --before 2a20c0b --output benchmarks/results/served.md

Makes small networks with data and a plan each, runs all plans to `build`, and then measures the CPU time, user's and
system's, of whole processes that do so again and are served everything: one process for all plans, and one command
`trtforge build` for one plan. Each first with an empty cache folder, as after an upgrade, and then with what the
process before left there. ``--before`` names a revision of this repository: it is laid in a folder of its own, makes
its own store, and takes turns with the program of today.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.calibration import cpu_name

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N,3,16,16] image) => (float[N,10] scores) {
  first = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, kernel)
  active = Relu (first)
  second = Conv <kernel_shape = [3, 3], strides = [2, 2]> (active, narrow)
  pooled = GlobalAveragePool (second)
  flat = Flatten (pooled)
  scores = Gemm (flat, weight, offset)
}
"""
WEIGHTS = {"kernel": (8, 3, 3, 3), "narrow": (16, 8, 3, 3), "weight": (16, 10), "offset": (10,)}
PLAN = """
[model]
source = "model.onnx"

[data]
calibration = { path = "data.npz", inputs = { image = "calibration" } }
evaluation = { path = "data.npz", inputs = { image = "evaluation" } }

[variants]
precisions = ["fp32", "fp16", "int8"]
backends = ["onnxruntime"]
"""
RESULTS_PER_PLAN = 11
SETTLED_SECONDS = 2.5
"""After so long a file counts as settled, and what it holds is remembered."""

RUN_ALL = """
import contextlib, importlib, io, pathlib, sys
import pipeline

flat = (pathlib.Path(pipeline.__file__).parent / "isolate.py").exists()  # As it was before there were rooms.
if sys.argv[1] == "make":  # All in this process, which makes the same and takes a tenth of the time.
    alone = importlib.import_module("pipeline.isolate" if flat else "pipeline.machine.child_process")
    alone.call = lambda log, what, function, *args: function(*args)
    with_progress = "call_and_hear" if flat else "call_with_progress"
    setattr(alone, with_progress, lambda log, what, on_progress, function, *args: function(on_progress, *args))
status_of = importlib.import_module("pipeline.cli" if flat else "pipeline.command.cli").status_of
said = io.StringIO()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
    for plan in sys.argv[2:]:
        if status := status_of(["build", plan, "--store", "store"]):
            break
lines = said.getvalue().splitlines()
if status:
    sys.exit(chr(10).join(lines[-5:]))
print(sum("  served" in line for line in lines), sum("made in" in line for line in lines))
"""
"""For either program: runs plans in one process, and prints how many results were served and how many made."""


@dataclass(frozen=True)
class Side:
    """One program, the folder with the plans and its store, and the cache folder that it fills."""

    name: str
    program: Path
    fleet: Path

    def run(self, *arguments: str) -> tuple[float, str]:
        """CPU seconds of a Python process of this program, user's and system's together; and what it printed."""
        environment = os.environ | {"PYTHONPATH": str(self.program), "XDG_CACHE_HOME": str(self.fleet / "cache")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # A program that is installed is compiled.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.fleet, env=environment, stdout=out, stderr=error
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            error.seek(0)
            if process.returncode:
                raise RuntimeError(f"{self.name}: {arguments[-1]}: {error.read().strip()[-2000:]}")
            return used.ru_utime + used.ru_stime, out.read()

    def run_all(self, what: str) -> tuple[float, int, int]:
        """CPU seconds of one process that runs all plans; how many results it was served, and how many it made."""
        seconds, said = self.run("-c", RUN_ALL, what, *self.plans())
        served, made = map(int, said.split())
        return seconds, served, made

    def plans(self) -> list[str]:
        """Every plan's path below the fleet."""
        return sorted(str(path.relative_to(self.fleet)) for path in self.fleet.glob("*/plan.toml"))

    def forget(self) -> None:
        """Empty the cache folder."""
        shutil.rmtree(self.fleet / "cache", ignore_errors=True)

    def measured(self) -> dict[str, float]:
        """CPU seconds of each of ``ROWS``, all served."""
        self.forget()
        found = {}
        for row, name in (("all, first", "serve"), ("all", "serve")):
            found[row], served, made = self.run_all(name)
            if made or not served:
                raise RuntimeError(f"{self.name}: {made} results were made again")
        command = ("-m", "pipeline", "build", self.plans()[0], "--store", "store")
        found["one"], _ = self.run(*command)
        found["import"], _ = self.run("-c", "import pipeline.flow")
        found["others"], _ = self.run("-c", "import onnx, onnx_ir, cattrs, click")
        self.forget()
        found["one, first"], _ = self.run(*command)
        return found


GOALS = (
    "Goals, set on a machine where 2a20c0b took 25 s for 100 plans and 1.2 to 1.5 s for one command: 2 s (a ratio of "
    "12.5) and 0.7 s (a ratio of 1.7 to 2.1). What a command cannot go below is the start of the interpreter with the "
    "libraries of others: `python -c 'import onnx, onnx_ir, cattrs, click'`."
)
ROWS = {
    "all, first": "all plans in one process, the cache folder empty",
    "all": "all plans in one process",
    "one, first": "one command `trtforge build`, the cache folder empty",
    "one": "one command `trtforge build`",
    "import": "of it: the imports (`import pipeline.flow`)",
    "others": "of these: the libraries of others (`import onnx, onnx_ir, cattrs, click`)",
}


def write_fleet(folder: Path, num: int) -> None:
    """So many plans, each with a network and data of its own."""
    for index in range(num):
        place = folder / f"m{index:03d}"
        place.mkdir(parents=True)
        random = np.random.default_rng(index)
        model = onnx.parser.parse_model(NETWORK)
        for name, shape in WEIGHTS.items():
            values = random.normal(scale=0.2, size=shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, place / "model.onnx")
        images = [random.normal(size=(size, 3, 16, 16)).astype(np.float32) for size in (64, 128)]
        np.savez(place / "data.npz", calibration=images[0], evaluation=images[1])
        (place / "plan.toml").write_text(PLAN)


def lay_revision(revision: str, folder: Path) -> None:
    """The program as it was: its files alone, and what was compiled of it for today's."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)


def sides_in(folder: Path, before: str, num: int) -> list[Side]:
    """Today's program and, where one is named, a revision's; each has made all results of a fleet of its own."""
    sides = [Side("now", ROOT, folder / "now")]
    if before:
        lay_revision(before, folder / "revision")
        sides.insert(0, Side(before, folder / "revision", folder / "before"))
    for side in sides:
        write_fleet(side.fleet, num)
        _, served, made = side.run_all("make")
        print(f"{side.name}: {made} results made, {served} served", file=sys.stderr, flush=True)
    time.sleep(SETTLED_SECONDS)
    return sides


def lines(found: Mapping[str, list[dict[str, float]]], num: int) -> list[str]:
    """The table: medians of CPU seconds by side, and the ratio where there are two."""
    head = [*found, "ratio"] if len(found) > 1 else [*found]
    table = [f"| CPU seconds | {' | '.join(head)} |", "|---" + "|---:" * len(head) + "|"]
    for row, says in ROWS.items():
        medians = [statistics.median(one[row] for one in runs) for runs in found.values()]
        cells = [f"{median:.2f}" for median in medians]
        cells += [f"{medians[0] / medians[1]:.1f}"] if len(medians) > 1 else []
        table.append(f"| {says.replace('all plans', f'{num} plans')} | {' | '.join(cells)} |")
    return table


def page(found: Mapping[str, list[dict[str, float]]], num: int, loads: Sequence[float]) -> str:
    """The page of results."""
    num_runs = len(next(iter(found.values())))
    return "\n".join(
        [
            "# What it costs to find that nothing has changed",
            "",
            f"`python {' '.join(['benchmarks/served.py', *sys.argv[1:]])}`",
            "",
            f"{num} plans of a small CNN, {num * RESULTS_PER_PLAN} results, all in the store; user's and system's CPU "
            f"time of whole processes, the interpreter's start included: medians of {num_runs} runs, in which the "
            f"programs take turns. {cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}; the load "
            f"average was {min(loads):.1f} to {max(loads):.1f}, so that only the ratios mean something elsewhere.",
            "",
            *lines(found, num),
            "",
            GOALS,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plans", type=int, default=100, help="how many")
    parser.add_argument("--runs", type=int, default=5, help="of each measurement")
    parser.add_argument("--before", default="", help="a revision of this repository to compare with")
    parser.add_argument("--output", type=Path, help="write the page here")
    given = parser.parse_args()
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="served-") as folder:
        sides = sides_in(Path(folder), given.before, given.plans)
        found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
        for _ in range(given.runs):
            for side in sides:
                found[side.name].append(side.measured())
            loads.append(os.getloadavg()[0])
    text = page(found, given.plans, loads)
    print(text)
    if given.output:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
