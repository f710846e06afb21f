"""Time and memory of calibration: ours, ONNX Runtime's Entropy and ModelOpt's entropy, beside one plain inference pass.

Each candidate is a whole process, so imports, start-up and writing the result count, a plain pass's too; CPU time (user
and system, of all threads) and peak memory are the kernel's account of it (wait4). Beside it stands the pass alone: the
CPU time in which all images are run, and counted, once all is loaded. In each repetition every candidate runs once, one
after the other; a ratio is the median of the repetitions' own ratios. ``ours`` reads ranges by entropy, as the two
others do; ``ours, auto`` is the default. All run on one thread but ``ours, 2 workers`` and ``… as it comes``, which is
the other tool with its own choice of threads. The largest numbers of images run once, and without the variants. A
process that takes more than ``--most-gib`` is ended, and said to have been.

Models: keras.applications with random weights, batch norms settled on the images, 224x224, opset 17, batch norms folded
by `trtforge export`'s own pass. Images: smooth noise, fixed seed, as each model's preprocessing gives them.

    python benchmarks/calibration.py FOLDER --num 64 128 512 --output benchmarks/results/calibration.md

FOLDER keeps the models, the images and ModelOpt's environment (made by pip, about 2 GB; ModelOpt 0.47 pins other
versions of onnx and onnxruntime than ours).
"""

from __future__ import annotations

import argparse
import compileall
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"ResNet50": "tf", "MobileNetV2": "tf", "EfficientNetB0": "torch"}
"""Model -> range of its inputs: ``tf`` is -1 to 1, ``torch`` stands for 0 to 255, which EfficientNet scales itself."""
TARGETS = {"ort": (6.5, 15.0, 16.0), "modelopt": (6.5, 12.0, 27.0), "plain": (1.15, 1.7, 1.7)}
"""At N = 64: how many times faster than the two others, at least; how many plain passes, at most."""
MODELOPT = ("nvidia-modelopt[onnx]==0.47.0", "onnx~=1.21.0", "onnxruntime~=1.24.2", "setuptools>=80")
OURS, PASS = "ours", "ours, the pass"
PASS_WORDS = "CPU s of the pass alone:"
BEYOND = (
    "Where the last two rows are below a target, no calibrator that runs the model once can reach it on this machine; "
    "the last two rows divided by a target say how many plain passes would."
)
IN_PASSES = (
    "A whole process is over that of a plain pass, with imports and start on both sides; the pass alone is that in "
    "which all images are run and every watched value is counted, over the loop of a plain pass."
)
MAPPED = "Mapped pages of the images count as a plain pass's memory, which so grows with their number."

EXPORT = """
import sys, numpy as np, keras
name, images, out = sys.argv[1:]
keras.utils.set_random_seed(1)
model = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
for layer in model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.0
model(np.load(images)[:16], training=True)
model.export(out)
"""
PLAIN = """
import sys, time, numpy as np, onnxruntime as ort
settings = ort.SessionOptions()
settings.intra_op_num_threads = settings.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
images = np.load(sys.argv[2], mmap_mode="r")
begin = time.process_time()
for row in range(len(images)):
    session.run(None, {name: np.array(images[row : row + 1])})
print("CPU s of the pass alone:", time.process_time() - begin)
"""
OURS_CODE = """
import time
from pipeline.stages import calibrate
collect = calibrate.collect
def timed(*arguments, **options):
    begin = time.process_time()
    histograms = collect(*arguments, **options)
    print("CPU s of the pass alone:", time.process_time() - begin)
    return histograms
calibrate.collect = timed
from pipeline.__main__ import main
main()
"""
READER = """
import sys, numpy as np, onnx
model, data, out = sys.argv[1:]
name = onnx.load(model, load_external_data=False).graph.input[0].name
class Reader:
    def __init__(self): self.images, self.row = np.load(data, mmap_mode="r"), 0
    def get_next(self):
        self.row += 1
        if self.row > len(self.images): return None
        return {name: np.array(self.images[self.row - 1 : self.row])}
    def rewind(self): self.row = 0
    def get_first(self): return {name: np.array(self.images[:1])}
"""
SINGLE = """
import onnxruntime as ort
plain = ort.SessionOptions
def single():
    settings = plain()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    return settings
ort.SessionOptions = single
"""
ORT = """
from onnxruntime.quantization import CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
class Both(Reader, CalibrationDataReader): pass
quantize_static(model, out, Both(), quant_format=QuantFormat.QDQ, calibrate_method=CalibrationMethod.Entropy)
"""
MODELOPT_CODE = """
from onnxruntime.quantization.calibrate import CalibrationDataReader
class Both(Reader, CalibrationDataReader): pass
from modelopt.onnx.quantization import quantize
quantize(model, quantize_mode="int8", calibration_data_reader=Both(), calibration_method="entropy",
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=out, log_level="ERROR")
"""


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    pass_cpu_s: float | None = None
    """Of the pass alone, if it was told."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, nargs="+", default=[64], help="numbers of images")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repetitions", type=int, default=3, help="of the smallest number of images")
    parser.add_argument("--most-gib", type=float, default=16.0, help="memory that a process may take")
    parser.add_argument("--without", nargs="+", default=[], help="candidates to leave out: ort, modelopt, …")
    parser.add_argument(
        "--others", type=int, default=0, help="images that the other tools get at most; 0: as many as ours"
    )
    parser.add_argument("--torch", default="torch>=2.8", help="the requirement that brings torch, which ModelOpt needs")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for package in ("calibration", "engines", "pipeline"):
        compileall.compile_dir(ROOT / package, quiet=1)  # As pip does with what it installs, so with the others.
    if "modelopt" not in given.without:
        make_environment(folder / "modelopt", given.torch)
    for name in given.models:
        make_model(folder, name, max(given.num))
    costs = {
        (name, num): measure(folder, name, num, given) for num in given.num for name in given.models
    }  # fmt: skip
    text = page(costs, folder)
    print(text)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")


def make_environment(folder: Path, torch: str) -> None:
    """ModelOpt in a virtual environment of its own. Not its CUDA parts: it calibrates on the CPU here, as we do."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = subprocess.run([python, "-c", "import modelopt.onnx.quantization"], capture_output=True, check=False)
    if done.returncode:
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        parts = "numpy packaging tqdm PyYAML omegaconf pulp<4 pydantic regex rich safetensors scipy nvidia-ml-py"
        parts += " ml_dtypes onnxconverter-common~=1.16.0 onnxslim onnx-graphsurgeon onnxscript polygraphy lief ninja"
        subprocess.run([*pip, "--no-deps", MODELOPT[0].replace("[onnx]", "")], check=True)
        subprocess.run([*pip, *MODELOPT[1:], *parts.split(), "cppimport", torch], check=True)


