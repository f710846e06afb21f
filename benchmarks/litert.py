"""The techniques of LiteRT beside ONNX Runtime's, TensorFlow's own converter and the upstream's INT8 files.

For each network of a folder laid out as for `benchmarks/networks.py`: every precision through the pipeline on both
runtimes, the converter's INT8 with its own ranges, and the published INT8 file. All answer the same evaluation samples,
and are timed in turns, in random order, one sample at a time on one thread, by the CPU time of that thread, which other
programs disturb least. Then INT8 by several methods with one calibration sample in 200 multiplied by 20; and our runner
beside a loop that has nothing but the interpreter. Usage::

    python benchmarks/litert.py FOLDER --output benchmarks/results/litert.md
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks.calibration import cpu_name
from benchmarks.candidates import TFLITE, called, python
from benchmarks.networks import NETWORKS, Network
from calibration.data.batches import Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.ranges.ranges import RangeMethod
from engines import backend
from engines.backends import litert
from engines.contract import Runner
from pipeline.artifact import TfliteModel
from pipeline.command.options import model_specs
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.ptq import Ptq
from pipeline.store import Store

Array = npt.NDArray[Any]
NAMES = ("kws_dscnn/kws_ref_model", "resnet8_cifar10/resnet8_savedmodel", "fashion_mnist/fashion_mnv2_tiny_savedmodel")
NUM_CALIBRATION = 200
CONTAMINATED, FACTOR = 17, 20.0
"""Which calibration sample is multiplied, and by what."""
METHODS: tuple[RangeMethod, ...] = ("minmax", "entropy", "mse", "percentile", "auto")
SLOW = "int16x8"
"""Has no XNNPACK kernels, and so is timed in fewer rounds."""
NUM_SLOW_ROUNDS = 20
DEPTHWISE = "DEPTHWISE_CONV_2D"
"""XNNPACK has no kernel of it for data that is rounded at each run, so that of these `dynamic` rounds weights alone."""
PARTLY = ", depthwise in FP32"

PLAN = """
[model]
source = "{source}"
[data]
metric = "top1"
calibration = {{ path = "data.npz", inputs = {{ {input} = "x_calib" }}, labels = "y_calib" }}
evaluation = {{ path = "data.npz", inputs = {{ {input} = "x_test" }}, labels = "y_test" }}
[variants]
precisions = [{precisions}]
backends = [{backends}]
{more}
[lint]
allow = ["range", "overlap", "duplicates", "imbalance"]
"""
MEMORY = """
import sys
from pathlib import Path
import numpy as np
from engines import backend
from engines.contract import DYNAMIC
def mib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
runtime = backend(sys.argv[1])
runtime.versions()
before = mib()
with runtime.load(Path(sys.argv[2]), num_threads=1) as runner:
    feed = {s.name: np.zeros([1 if n == DYNAMIC else n for n in s.shape], s.dtype) for s in runner.inputs}
    for _ in range(20):
        runner.infer(feed)
    sys.exit(f"{mib() - before:.1f}")
"""


@dataclass(frozen=True)
class Variants:
    """What of a plan differs: lists as TOML has them, and further lines."""

    precisions: str
    backends: str
    more: str = ""


@dataclass(frozen=True)
class Engine:
    """What is compared."""

    name: str
    path: Path
    runtime: str
    size_bytes: int
    slow: bool = False


@dataclass(frozen=True)
class Row:
    """What was found of an engine."""

    engine: Engine
    top1: float
    agreement: float
    """With FP32 of its runtime."""
    ms: float
    """Median CPU time of a sample."""
    memory_mib: str


@dataclass(frozen=True)
class Data:
    """Samples as the network takes them."""

    calibration: Array
    evaluation: Array
    labels: Array


def main() -> None:
    """Run all networks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--samples", type=int, default=2000, help="evaluation samples at most (default: 2000)")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    asked = parser.parse_args()
    parts = []
    for network in [each for each in NETWORKS if each.source in NAMES]:
        with tempfile.TemporaryDirectory() as folder:
            parts.append(section(network, asked.folder.resolve(), Path(folder), asked))
        print(parts[-1], flush=True)
        if asked.output:
            asked.output.write_text(head(asked) + "\n".join(parts))


def head(asked: argparse.Namespace) -> str:
    """What was done, and where."""
    names = ("ai-edge-litert", "ai-edge-quantizer", "tensorflow", "onnxruntime", "numpy")
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return f"""# The techniques of LiteRT

Made by `python benchmarks/litert.py FOLDER --rounds {asked.rounds} --samples {asked.samples}` on {day}:
{cpu_name()}, {platform.machine()}; {", ".join(f"{name} {version(name)}" for name in names)}.

*p50* is the median CPU time of one sample on one thread, all engines in turns in random order, as a multiple of FP32's
on LiteRT; other programs ran beside it, so that ratios count. *agrees*: the share of samples with the class of FP32 on
that runtime. *memory*: by how much the resident memory of a process grew as it loaded the engine and ran 20 samples;
the runtime's own code is not in it. Files of others are INT8 at both ends, which our runner rounds and restores within
the time. For ONNX Runtime `dynamic` is what `docs/plan.md` says. *Depthwise in FP32*: with `[ptq] exclude =
["{DEPTHWISE}"]`.

The article that ranks these techniques gives "more than 75 %" less for INT8; the third column has what it was here.

"""


