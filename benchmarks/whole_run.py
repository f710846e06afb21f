"""What a whole run costs: by stage, beside its lower bound, and beside the same job made by hand.

CPU seconds are of all threads and all children; peak memory is that of the whole tree of processes, looked at every
50 ms (pages that processes share count in each). Everything of a network is measured in one run, one thing after the
other, so that ratios hold on a machine that others use too; seconds do less so.

- *Ours*: the stages of a plan in an empty store, as `trtforge run` does: fp32, fp16 and int8, for onnxruntime and
  tensorrt_rtx, 128 calibration and 256 evaluation images. Neither the imports nor the report are in it.
- *Lower bound*: what no such run can do without: the converter, one pass of the trained network over the evaluation
  images, one of each engine that answers, one pass over the calibration images, each a process of its own with nothing
  else in it, as many images at once as ours; and the builder's and the benchmark's own time, taken from our run. An
  engine that cannot run here is simulated by ours; its pass is what ONNX Runtime takes for its file, as it is.
- *For ONNX Runtime alone*: the same plan with that backend alone, in another empty store: the job that is done by hand.
- *By hand*: tf2onnx, quant_pre_process, quantize_static with Entropy, ONNX Runtime's converter to float16,
  ``polygraphy run`` of the three models on batches of the same size, and a loop that times each at batch 1. It builds
  nothing for TensorRT.

Networks: keras.applications with random weights, as in `benchmarks/calibration.py`; and any plan. Usage::

    python benchmarks/whole_run.py FOLDER --plans PLAN.toml --output benchmarks/results/whole_run.md

FOLDER keeps the networks and images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks.calibration import EXPORT, MODELS, Cost, aside, cpu_name, make_images, run
from benchmarks.compiled import compile_program
from calibration.data.batches import input_specs_from_onnx
from engines import backend as engine_backend
from pipeline.flow import run as run_plan
from pipeline.plan import Plan, read_plan
from pipeline.results import Results
from pipeline.stages.infer import usual_batch_size
from pipeline.store import Stopwatch, Store

NUM_CALIBRATION, NUM_EVALUATION, AT_ONCE = 128, 256, 32
LOOK_SECONDS, PAGE = 0.05, os.sysconf("SC_PAGESIZE")
MOST_GIB = 20.0
BY_HAND_BACKEND = "onnxruntime"
TIMED_SECONDS = 3.0
"""Of each model by hand; our own benchmark chooses by itself, and interleaves."""
PLAN = """\
[model]
source = "{name}_saved"
[model.inputs.keras_tensor]
min = [1, 224, 224, 3]
opt = [8, 224, 224, 3]
max = [32, 224, 224, 3]
[data]
calibration = {{ path = "{name}_calibration.npy" }}
evaluation = {{ path = "{name}_evaluation.npy" }}
[variants]
precisions = ["fp32", "fp16", "int8"]
backends = ["onnxruntime", "tensorrt_rtx"]
[benchmark]
num_threads = 1
"""
TRAINED = """
import sys, numpy as np, tensorflow as tf
saved, data, batch = sys.argv[1], np.load(sys.argv[2], mmap_mode="r"), int(sys.argv[3])
function = tf.saved_model.load(saved).signatures["serving_default"]
name = next(iter(function.structured_input_signature[1]))
for row in range(0, len(data), batch):
    function(**{name: tf.constant(np.array(data[row : row + batch]))})
"""
PASS = """
import sys, numpy as np, onnxruntime as ort
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
name, data, batch = session.get_inputs()[0].name, np.load(sys.argv[2], mmap_mode="r"), int(sys.argv[3])
for row in range(0, len(data), batch):
    session.run(None, {name: np.array(data[row : row + batch])})
"""
TO_FLOAT16 = """
import sys, onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
onnx.save(convert_float_to_float16(onnx.load(sys.argv[1]), keep_io_types=True), sys.argv[2])
"""
TO_INT8 = """
import sys, numpy as np
from onnxruntime.quantization import CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process
model, data, prepared, out, name = sys.argv[1:]
class Reader(CalibrationDataReader):
    def __init__(self): self.images, self.row = np.load(data, mmap_mode="r"), 0
    def get_next(self):
        self.row += 1
        return None if self.row > len(self.images) else {name: np.array(self.images[self.row - 1 : self.row])}
