"""Run trained networks through the whole pipeline and compare the accuracies with the reference INT8 models.

For each network: the TensorFlow model, every variant, and the upstream's full-integer TFLite model, all on the same
evaluation samples in one run. Usage, with a folder laid out as `kws_dscnn/`, `resnet8_cifar10/`, `fashion_mnist/`::

    python benchmarks/networks.py FOLDER --output benchmarks/results/networks.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Network:
    """A trained network, its data, and the upstream INT8 model if there is one."""

    name: str
    source: str
    data: str
    shape: tuple[int, ...]
    input: str
    scale: float = 1.0
    """What stored samples are multiplied with, in float32."""
    tflite: str = ""


NETWORKS = (
    Network(
        "DS-CNN, keyword spotting (SavedModel of TF 2.3)",
        "kws_dscnn/kws_ref_model",
        "kws_dscnn/kws01.npz",
        (49, 10, 1),
        "input_1",
        1.0,
        "kws_dscnn/reference_int8.tflite",
    ),
    Network(
        "ResNet8, CIFAR-10 (SavedModel)",
        "resnet8_cifar10/resnet8_savedmodel",
        "resnet8_cifar10/cifar10_jpeg_subset.npz",
        (32, 32, 3),
        "input_1",
        1.0,
        "resnet8_cifar10/reference_int8.tflite",
    ),
    Network(
        "ResNet8, CIFAR-10 (Keras 2 .h5)",
        "resnet8_cifar10/pretrainedResnet.h5",
        "resnet8_cifar10/cifar10_jpeg_subset.npz",
        (32, 32, 3),
        "input_1",
        1.0,
        "resnet8_cifar10/reference_int8.tflite",
    ),
    Network(
        "MobileNetV2-like, Fashion-MNIST (SavedModel)",
        "fashion_mnist/fashion_mnv2_tiny_savedmodel",
        "fashion_mnist/fashion_mnist_subset.npz",
        (28, 28, 1),
        "image",
        1 / 255,
    ),
    Network(
        "MobileNetV2-like, Fashion-MNIST (.keras)",
        "fashion_mnist/fashion_mnv2_tiny.keras",
        "fashion_mnist/fashion_mnist_subset.npz",
        (28, 28, 1),
        "image",
        1 / 255,
    ),
)

PLAN = """
[model]
source = "{source}"
[model.inputs.{input}]
min = {smallest}
opt = {usual}
max = {largest}
[data]
metric = "top1"
calibration = {{ path = "{data}", inputs = {{ {input} = "x_calib" }}, labels = "y_calib" }}
evaluation = {{ path = "{data}", inputs = {{ {input} = "x_test" }}, labels = "y_test" }}
preprocess = {{ scale = {scale}, dtype = "float32" }}
[variants]
precisions = ["fp32", "fp16", "int8"]
backends = ["onnxruntime", "tensorrt_rtx"]
[calibrate]
method = "{method}"
[benchmark]
batch_sizes = [1, 32]
num_threads = 1
[benchmark.protocol]
min_seconds = {seconds}
"""


def plan_of(network: Network, folder: Path, method: str, seconds: float) -> str:
    """The plan for a network as TOML."""
    shapes = {name: [size, *network.shape] for name, size in (("smallest", 1), ("usual", 8), ("largest", 32))}
    return PLAN.format(
        source=folder / network.source,
        data=folder / network.data,
        input=network.input,
        scale=network.scale,
        method=method,
        seconds=seconds,
        **shapes,
    )


def run_plan(text: str, work: Path, store: Path) -> dict[str, Any]:
    """Run a plan by the command, and read its report."""
    plan = work / "plan.toml"
    plan.write_text(text)
    command = [sys.executable, "-m", "pipeline", "run", str(plan), "--store", str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 5):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads((work / "trtforge-report" / "report.json").read_text())
    return found


def tflite_top1(network: Network, folder: Path) -> float | None:
    """Top-1 of the upstream's full-integer model on the same samples, by TFLite's interpreter."""
    if not network.tflite:
        return None
    from ai_edge_litert.interpreter import Interpreter

    with np.load(folder / network.data) as stored:
        samples, labels = stored["x_test"].astype(np.float32), stored["y_test"]
    interpreter = Interpreter(str(folder / network.tflite))
    interpreter.allocate_tensors()
    given, asked = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    codes = codes_of(samples, given)
    hits = 0
    for code, label in zip(codes, labels):
        interpreter.set_tensor(given["index"], code[None].reshape(given["shape"]))
        interpreter.invoke()
        hits += int(interpreter.get_tensor(asked["index"]).argmax() == label)
    return hits / len(labels)


def codes_of(samples: npt.NDArray[np.float32], given: dict[str, Any]) -> npt.NDArray[np.int8]:
    """Samples as int8, by the scale of a TFLite model's input."""
    scale, zero_point = given["quantization"]
    return np.asarray(np.clip(np.rint(samples / scale) + zero_point, -128, 127), np.int8)


def table(name: str, report: dict[str, Any], reference: float | None) -> str:
    """One network as Markdown."""
    lines = [f"## {name}", "", "| variant | size, KiB | top-1 | drop, points | batch 1 p50, ms | speed-up |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    lines += [f"| TensorFlow, the trained network | | {report['metric']['source_value']:.4f} | | | |"]
    for variant in report["variants"]:
        simulated = "" if variant["metric_measured_on"] == "engine" else " (simulated)"
        timed = "– | –"
        if variant["latency_ms"]:
            interval = variant["by_batch"][0]["speedup_interval"]
            bounds = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
            timed = f"{variant['latency_ms']['p50']:.4f} | {variant['speedup']:.2f}×{bounds}"
        lines += [
            f"| {variant['name']} | {variant['size_bytes'] / 1024:.1f} | {variant['metric']:.4f}{simulated} "
            f"| {variant['metric_drop'] * 100:+.2f} | {timed} |"
        ]
    if reference is not None:
        fp32 = report["variants"][0]["metric"]
        lines += [f"| upstream's INT8, TFLite | | {reference:.4f} | {(fp32 - reference) * 100:+.2f} | | |"]
    num = report["data"]["evaluation"]["num_samples"]
    return "\n".join([*lines, "", f"{num} evaluation samples. {report['recommendation']['sentence']}", ""])


def main() -> None:
    """Run all networks and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="entropy", help="calibration method (default: entropy)")
    parser.add_argument("--seconds", type=float, default=2.0, help="timing per variant and batch size, seconds")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    given = parser.parse_args()
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            work = Path(folder) / "work"
            work.mkdir(exist_ok=True)
            text = plan_of(network, given.folder.resolve(), given.method, given.seconds)
            report = run_plan(text, work, Path(folder) / "store")
            parts.append(table(network.name, report, tflite_top1(network, given.folder)))
            print(parts[-1], flush=True)
    protocol, machine = report["protocol"], report["machine"]
    command = f"python benchmarks/networks.py FOLDER --method {given.method} --seconds {given.seconds:g}"
    head = [
        "# Trained networks through the pipeline",
        "",
        f"Made by `{command}` on {report['created'][:10]}:",
        f"{machine['cpu']} ({' '.join(machine['isa'])}), {machine['num_cores']} cores;",
        f"{', '.join(f'{k} {v}' for k, v in report['versions'].items())}.",
        "",
        f"{protocol['description']} {protocol['num_threads']} thread.",
        "*(simulated)*: the accuracy of the model in float simulation, since no TensorRT can run on this machine.",
        "",
        "",
    ]
    if given.output is not None:
        given.output.write_text("\n".join(head) + "\n".join(parts))


if __name__ == "__main__":
    main()