def section(network: Network, folder: Path, work: Path, asked: argparse.Namespace) -> str:
    """One network as Markdown."""
    data = data_of(network, folder, work, asked.samples)
    made = built(network, folder, work, Variants('"fp32", "fp16", "dynamic", "int8"', '"litert", "onnxruntime"'))
    slow = built(network, folder, work, Variants(f'"{SLOW}"', '"litert"'))
    engines = [*engines_of(made), *engines_of(slow), *others(network, folder, work)]
    assert made.converted is not None
    if any(each.kind == DEPTHWISE for each in litert.tflite_facts(made.converted.path).operators):
        exclude = f'[ptq]\nexclude = ["{DEPTHWISE}"]'
        partly = built(network, folder, work, Variants('"dynamic", "int8"', '"litert"', exclude))
        engines += [replace(each, name=f"{each.name}{PARTLY}") for each in engines_of(partly)]
    rows = judged(engines, network, data, asked.rounds)
    return "\n".join(
        [
            f"## {network.name}",
            "",
            *table(rows, len(data.labels)),
            "",
            *contaminated(made, network, data, work),
            "",
            own_cost(next(engine for engine in engines if engine.name == "int8@litert"), network, data),
            "",
        ]
    )


def data_of(network: Network, folder: Path, work: Path, num: int) -> Data:
    """The data, preprocessed once and for all into ``work/data.npz``."""
    with np.load(folder / network.data) as stored:
        scaled = {key: stored[key].astype(np.float32) * np.float32(network.scale) for key in ("x_calib", "x_test")}
        labels = {key: stored[key] for key in ("y_calib", "y_test")}
    calibration, evaluation = (
        scaled[key].reshape(-1, *network.shape)[:most] for key, most in (("x_calib", NUM_CALIBRATION), ("x_test", num))
    )
    arrays = {"x_calib": calibration, "x_test": evaluation}
    arrays |= {"y_calib": labels["y_calib"][: len(calibration)], "y_test": labels["y_test"][: len(evaluation)]}
    np.savez(work / "data.npz", **arrays)
    return Data(calibration, evaluation, arrays["y_test"])


def built(network: Network, folder: Path, work: Path, variants: Variants) -> Results:
    """Engines by a plan, as a user would have them."""
    text = PLAN.format(source=folder / network.source, input=network.input, **asdict(variants))
    (work / "plan.toml").write_text(text)
    return run(read_plan(work / "plan.toml"), Store(work / "store"), "build")


def engines_of(made: Results) -> Iterator[Engine]:
    """Those of a run."""
    for variant, engine in made.engines.items():
        size = engine.path.stat().st_size
        yield Engine(variant.name, engine.path, variant.backend, size, variant.precision.name == SLOW)


def others(network: Network, folder: Path, work: Path) -> Iterator[Engine]:
    """INT8 by TensorFlow's converter with its own ranges, and what upstream published."""
    np.save(work / "calibration.npy", np.load(work / "data.npz")["x_calib"])
    converted = work / "converted.tflite"
    if why := python(sys.executable, TFLITE, folder / network.source, work / "calibration.npy", converted, ""):
        raise SystemExit(why)
    files = {"TensorFlow's converter, INT8": converted}
    if network.tflite:
        files["upstream's INT8"] = folder / network.tflite
    for number, (name, path) in enumerate(files.items()):
        ready = work / f"ready{number}.tflite"
        command = [sys.executable, "-m", "pipeline", "convert", str(path), "-o", str(ready)]
        if why := called(command):
            raise SystemExit(why)
        yield Engine(name, ready, "litert", path.stat().st_size)


def judged(engines: list[Engine], network: Network, data: Data, num_rounds: int) -> list[Row]:
    """Answers of each, then the times of all in turns."""
    classes: dict[str, Array] = {}
    with ExitStack() as stack:
        runners = {
            engine.name: stack.enter_context(backend(engine.runtime).load(engine.path, num_threads=1))
            for engine in engines
        }
        for engine in engines:
            classes[engine.name] = classes_of(runners[engine.name], data.evaluation)
        calls = {name: call_of(runner, data.evaluation[:1]) for name, runner in runners.items()}
        medians = cpu_ms(calls, num_rounds, {engine.name for engine in engines if engine.slow})
    rows = []
    for engine in engines:
        answered, reference = classes[engine.name], classes[f"fp32@{engine.runtime}"]
        rows.append(
            Row(
                engine,
                float((answered == data.labels).mean()),
                float((answered == reference).mean()),
                medians[engine.name],
                python(sys.executable, MEMORY, engine.runtime, engine.path).split()[-1],
            )
        )
    return rows


