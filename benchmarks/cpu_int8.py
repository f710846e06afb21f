"""Speed of INT8 on one core of the CPU: ours in ONNX Runtime beside its own quantizer, OpenVINO with NNCF, and LiteRT.

All engines of a network run in one process, on one thread, one sample at a time, in blocks in random order; what counts
is the median CPU time of a run. All get the ONNX file that tf2onnx makes of the SavedModel, ours by way of `trtforge
export` (LiteRT: what its own converter makes of the SavedModel), and the same 32 calibration samples. Networks:
keras.applications with random weights, whose times are those of trained ones, and EfficientNet-Lite1 where DATA has it.
Usage, a network at a time::

    python benchmarks/cpu_int8.py FOLDER --data DATA --only NAME --output benchmarks/results/cpu_int8.md

FOLDER keeps models, the environment with the other engines (made by pip, about 1.5 GB), and each network's times, so
that the page has all networks that were run.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks.calibration import EXPORT, cpu_name, smooth_images
from benchmarks.candidates import READER, environment, python, trtforge
from benchmarks.trained import LITE_NAME, trained_networks
from calibration.graph.watched_outputs import watch_tensors
from calibration.precision.scale import arithmetic_for
from engines.cpu import cpu_flags

NETWORKS = {
    "ResNet50": "tf", "MobileNetV2": "tf", "EfficientNetB0": "raw", "MobileNetV3Small": "raw",
    "MobileNetV3Large": "raw", "EfficientNetV2B0": "raw", "DenseNet121": "tf", "NASNetMobile": "tf",
    "Xception": "tf", "ConvNeXtTiny": "raw",
}  # fmt: skip
"""Name -> range of its inputs: ``tf`` is -1 to 1, ``raw`` 0 to 255, which the network scales itself."""
LITE = "EfficientNet-Lite1"
CALLS = ("StatefulPartitionedCall", "PartitionedCall")
"""Functions that tf2onnx leaves in a model that no runtime reads, as Keras's convolutions that XLA must compile."""
NUM_SAMPLES = 32
PACKAGES = ("onnxruntime", "openvino", "nncf", "ai-edge-litert", "onnx", "numpy")
OURS, TIMED, OWN, NNCF = (
    "ours, INT8",
    "ours, INT8, placement by time",
    "ONNX Runtime's own, INT8",
    "OpenVINO + NNCF, INT8",
)
FP32, LITERT = "ONNX Runtime, FP32", "LiteRT, INT8"