def make_model(folder: Path, name: str, num: int) -> None:
    """``<name>.onnx`` and ``<name>_images.npy``, unless they are there."""
    images = folder / f"{name}_images_{num}.npy"
    if not images.exists():
        aside(make_images, images, num, MODELS[name])
    target = folder / f"{name}.onnx"
    if target.exists():
        return
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as work:
        saved, raw = f"{work}/saved", f"{work}/raw.onnx"
        python = [sys.executable, "-c", EXPORT, name, str(images), saved]
        subprocess.run(python, check=True, env=quiet, capture_output=True)
        convert = ["-m", "tf2onnx.convert", "--saved-model", saved, "--opset", "17", "--output", raw]
        subprocess.run([sys.executable, *convert], check=True, env=quiet, capture_output=True)
        fold = (
            "import sys, onnx; from calibration.graph.fold import fold_batch_norm; "
            "onnx.save(fold_batch_norm(onnx.load(sys.argv[1]))[0], sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", fold, raw, str(target)], check=True, cwd=ROOT)


def aside(function: Callable[..., None], *arguments: object) -> None:
    """Call it in a process of its own: a new process starts with its parent's peak memory, which must stay small."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__}: failed with exit status {process.exitcode}")


def make_images(target: Path, num: int, kind: str) -> None:
    """``smooth_images`` in the range that a model takes."""
    np.save(target, smooth_images(num) * (255.0 if kind == "torch" else 2.0) - (kind == "tf"))


def copy_first(source: Path, target: Path, num: int) -> None:
    """The first rows of an array file."""
    np.save(target, np.load(source, mmap_mode="r")[:num])


def smooth_images(num: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(num, 224, 224, 3) float32 in 0 to 1: noise of 8x8 pixels, enlarged linearly, with the levels of 8 bits."""
    random = np.random.default_rng(0)
    at = np.linspace(0, 7, 224)
    low = np.minimum(at.astype(int), 6)
    weights = np.zeros((224, 8))
    weights[np.arange(224), low] = 1 - (at - low)
    weights[np.arange(224), low + 1] = at - low
    images = np.empty((num, 224, 224, 3), np.float32)
    for row in range(num):
        smooth = np.einsum("ia,abc,jb->ijc", weights, random.random((8, 8, 3)), weights)
        images[row] = np.rint(smooth * 255) / 255
    return images