quant_pre_process(model, prepared, skip_symbolic_shape=True)
quantize_static(prepared, out, Reader(), quant_format=QuantFormat.QDQ, calibrate_method=CalibrationMethod.Entropy)
"""
LOADER = """
import numpy as np
def load_data():
    data = np.load({data!r}, mmap_mode="r")
    for row in range(0, len(data), {batch}):
        yield {{{name!r}: np.array(data[row : row + {batch}])}}
"""
LOOP = """
import sys, time, numpy as np, onnxruntime as ort
settings = ort.SessionOptions()
settings.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: np.array(np.load(sys.argv[2], mmap_mode="r")[:1])}
end, times = time.perf_counter() + float(sys.argv[3]), []
while time.perf_counter() < end:
    start = time.perf_counter()
    session.run(None, feed)
    times.append(time.perf_counter() - start)
print(np.percentile(times, [50, 99]))
"""


@dataclass(frozen=True)
class Part:
    """A stage, or a process, and what it took."""

    name: str
    cpu_s: float
    peak_mib: float
    times: int = 1


@dataclass(frozen=True)
class Measured:
    """A network: ours by stage, the lower bound by part, ours for ONNX Runtime alone, and by hand by process."""

    name: str
    ours: tuple[Part, ...]
    total: Part
    bound: tuple[Part, ...]
    alone: tuple[Part, ...]
    total_alone: Part
    by_hand: tuple[Part, ...]


def resident_bytes(process: int) -> int:
    """Of a process and all below it; 0 if it has just ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        threads = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except (OSError, IndexError):
        return 0
    return pages * PAGE + sum(resident_bytes(child) for child in children)