ORT_CODE = """
import platform
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
quant_pre_process(source, out + ".pre", skip_symbolic_shape=True)
quantize_static(out + ".pre", out, Reader(), calibrate_method=CalibrationMethod.MinMax, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=method == "reduced")
"""
NNCF_CODE = """
import sys, numpy as np, openvino, nncf
source, data, out = sys.argv[1:]
model = openvino.Core().read_model(source)
samples = np.load(data)
rows = [samples[row : row + 1] for row in range(len(samples))]
model.reshape({model.inputs[0]: rows[0].shape})
quantized = nncf.quantize(model, nncf.Dataset(rows), preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(rows))
openvino.save_model(quantized, out, compress_to_fp16=False)
"""
LITERT_CODE = """
import sys, numpy as np, tensorflow as tf
source, data, out = sys.argv[1:]
samples = np.load(data)
converter = tf.lite.TFLiteConverter.from_saved_model(source)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([samples[row : row + 1]] for row in range(len(samples)))
with open(out, "wb") as file:
    file.write(converter.convert())
"""
RACE = """
import json, sys, time, random
import numpy as np
candidates, data, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
sample = np.load(data)[:1]
def onnxruntime(path):
    import onnxruntime as ort
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: sample}
    return lambda: session.run(None, feed)
def openvino(path):
    import openvino
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1,
             "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({model.inputs[0]: sample.shape})
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda: request.infer([sample])
def litert(path):
    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    index = interpreter.get_input_details()[0]["index"]
    result = interpreter.get_output_details()[0]["index"]
    def run():
        interpreter.set_tensor(index, sample)
        interpreter.invoke()
        return interpreter.get_tensor(result)
    return run
def seconds(run, num):
    begin = time.process_time()
    for _ in range(num):
        run()
    return (time.process_time() - begin) / num
random.seed(0)
runs, failures = {}, {}
for name, (kind, path) in candidates.items():
    try:
        run = {"onnxruntime": onnxruntime, "openvino": openvino, "litert": litert}[kind](path)
        seconds(run, 3)
        runs[name] = run
    except Exception as error:
        failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
sizes = {name: max(1, round(0.02 / seconds(run, 3))) for name, run in runs.items()}
times = {name: [] for name in runs}
order = list(runs)
for _ in range(30):
    random.shuffle(order)
    for name in order:
        times[name].append(seconds(runs[name], sizes[name]))
milliseconds = {name: [1e3 * each for each in blocks] for name, blocks in times.items()}
json.dump({"blocks_ms": milliseconds, "failures": failures}, open(out, "w"))
"""
PEAK = """
#include <immintrin.h>
#include <stdio.h>
#include <time.h>
#ifdef __AVX512VNNI__
#define WIDTH 64
#define VECTOR __m512i
#define SET8 _mm512_set1_epi8
#define ZERO _mm512_setzero_si512
#define SUM _mm512_add_epi32
#else
#define WIDTH 32
#define VECTOR __m256i
#define SET8 _mm256_set1_epi8
#define ZERO _mm256_setzero_si256
#define SUM _mm256_add_epi32
#endif
int main(void) {
    VECTOR sums[12], data = SET8(3), weight = SET8(1);
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) sums[i] = ZERO();
    double best = 0;
    for (int repeat = 0; repeat < 20; repeat++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
        for (int round = 0; round < 5000000; round++)
#pragma GCC unroll 12
            for (int i = 0; i < 12; i++) {
#ifdef __AVX512VNNI__
                sums[i] = _mm512_dpbusd_epi32(sums[i], data, weight);
#elif defined(__AVXVNNI__)
                sums[i] = _mm256_dpbusd_epi32(sums[i], data, weight);
#else
                __m256i pairs = _mm256_maddubs_epi16(data, weight);
                __asm__("" : "+x"(pairs));
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
                __asm__ volatile("" : "+v"(sums[i]), "+v"(data));
            }
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
        double seconds = (end.tv_sec - begin.tv_sec) + 1e-9 * (end.tv_nsec - begin.tv_nsec);
        double rate = 5000000.0 * 12 * WIDTH / seconds;
        best = rate > best ? rate : best;
    }
    int used[WIDTH / 4];
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++) sums[0] = SUM(sums[0], sums[i]);
    __builtin_memcpy(used, &sums[0], WIDTH);
    printf("%.6g\\n", best + 0 * used[0]);
}
"""


@dataclass(frozen=True)
class Raced:
    """One network's times."""

    name: str
    multiply_adds: int
    blocks_ms: dict[str, list[float]]
    """CPU time of one run: by engine, in each round of blocks."""
    failures: dict[str, str]
    notes: list[str]

    def speed(self, label: str, other: str) -> float:
        """Of an engine over another's: the median of the rounds, whatever else the machine did meanwhile."""
        return float(np.median(np.array(self.blocks_ms[other]) / np.array(self.blocks_ms[label])))