def feed_of(runner: Runner, sample: Array) -> Mapping[str, Array]:
    """A sample under the name that the engine has for its only input."""
    return {runner.inputs[0].name: sample}


def classes_of(runner: Runner, samples: Array) -> Array:
    """The class of each."""
    answers = (next(iter(runner.infer(feed_of(runner, row[None])).values())) for row in samples)
    return np.array([int(answer.argmax()) for answer in answers])


def call_of(runner: Runner, sample: Array) -> Callable[[], object]:
    """One query."""
    feed = feed_of(runner, sample)
    return lambda: runner.infer(feed)


def cpu_ms(calls: Mapping[str, Callable[[], object]], num_rounds: int, slow: set[str]) -> dict[str, float]:
    """Median CPU time of this thread of each call, milliseconds; in each round all of them, in random order."""
    order, drawn = list(calls), random.Random(0)
    times: dict[str, list[int]] = {name: [] for name in calls}
    for number in range(num_rounds + 10):
        drawn.shuffle(order)
        for name in order:
            if name in slow and number >= NUM_SLOW_ROUNDS + 10:
                continue
            before = time.thread_time_ns()
            calls[name]()
            times[name].append(time.thread_time_ns() - before)
    return {name: float(np.median(values[10:])) / 1e6 for name, values in times.items()}


def table(rows: list[Row], num: int) -> list[str]:
    """As Markdown."""
    full = next(row for row in rows if row.engine.name == "fp32@litert")
    lines = ["| | size, KiB | | top-1 | agrees | p50 | memory, MiB |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        change = row.engine.size_bytes / full.engine.size_bytes - 1
        ratio = f"{row.ms / full.ms:.2f}" + (f" ({row.ms:.4f} ms)" if row is full else "")
        lines.append(
            f"| {row.engine.name} | {row.engine.size_bytes / 1024:.1f} | {change:+.0%} | {row.top1:.4f} "
            f"| {row.agreement:.4f} | {ratio} | {row.memory_mib} |"
        )
    whole = [row for row in rows if not row.engine.name.endswith(PARTLY)]
    integer = {row.engine.name: row.top1 for row in whole if "int8" in row.engine.name.lower()}
    best = max(integer.values())
    behind = 100 * (best - integer["int8@litert"])
    return [
        *lines,
        "",
        f"{num} evaluation samples. int8@litert is {behind:.2f} points behind the best INT8 of any tool.",
    ]


def contaminated(made: Results, network: Network, data: Data, work: Path) -> list[str]:
    """INT8 by several methods, with one calibration sample that is wrong, and without."""
    assert made.converted is not None
    model = TfliteModel(made.converted.path)
    wrong = data.calibration.copy()
    wrong[CONTAMINATED] *= FACTOR
    lines = ["| ranges by | " + " | ".join(METHODS) + " |", "|---|" + "---:|" * len(METHODS)]
    for name, arrays in (("clean samples", data.calibration), (f"one in {len(wrong)} times {FACTOR:g}", wrong)):
        np.savez(work / "contaminated.npz", x=arrays)
        samples = open_samples(
            DataSource(str(work / "contaminated.npz"), inputs={network.input: "x"}), model_specs(model), Preprocess()
        )
        shares = [top1_by(method, model, samples, data, work / name.replace(" ", "-")) for method in METHODS]
        lines.append(f"| {name} | " + " | ".join(f"{share:.4f}" for share in shares) + " |")
    return lines


def top1_by(method: RangeMethod, model: TfliteModel, samples: Samples, data: Data, work: Path) -> float:
    """Top-1 of INT8 whose ranges are read by that method."""
    out = work / method
    out.mkdir(parents=True)
    ranges = Calibrate(method=method)(out, model, samples)
    written = Ptq()(out, model, ranges)
    with backend("litert").load(written.path, num_threads=1) as runner:
        return float((classes_of(runner, data.evaluation) == data.labels).mean())


def own_cost(engine: Engine, network: Network, data: Data) -> str:
    """What our runner takes beside the interpreter alone."""
    from ai_edge_litert.interpreter import Interpreter

    bare = Interpreter(str(engine.path), num_threads=1)
    bare.allocate_tensors()
    at, asked = bare.get_input_details()[0]["index"], bare.get_output_details()[0]["index"]
    sample = data.evaluation[:1]

    def loop() -> object:
        bare.set_tensor(at, sample)
        bare.invoke()
        return bare.get_tensor(asked)

    with backend(engine.runtime).load(engine.path, num_threads=1) as runner:
        medians = cpu_ms({"bare": loop, "ours": call_of(runner, sample)}, 3000, set())
    return (
        f"Our runner takes {medians['ours'] / medians['bare']:.3f} of the CPU time of a loop of the interpreter alone "
        f"({1000 * (medians['ours'] - medians['bare']):.1f} µs a sample more)."
    )


if __name__ == "__main__":
    main()