class Peaks:
    """The peak of memory of each stage."""

    def __init__(self) -> None:
        """Of none."""
        self.mib: dict[str, float] = {}

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """While a stage works: its name, and its variant."""
        with watched_memory() as seen:
            yield
        stage = what.split()[0]
        self.mib[stage] = max(self.mib.get(stage, 0.0), max(seen) / 2**20)


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """A list that grows by the bytes of this process and its children, as long as it is entered."""
    seen, ended = [resident_bytes(os.getpid())], threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            seen.append(resident_bytes(os.getpid()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def run_stages(path: Path, folder: Path, backend: str) -> None:
    """Ours, in this process, ``parts.json`` to the folder: what a plan asks for, or that for one backend alone.

    With all that it asks for, the models, and the samples as arrays, go to the folder too.
    """
    peaks, stopwatch = Peaks(), Stopwatch()
    store = Store(folder / f"store{backend}", working=peaks.working)
    plan = read_plan(path)
    if backend:
        plan = replace(plan, variants=replace(plan.variants, backends=(backend,)))
    made = run_plan(plan, store, "benchmark")
    parts = []
    for stage in dict.fromkeys(entry.stage for entry in store.account):
        own = [entry for entry in store.account if entry.stage == stage]
        parts.append(Part(stage, sum(entry.cpu_seconds for entry in own), peaks.mib[stage], len(own)))
    parts.append(Part("all", stopwatch.spent().cpu_seconds, max(peaks.mib.values())))
    if not backend:
        keep(plan, made, folder)
    (folder / "parts.json").write_text(json.dumps([vars(part) for part in parts]))


def keep(plan: Plan, made: Results, folder: Path) -> None:
    """The engines' models, and the samples as the network gets them: what the other two start from."""
    network = next(iter(made.networks.values()))
    answering = {(network.fp32.path, False): None}
    for variant, model in made.models.items():
        is_simulated = model.path != network.fp32.path and bool(engine_backend(variant.backend).why_not_run())
        answering[model.path, is_simulated] = None
    for number, (path, _) in enumerate(answering):
        shutil.copyfile(path, folder / f"model{number}.onnx")
    specs = input_specs_from_onnx(network.fp32.path)
    if len(specs) != 1:
        raise SystemExit(f"{plan.path}: has {len(specs)} inputs; the other two ways are for one")
    for kind, samples in (("calibration", made.calibration), ("evaluation", made.evaluation)):
        assert samples is not None
        np.save(folder / f"{kind}.npy", np.concatenate([feed[specs[0].name] for feed in samples.batches(AT_ONCE)]))
    assert made.evaluation is not None
    facts = {"input": specs[0].name, "source": str(made.source.path)}
    facts["batch"] = str(usual_batch_size(next(iter(made.evaluation.batches(1))), 1))
    (folder / "network.json").write_text(json.dumps(facts))


def measured(name: str, path: Path) -> Measured:
    """Ours, the lower bound, and by hand."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        *ours, total = parts_of_run(path, folder, "")
        *alone, total_alone = parts_of_run(path, folder, BY_HAND_BACKEND)
        commands = Commands(folder)
        bound = [commands.part(part, *command) for part, command in commands.of_bound().items()]
        bound += [part for part in ours if part.name in ("build", "benchmark")]
        by_hand = [commands.part(part, *command) for part, command in commands.by_hand().items()]
        return Measured(name, tuple(ours), total, tuple(bound), tuple(alone), total_alone, tuple(by_hand))


def parts_of_run(path: Path, folder: Path, backend: str) -> list[Part]:
    """Of `run_stages`, in a process of its own; the last is the sum."""
    aside(run_stages, path, folder, backend)
    return [Part(**part) for part in json.loads((folder / "parts.json").read_text())]


class Commands:
    """The processes of the lower bound and of the way by hand."""

    def __init__(self, folder: Path) -> None:
        """What `keep` left there."""
        self._folder = folder
        facts = json.loads((folder / "network.json").read_text())
        self._input, self._source, self._batch = facts["input"], Path(facts["source"]), facts["batch"]
        self._evaluation, self._calibration = str(folder / "evaluation.npy"), str(folder / "calibration.npy")
        self._from_tensorflow = self._source.is_dir()

    def part(self, name: str, *command: str) -> Part:
        """Run it as a process, and say what it took; NaN where it failed or took more than ``MOST_GIB``."""
        cost = run([sys.executable, *command], self._folder, MOST_GIB) or Cost(np.nan, np.nan, np.nan)
        return Part(name, cost.cpu_s, cost.peak_mib)

    def _converter(self) -> dict[str, tuple[str, ...]]:
        out = str(self._folder / "converted.onnx")
        if not self._from_tensorflow:
            return {}
        return {
            "tf2onnx": ("-m", "tf2onnx.convert", "--saved-model", str(self._source), "--opset", "17", "--output", out)
        }

    def of_bound(self) -> dict[str, tuple[str, ...]]:
        """By name."""
        parts = self._converter()
        if self._from_tensorflow:
            parts["a pass of the trained network"] = ("-c", TRAINED, str(self._source), self._evaluation, self._batch)
        for model in sorted(self._folder.glob("model*.onnx")):
            parts[f"a pass of {model.name}"] = ("-c", PASS, str(model), self._evaluation, self._batch)
        first = str(self._folder / "model0.onnx")
        return parts | {"a pass over the calibration images": ("-c", PASS, first, self._calibration, "1")}

    def by_hand(self) -> dict[str, tuple[str, ...]]:
        """By name; the models are made of ours in FP32, which tf2onnx's would be too."""
        fp32 = str(self._folder / "model0.onnx")
        fp16, int8, prepared = (str(self._folder / f"{name}.onnx") for name in ("fp16", "int8", "prepared"))
        loader, polygraphy = self._folder / "loader.py", str(Path(sys.executable).with_name("polygraphy"))
        loader.write_text(LOADER.format(data=self._evaluation, batch=self._batch, name=self._input))
        parts = self._converter() | {
            "convert_float_to_float16": ("-c", TO_FLOAT16, fp32, fp16),
            "quant_pre_process, quantize_static": ("-c", TO_INT8, fp32, self._calibration, prepared, int8, self._input),
        }
        for name, model in (("fp32", fp32), ("fp16", fp16), ("int8", int8)):
            out = ("--data-loader-script", str(loader), "--save-outputs", str(self._folder / f"{name}.json"))
            parts[f"polygraphy run {name}"] = (polygraphy, "run", model, "--onnxrt", *out)
        for name, model in (("fp32", fp32), ("fp16", fp16), ("int8", int8)):
            parts[f"a timing loop, {name}"] = ("-c", LOOP, model, self._evaluation, str(TIMED_SECONDS))
        return parts


def make_network(folder: Path, name: str) -> Path:
    """Its SavedModel, images and plan, unless they are there."""
    plan, images = folder / f"{name}.toml", folder / f"{name}_images.npy"
    if not plan.exists():
        aside(make_images, images, NUM_CALIBRATION + NUM_EVALUATION, MODELS[name])
        command = [sys.executable, "-c", EXPORT, name, str(images), str(folder / f"{name}_saved")]
        subprocess.run(command, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True)
        stored = np.load(images, mmap_mode="r")
        np.save(folder / f"{name}_calibration.npy", stored[:NUM_CALIBRATION])
        np.save(folder / f"{name}_evaluation.npy", stored[NUM_CALIBRATION:])
        plan.write_text(PLAN.format(name=name), encoding="utf-8")
    return plan


def table(title: str, parts: tuple[Part, ...], total: Part) -> list[str]:
    """The parts and their sum."""
    lines = ["", f"| {title} | times | CPU s | peak MiB |", "|---|---:|---:|---:|"]
    lines += [f"| {part.name} | {part.times} | {part.cpu_s:.1f} | {part.peak_mib:.0f} |" for part in parts]
    return [*lines, f"| **{total.name}** | | **{total.cpu_s:.1f}** | {total.peak_mib:.0f} |"]


def sum_of(parts: tuple[Part, ...], name: str) -> Part:
    """NaN where a part failed."""
    return Part(name, sum(part.cpu_s for part in parts), float(np.max([part.peak_mib for part in parts])))


def page(networks: list[Measured], folder: Path) -> str:
    """The results as Markdown."""
    words = [Path(word).name if word.endswith(".toml") else word for word in sys.argv[1:]]
    command = " ".join(["python", "benchmarks/whole_run.py", *words]).replace(str(folder), "FOLDER")
    lines = ["# What a whole run costs", "", f"`{command}`", ""]
    lines.append(
        f"{cpu_name()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end. CPU seconds of all "
        "threads; peak memory of all processes together, by stage. What each column is: see the head of the script."
    )
    titles = [
        "ours, CPU s",
        "lower bound",
        "ours / bound",
        "ours for ONNX Runtime alone",
        "by hand",
        "ratio of the two",
    ]
    lines += ["", f"| | {' | '.join(titles)} |", "|---" * 7 + "|"]
    for each in networks:
        ours, bound = each.total.cpu_s, sum_of(each.bound, "").cpu_s
        alone, by_hand = each.total_alone.cpu_s, sum_of(each.by_hand, "").cpu_s
        lines.append(
            f"| {each.name} | {ours:.0f} | {bound:.0f} | {ours / bound:.2f} | {alone:.0f} | {by_hand:.0f} "
            f"| {alone / by_hand:.2f} |"
        )
    for each in networks:
        lines += ["", f"## {each.name}", *table("ours", each.ours, each.total)]
        lines += table("lower bound", each.bound, sum_of(each.bound, "sum"))
        lines += table("ours for ONNX Runtime alone", each.alone, each.total_alone)
        lines += table("by hand", each.by_hand, sum_of(each.by_hand, "sum"))
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure each network and write the page."""
    compile_program()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--plans", nargs="*", type=Path, default=[], help="plans of other networks")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    plans = {plan.resolve().parent.name: plan.resolve() for plan in options.plans}
    plans |= {name: make_network(folder, name) for name in options.models}
    networks = []
    for name, plan in plans.items():
        networks.append(measured(name, plan))
        text = page(networks, folder)
        if options.output is not None:
            options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