def measure(folder: Path, name: str, num: int, given: argparse.Namespace) -> dict[str, list[Cost]]:
    """Costs of every candidate, one for each repetition."""
    model = folder / f"{name}.onnx"
    found: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        data = work / "images.npy"
        aside(copy_first, folder / f"{name}_images_{max(given.num)}.npy", data, num)
        few = num == min(given.num)
        for repetition in range(given.repetitions if few else 1):
            for candidate, command in commands(folder, model, data, work).items():
                variant = candidate not in ("plain", OURS, PASS, "ort", "modelopt")
                if candidate.split(",")[0] in ("ort", "modelopt") and given.others and num > given.others:
                    continue
                if candidate.split(",")[0] in given.without or candidate in given.without:
                    continue
                if variant and (not few or (candidate.endswith("as it comes") and repetition)):
                    continue
                cost = run(command, work, given.most_gib)
                shutil.rmtree(work / "out", ignore_errors=True)
                print(f"{name} N={num} #{repetition} {candidate}: {cost}", file=sys.stderr, flush=True)
                found.setdefault(candidate, [])
                if cost is not None:
                    found[candidate].append(cost)
    return found


def commands(folder: Path, model: Path, data: Path, work: Path) -> dict[str, list[str]]:
    """Candidate -> command line."""
    python, out = sys.executable, str(work / "out")
    options = ["calibrate", str(model), "--data", str(data), "-o", out, "--num-threads", "1"]
    auto, entropy = [python, "-m", "pipeline", *options], ["--method", "entropy"]
    ours = [*auto, *entropy]
    files = [str(model), str(data), str(work / "quantized.onnx")]
    modelopt = str(folder / "modelopt" / "bin" / "python")
    return {
        "plain": [python, "-c", PLAIN, str(model), str(data)],
        OURS: [*ours, "--watch", "tensorrt"],
        PASS: [python, "-c", OURS_CODE, *options, *entropy, "--watch", "tensorrt"],
        "ours, auto": [*auto, "--watch", "tensorrt"],
        "ours, 2 workers": [*ours, "--watch", "tensorrt", "--num-workers", "2"],
        "ours, both placements": ours,
        "ours, all tensors": [*ours, "--watch", "all"],
        "ort": [python, "-c", READER + SINGLE + ORT, *files],
        "ort, as it comes": [python, "-c", READER + ORT, *files],
        "modelopt": [modelopt, "-c", READER + SINGLE + MODELOPT_CODE, *files],
        "modelopt, as it comes": [modelopt, "-c", READER + MODELOPT_CODE, *files],
    }


def run(command: list[str], work: Path, most_gib: float) -> Cost | None:
    """Run a process and account for it; None if it was killed, failed, or took too much memory."""
    begin = time.perf_counter()
    ended = threading.Event()
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        threading.Thread(target=bound_memory, args=(process, most_gib, ended)).start()
        _, status, usage = os.wait4(process.pid, 0)
        ended.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    log_text = (work / "log").read_text()
    if process.returncode:
        print(log_text[-500:], f"\nexit status {process.returncode}", file=sys.stderr)
        return None
    passes = [float(line.split(":")[1]) for line in log_text.splitlines() if line.startswith(PASS_WORDS)]
    cpu_s = usage.ru_utime + usage.ru_stime
    return Cost(cpu_s, time.perf_counter() - begin, usage.ru_maxrss / 1024, passes[0] if passes else None)


def bound_memory(process: subprocess.Popen[bytes], most_gib: float, ended: threading.Event) -> None:
    """End the process once it holds more than so much memory."""
    while not ended.wait(0.2):
        try:
            resident = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        except OSError:  # It has just ended.
            return
        if int(resident) * os.sysconf("SC_PAGESIZE") > most_gib * 2**30:
            process.kill()
            print(f"more than {most_gib:g} GiB", file=sys.stderr)
            return


def ratio(of: list[Cost], to: list[Cost]) -> float:
    """Median ratio of CPU time, repetition by repetition."""
    return statistics.median(a.cpu_s / b.cpu_s for a, b in zip(of, to))


def pass_ratio(of: list[Cost], to: list[Cost]) -> float:
    """The same of the passes alone."""
    return statistics.median((a.pass_cpu_s or 0.0) / (b.pass_cpu_s or 1.0) for a, b in zip(of, to))