def main() -> None:
    """Quantize the networks in all ways, race them, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="where efficientnet_lite1/ is; without it, not that network")
    parser.add_argument("--static", action="store_true", help="without the placement by time, which takes minutes")
    parser.add_argument("--only", default="", help="run the networks whose names have this alone")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    interpreter = make_environment(folder / "engines")
    for name in (*NETWORKS, *([LITE] if arguments.data and (arguments.data / "efficientnet_lite1").is_dir() else [])):
        if arguments.only in name:
            work = folder / name
            work.mkdir(exist_ok=True)
            make_network(work, name, arguments.data)
            record = raced(work, name, interpreter, is_timed=not arguments.static)
            (work / "raced.json").write_text(json.dumps(record.__dict__, indent=1))
    known = [Raced(**json.loads((folder / name / "raced.json").read_text())) for name in (*NETWORKS, LITE)
             if (folder / name / "raced.json").exists()]  # fmt: skip
    text = page(known, peak(folder), installed(interpreter))
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def make_environment(folder: Path) -> Path:
    """The other engines, with our version of ONNX Runtime, in a virtual environment of their own: its Python."""
    return environment(folder, [f"onnxruntime=={version('onnxruntime')}", *PACKAGES[1:]])


def installed(interpreter: Path) -> str:
    """The versions in an environment, in words."""
    code = (
        "import sys; from importlib.metadata import version; "
        "print(*(f'{name} {version(name)}' for name in sys.argv[1:]), sep=', ')"
    )
    done = subprocess.run([interpreter, "-c", code, *PACKAGES], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_network(work: Path, name: str, data: Path | None) -> None:
    """``saved`` (a SavedModel) and ``samples.npy``, unless they are there."""
    samples = work / "samples.npy"
    if name == LITE:
        if not samples.exists():
            assert data is not None
            (lite,) = trained_networks(data, work, LITE_NAME)
            shutil.copytree(lite.source, work / "saved", dirs_exist_ok=True)
            np.save(samples, lite.calibration[:NUM_SAMPLES])
        return
    if not samples.exists():
        images = smooth_images(NUM_SAMPLES)
        np.save(samples, images * 2 - 1 if NETWORKS[name] == "tf" else images * 255)
    if not (work / "saved").exists():
        checked(python(sys.executable, EXPORT, name, samples, work / "saved"))


def raced(work: Path, name: str, interpreter: Path, *, is_timed: bool) -> Raced:
    """All ways to INT8 of one network, and their times."""
    candidates, failures = made_candidates(work, interpreter)
    notes: list[str] = []
    if is_timed:
        candidates[TIMED], notes = make_timed(work)
    files = {label: [kind, str(path)] for label, (kind, path) in candidates.items()}
    checked(python(interpreter, RACE, json.dumps(files), work / "samples.npy", work / "times.json"))
    times: dict[str, Any] = json.loads((work / "times.json").read_text())
    multiply_adds = count_multiply_adds(onnx.load(work / "plain.onnx"), np.load(work / "samples.npy")[:1])
    return Raced(name, multiply_adds, times["blocks_ms"], failures | times["failures"], notes)


def made_candidates(work: Path, interpreter: Path) -> tuple[dict[str, tuple[str, Path]], dict[str, str]]:
    """Label -> engine and file, made unless they are there; and why there is none."""
    plain, samples = work / "plain.onnx", work / "samples.npy"
    if not plain.exists():
        convert = ["-m", "tf2onnx.convert", "--saved-model", work / "saved", "--opset", "17", "--output", plain]
        subprocess.run([sys.executable, *map(str, convert)], check=True, capture_output=True)
        if any(node.op_type in CALLS for node in onnx.load(plain, load_external_data=False).graph.node):
            trtforge("export", work / "saved", "-o", plain)
    ours = make_ours(work)
    own, nncf, lite = work / "own.onnx", work / "nncf.xml", work / "int8.tflite"
    reduced = "full" if has_dot_product() else "reduced"
    candidates = {FP32: ("onnxruntime", plain), "OpenVINO, FP32": ("openvino", plain), **ours}
    candidates |= {OWN: ("onnxruntime", own), NNCF: ("openvino", nncf), LITERT: ("litert", lite)}
    failures = {
        OWN: "" if own.exists() else python(sys.executable, READER + ORT_CODE, plain, samples, own, reduced),
        NNCF: "" if nncf.exists() else python(interpreter, NNCF_CODE, plain, samples, nncf),
        LITERT: "" if lite.exists() else python(sys.executable, LITERT_CODE, work / "saved", samples, lite),
    }
    failed = {label: why.strip().splitlines()[-1][:300] for label, why in failures.items() if why}
    return {label: candidate for label, candidate in candidates.items() if label not in failed}, failed


def has_dot_product() -> bool:
    """Whether products of 8 bits are added in 32 bits here."""
    return arithmetic_for(cpu_flags(), platform.machine())[0] != "u8s7"


def make_ours(work: Path) -> dict[str, tuple[str, Path]]:
    """Ours, made anew: FP32 as exported, and INT8."""
    fp32, ranges, int8 = (work / name for name in ("fp32.onnx", "ranges", "int8.onnx"))
    shutil.rmtree(ranges, ignore_errors=True)
    trtforge("export", work / "plain.onnx", "-o", fp32)
    trtforge("calibrate", fp32, "--data", work / "samples.npy", "--watch", "onnxruntime", "-o", ranges)
    trtforge("quantize", fp32, "--ranges", ranges, "--target", "onnxruntime", "-o", int8)
    return {"ours, FP32": ("onnxruntime", fp32), OURS: ("onnxruntime", int8)}


def make_timed(work: Path) -> tuple[tuple[str, Path], list[str]]:
    """Ours, placed by time, and what its notes say of that."""
    options = [
        "--ranges",
        work / "ranges",
        "--target",
        "onnxruntime",
        "--placement",
        "timed",
        "-o",
        work / "timed.onnx",
    ]
    command = [sys.executable, "-m", "pipeline", "quantize", work / "fp32.onnx", *options]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True)
    return ("onnxruntime", work / "timed.onnx"), [
        line for line in done.stderr.splitlines() if "placement by time" in line
    ]


def checked(failure: str) -> None:
    """End with what a process said as it failed."""
    if failure:
        raise SystemExit(failure)


def count_multiply_adds(model: onnx.ModelProto, sample: np.ndarray[Any, Any]) -> int:
    """Of convolutions and products with constant weights, those on padding included, for one sample, which is run."""
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    products = [
        node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in weights
    ]
    names = [node.output[0] for node in products]
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    watched = watch_tensors(model, names).SerializeToString()
    session = ort.InferenceSession(watched, settings, providers=["CPUExecutionProvider"])
    made = [array.shape for array in session.run(names, {session.get_inputs()[0].name: sample})]
    total = 0
    for node, shape in zip(products, made, strict=True):
        weight = weights[node.input[1]]
        per_value = np.prod(weight[1:]) if node.op_type == "Conv" else np.prod(weight) // shape[-1]
        total += int(np.prod(shape)) * int(per_value)
    return total


def peak(folder: Path) -> float:
    """Multiply-adds of 8 bits that one core does in a second, at most: by its dot product, or by vpmaddubsw."""
    source, program, known = folder / "peak.c", folder / "peak", folder / "peak.json"
    if not known.exists():
        source.write_text(PEAK)
        subprocess.run(["cc", "-O3", "-funroll-loops", "-march=native", source, "-o", program], check=True)
        known.write_text(subprocess.run([program], check=True, capture_output=True, text=True).stdout)
    return float(known.read_text())


def page(known: list[Raced], peak_per_second: float, versions: str) -> str:
    """All of it as Markdown."""
    instruction = "vpdpbusd" if has_dot_product() else "vpmaddubsw, vpmaddwd and vpaddd, for it has no VNNI"
    lines = [
        "# INT8 on one core of the CPU",
        "",
        "`python benchmarks/cpu_int8.py FOLDER --data DATA --output benchmarks/results/cpu_int8.md`, or a network at a "
        f"time with `--only NAME`, on {datetime.now(timezone.utc):%Y-%m-%d}:",
        f"{cpu_name()}; python {sys.version.split()[0]}, {versions}.",
        "",
        "One thread, one sample, all engines of a network in one process, 30 blocks in random order, medians of CPU "
        "time with their quartiles. Speeds are medians of the ratios in each round of blocks; *×* is that over ONNX "
        "Runtime's FP32 on the model that tf2onnx makes. *Of the peak*: the multiply-adds that the model asks for, of "
        f"the {peak_per_second / 1e9:.0f} G of 8 bits that one core of this CPU does in a second by {instruction}. All "
        "get the model that tf2onnx makes, ours by way of `trtforge export` (LiteRT: what its own converter makes); of "
        "ConvNeXt, in which tf2onnx leaves calls of functions, all get what `trtforge export` makes of the SavedModel.",
        "",
        "## Ours beside the others",
        "",
        "Speed of our INT8 over each: 1.00 is as fast; and that of the placement by time over the static one, where it "
        "was measured.",
        "",
        "| network | FP32 | ONNX Runtime's own | OpenVINO + NNCF | LiteRT | placement by time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for each in known:
        labels = [(OURS, other) for other in (FP32, OWN, NNCF, LITERT)] + [(TIMED, OURS)]
        ratios = [f"{each.speed(*pair):.2f}" if {*pair} <= each.blocks_ms.keys() else "–" for pair in labels]
        lines.append(f"| {each.name} | {' | '.join(ratios)} |")
    for each in known:
        lines += ["", *section(each, peak_per_second)]
    return "\n".join(lines) + "\n"


def section(each: Raced, peak_per_second: float) -> list[str]:
    """One network."""
    lines = [f"## {each.name}, {each.multiply_adds / 1e6:.0f} M multiply-adds", ""]
    lines += ["| engine | ms | × | of the peak |", "|---|---:|---:|---:|"]
    for label, blocks in each.blocks_ms.items():
        low, ms, high = np.quantile(blocks, (0.25, 0.5, 0.75))
        share = f"{100 * each.multiply_adds / peak_per_second / (ms / 1e3):.0f} %" if "INT8" in label else ""
        lines.append(f"| {label} | {ms:.2f} ({low:.2f} to {high:.2f}) | {each.speed(label, FP32):.2f} | {share} |")
    notes = [note.partition(": ")[2].partition(": ")[2] or note for note in each.notes]
    told = [f"{label}: none ({why})." for label, why in each.failures.items()] + [f"Ours: {note}." for note in notes]
    return [*lines, *(line for one in told for line in ("", one))]


if __name__ == "__main__":
    main()
