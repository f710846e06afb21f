"""What a nightly run costs where nothing changed, where one plan of many did, and in memory by the number of plans.

    python benchmarks/nightly.py --plans 1000 --distinct 100 --work /tmp/nightly --output benchmarks/results/nightly.md

Makes that many plans, each with a small network and data of its own, in three precisions for ONNX Runtime; with
``--distinct`` further ones have copies of the first so many, whose results then are there already. The first
night makes them all (some ten CPU seconds each; a run that was stopped goes on), and is not counted. Then `trtforge
nightly` runs in a process of its own, again and again: CPU seconds of it and of all that it started, and its peak
memory. Beside it the same as many commands, `trtforge gate` on each plan, of which a few are run and the rest reckoned.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.calibration import cpu_name
from benchmarks.compiled import compile_program

PLAN = """
[model]
source = "model.onnx"
[model.inputs.image]
min = [1, 3, 16, 16]
opt = [8, 3, 16, 16]
max = [32, 3, 16, 16]
[data.calibration]
path = "data.npz"
inputs = { image = "calibration" }
[data.evaluation]
path = "data.npz"
inputs = { image = "evaluation" }
[benchmark]
num_threads = 1
[gate]
candidate = "int8@onnxruntime"
pays = false
html = false
"""
FLEET = """
[fleet]
plans = ["models/*/plan.toml"]
[nightly]
budgets = ["size_mib <= 1.05 x baseline"]
report = "nightly-{num}"
"""
REPEATS = 5
OUT_OF_BOUNDS = 5
"""Of a hundred networks with random weights one is judged to be; what it costs is the same."""
NUM_COMMANDS = 3


@dataclass(frozen=True)
class Cost:
    """Of one process, and of those that it waited for."""

    cpu_seconds: float
    peak_mib: float
    status: int


def make_plan(folder: Path, seed: int) -> None:
    """A network of two convolutions and a matrix product, with data of its own."""
    random = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((random.standard_normal(shape) * 0.2).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"], name="dense"),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])]
    tensors = [weights("w1", 8, 3, 3, 3), weights("w2", 16, 8, 3, 3), weights("w3", 16, 10)]
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    samples = {"calibration": (64, 3, 16, 16), "evaluation": (128, 3, 16, 16)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in samples.items()}
    np.savez(folder / "data.npz", calibration=arrays["calibration"], evaluation=arrays["evaluation"])
    (folder / "plan.toml").write_text(PLAN)


IN_ONE_PROCESS = """
import sys
from pipeline.machine import child_process

child_process.call = lambda log, what, function, *args, **kwargs: function(*args, **kwargs)
child_process.call_with_progress = lambda log, what, tell, function, *args, **kwargs: function(tell, *args, **kwargs)
from pipeline.command.cli import status_of

sys.exit(status_of(sys.argv[1:]))
"""
"""Makes the same results in a tenth of the time."""


def trtforge(work: Path, *arguments: object, script: str = "") -> Cost:
    """What a command costs; ``script`` in the place of `python -m pipeline`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(work / "cache")}
    command = [sys.executable, *(("-c", script) if script else ("-m", "pipeline")), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status))


def nights(work: Path, num: int) -> list[Cost]:
    """Nights in which nothing changed, of the first ``num`` plans."""
    (work / f"fleet-{num}.toml").write_text(
        FLEET.format(num=num).replace('["models/*/plan.toml"]', str([f"models/m{i:04d}/plan.toml" for i in range(num)]))
    )
    first = trtforge(work, "nightly", f"fleet-{num}.toml", script=IN_ONE_PROCESS)
    assert first.status in (0, OUT_OF_BOUNDS), f"the first night of {num} plans ended with {first.status}"
    return [trtforge(work, "nightly", f"fleet-{num}.toml") for _ in range(REPEATS)]


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def make_plans(work: Path, num: int, distinct: int) -> None:
    """So many plans, of which so many have files of their own content."""
    for index in range(num):
        folder = work / f"models/m{index:04d}"
        if folder.exists():
            continue
        if index < distinct:
            make_plan(folder, index)
        else:
            shutil.copytree(work / f"models/m{index % distinct:04d}", folder)


def one_changed(work: Path, num: int) -> tuple[Cost, Cost]:
    """A night in which one plan changed, and the gate of that plan alone after another such change."""
    plan = work / "models/m0000/plan.toml"
    text = plan.read_text()
    plan.write_text(f"{text}\n[calibrate]\nmethod = 'mse'\n")
    night = trtforge(work, "nightly", f"fleet-{num}.toml")
    plan.write_text(f"{text}\n[calibrate]\nmethod = 'percentile'\n")
    alone = trtforge(work, "gate", plan, "--budget", "size_mib <= 1", "-o", "alone")
    plan.write_text(text)
    trtforge(work, "nightly", f"fleet-{num}.toml")
    return night, alone


def main() -> None:
    """Make, measure, print."""
    compile_program()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--distinct", type=int, default=0, help="plans with files of their own; 0: all")
    parser.add_argument("--work", type=Path, required=True, help="folder; what is made there is used again")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    work: Path = arguments.work
    distinct = arguments.distinct or arguments.plans
    make_plans(work, arguments.plans, distinct)
    sizes = sorted({max(arguments.plans // share, 1) for share in (100, 10, 2, 1)})
    rows = []
    for num in sizes:
        costs = nights(work, num)
        rows.append((num, median([cost.cpu_seconds for cost in costs]), max(cost.peak_mib for cost in costs)))
    help_cost = trtforge(work, "--help")
    commands = [
        trtforge(work, "gate", f"models/m{i:04d}/plan.toml", "--budget", "size_mib <= 1", "-o", "alone")
        for i in range(min(NUM_COMMANDS, arguments.plans))
    ]
    each = median([cost.cpu_seconds for cost in commands])
    changed, alone = one_changed(work, arguments.plans)
    _, whole, _ = rows[-1]
    num_results = sum(1 for _ in (work / ".trtforge").glob("*/*/result.json"))
    text = "\n".join(
        [
            "# A night of many plans",
            "",
            f"Made by `python benchmarks/nightly.py --plans {arguments.plans} --distinct {distinct} --work FOLDER "
            f"--output benchmarks/results/nightly.md`, {cpu_name()}. Each plan: a small network and data in files of "
            f"its own ({distinct} different ones), FP32, FP16 and INT8 for ONNX Runtime, gated; the store has "
            f"{num_results} results. CPU seconds of the process and of all that it started, median of {REPEATS} runs; "
            "peak memory of the largest.",
            "",
            "| plans, nothing changed | CPU s | ms a plan | peak MiB |",
            "|---:|---:|---:|---:|",
            *(f"| {num} | {cpu:.2f} | {1e3 * cpu / num:.1f} | {peak:.0f} |" for num, cpu, peak in rows),
            "",
            f"`trtforge --help` alone: {help_cost.cpu_seconds:.2f} CPU s. The same {arguments.plans} plans as so many "
            f"commands, `trtforge gate` on each, of which {len(commands)} were run: {each:.2f} CPU s each, "
            f"{each * arguments.plans:.0f} s for all, {each * arguments.plans / whole:.0f} times as much.",
            "",
            f"One plan of {arguments.plans} changed: {changed.cpu_seconds:.2f} CPU s; `trtforge gate` on such a plan "
            f"alone: {alone.cpu_seconds:.2f} CPU s; so the rest cost {changed.cpu_seconds - alone.cpu_seconds:.2f} s.",
            "",
        ]
    )
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