def page(costs: dict[tuple[str, int], dict[str, list[Cost]]], folder: Path) -> str:
    """The results as Markdown: one table for each model and number of images, then ours against the targets."""
    command = " ".join(["python", "benchmarks/calibration.py", *sys.argv[1:]]).replace(str(folder), "FOLDER")
    num_repetitions = max(len(each) for found in costs.values() for each in found.values())
    lines = [
        "# What calibration costs",
        "",
        f"`{command}`",
        "",
        f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}. Whole processes, interleaved; "
        f"medians of {num_repetitions} runs at the smallest number of images, one run at the others. *Times ours* is "
        "the ratio of CPU time to that of `ours` (by entropy, watching for TensorRT and FP16, one thread). What a stop "
        "saves is in [calibration_stop.md](calibration_stop.md).",
    ]
    for (name, num), found in costs.items():
        lines += ["", f"## {name}, {num} images", "", "| | CPU s | wall s | peak MiB | times ours |", "|---" * 5 + "|"]
        for candidate, each in found.items():
            if candidate == PASS:
                continue
            if not each:
                lines.append(f"| {candidate} | ended: more memory than was allowed, or an error | – | – | – |")
                continue
            cpu_s, wall_s, peak_mib = (
                statistics.median(getattr(cost, key) for cost in each) for key in ("cpu_s", "wall_s", "peak_mib")
            )
            times = f"{ratio(each, found[OURS]):.2f}"
            lines.append(f"| {candidate} | {cpu_s:.2f} | {wall_s:.2f} | {peak_mib:.0f} | {times} |")
    return "\n".join([*lines, *in_passes(costs), *against_targets(costs), *memory(costs)])


def in_passes(costs: dict[tuple[str, int], dict[str, list[Cost]]]) -> list[str]:
    """What ours costs in plain passes: whole processes, and the pass alone."""
    lines = ["", "## In plain passes", "", IN_PASSES, ""]
    lines += ["| | images | whole process, by entropy | the pass alone | ms an image: plain, ours |", "|---" * 5 + "|"]
    for (name, num), found in costs.items():
        plain, ours, timed = (found.get(which, []) for which in ("plain", OURS, PASS))
        if plain and ours and timed:
            each_ms = [
                statistics.median(1e3 * (cost.pass_cpu_s or 0.0) for cost in which) / num for which in (plain, timed)
            ]
            row = [
                f"{ratio(ours, plain):.2f}",
                f"{pass_ratio(timed, plain):.2f}",
                ", ".join(f"{ms:.2f}" for ms in each_ms),
            ]
            lines.append(f"| {name} | {num} | {' | '.join(row)} |")
    return lines


def against_targets(costs: dict[tuple[str, int], dict[str, list[Cost]]]) -> list[str]:
    """Ours beside the targets, at the smallest number of images."""
    small = {name: found for (name, num), found in costs.items() if num == min(n for _, n in costs)}
    lines = ["", "## Against the targets", "", BEYOND, ""]
    lines += ["| | " + " | ".join(small) + " |", "|---" * (len(small) + 1) + "|"]
    for other, what in (
        ("ort", "times faster than ONNX Runtime"),
        ("ort, as it comes", "the same, with its own threads"),
        ("modelopt", "times faster than ModelOpt"),
        ("modelopt, as it comes", "the same, with its own threads"),
        ("plain", "plain passes that ours costs, whole processes"),
        (PASS, "the same, the pass alone"),
    ):
        goals = TARGETS["plain" if other == PASS else other.split(",")[0]]
        cells = []
        for name, found in small.items():
            goal = goals[list(MODELS).index(name)]
            if not found.get(other) or not found.get(OURS) or not found.get("plain"):
                cells.append("not measured")
            elif other == PASS:
                cells.append(f"{pass_ratio(found[PASS], found['plain']):.2f} (at most {goal})")
            elif other == "plain":
                cells.append(f"{ratio(found[OURS], found[other]):.2f} (at most {goal})")
            else:
                cells.append(f"{ratio(found[other], found[OURS]):.2f} (at least {goal})")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    for other, what in (("ort", "ONNX Runtime's"), ("modelopt", "ModelOpt's")):
        both = [(found.get(other), found.get("plain")) for found in small.values()]
        cells = [f"{ratio(theirs, plain):.2f}" if theirs and plain else "not measured" for theirs, plain in both]
        lines.append(f"| {what} cost in plain passes, the most that one pass can reach | {' | '.join(cells)} |")
    return lines


def memory(costs: dict[tuple[str, int], dict[str, list[Cost]]]) -> list[str]:
    """Peak memory of ours against plain inference, by number of images."""
    lines = ["", "## Peak memory of ours above a plain pass", "", MAPPED, ""]
    lines += ["| | images | MiB above | of the fewest images' |", "|---" * 4 + "|"]
    first: dict[str, float] = {}
    for (name, num), found in costs.items():
        if not found.get(OURS) or not found.get("plain"):
            continue
        peak, plain = (statistics.median(cost.peak_mib for cost in found[which]) for which in (OURS, "plain"))
        first.setdefault(name, peak)
        lines.append(f"| {name} | {num} | {peak - plain:.0f} | {peak / first[name]:.3f} |")
    return lines


def cpu_name() -> str:
    """The processor, and the vector instructions that matter."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return named + "".join(f", {flag}" for flag in ("avx2", "avx512f", "avx512_vnni") if flag in flags)


if __name__ == "__main__":
    main()
