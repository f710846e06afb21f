"""Every architecture of keras.applications, with random weights, through the pipeline: what stops, how near it stays.

Each is built for small pictures, its batch norms take their means from smooth pictures, and it goes through ``export``,
``calibrate``, ``quantize`` for both placements, ``cast``, and a build of FP32, FP16 and INT8 by TensorRT for RTX, which
needs no GPU. Answers on other smooth pictures are set against FP32's: before the last Softmax, in dB, INT8 for TensorRT
simulated in float. Usage::

    python benchmarks/architectures.py --output benchmarks/results/architectures.md

Some 50 architectures take about two hours on one core; `--only` runs those whose names have this.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks.calibration import cpu_name
from benchmarks.candidates import Candidate, called, python
from benchmarks.int8_answers import Answers, answers, sqnrs_db
from engines.onnx_model import facts

NUM_CALIBRATION, NUM_JUDGED = 16, 16
FAMILIES = (
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
)
NAMES = """
import json, sys, keras
every = (getattr(keras.applications, name) for name in dir(keras.applications))
with open(sys.argv[1], "w") as file:
    json.dump(sorted(each.__name__ for each in every if callable(each) and each.__name__[0].isupper()), file)
"""
EXPORT = """
import sys, numpy as np, keras
name, images, out = sys.argv[1:]
samples = np.load(images)
keras.utils.set_random_seed(1)
model = getattr(keras.applications, name)(weights=None, input_shape=samples.shape[1:])
for layer in model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.0
model(samples, training=True)
model.export(out)
"""
BUILDS = ("fp32", "fp16", "int8")


@dataclass
class Line:
    """What came of one architecture."""

    name: str
    num_products: int = 0
    int8: dict[str, int] = field(default_factory=dict)
    """Products in INT8, by placement."""
    sqnr_db: dict[str, float] = field(default_factory=dict)
    built: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> str:
        """Of the table."""
        counts = " | ".join(str(self.int8.get(target, "–")) for target in ("tensorrt", "onnxruntime"))
        ratios = " | ".join(
            f"{self.sqnr_db[key]:.1f}" if key in self.sqnr_db else "–" for key in ("fp16", "tensorrt", "onnxruntime")
        )
        state = "; ".join(self.failures) or "all done"
        return f"| {self.name} | {self.num_products} | {counts} | {ratios} | {', '.join(self.built)} | {state} |"


def main() -> None:
    """Run the architectures and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the architectures whose names have this alone")
    parser.add_argument("--families", action="store_true", help="the smallest of each family alone")
    parser.add_argument("--size", type=int, default=96, help="pixels of a picture's side")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    given = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as work:
        names = FAMILIES if given.families else every_name(Path(work))
        for name in (name for name in names if given.only in name):
            with tempfile.TemporaryDirectory() as folder:
                lines.append(line(name, Path(folder), given.size))
            print(lines[-1].row(), f"{lines[-1].seconds:.0f} s", flush=True)
            if given.output is not None:
                given.output.write_text(page(lines, given.size, sys.argv[1:]), encoding="utf-8")


def every_name(work: Path) -> tuple[str, ...]:
    """All that keras.applications has."""
    if failure := python(sys.executable, NAMES, work / "names.json"):
        raise SystemExit(failure)
    return tuple(json.loads((work / "names.json").read_text()))


def line(name: str, work: Path, size: int) -> Line:
    """One architecture, as far as it goes."""
    begin, made = time.monotonic(), Line(name)
    samples = smooth(NUM_CALIBRATION + NUM_JUDGED, size)
    np.save(work / "calibration.npy", samples[:NUM_CALIBRATION])
    if failure := python(sys.executable, EXPORT, name, work / "calibration.npy", work / "saved"):
        made.failures.append(f"Keras does not make it: {failure.splitlines()[-1]}")
    elif step(made, "export", work / "saved", "-o", work / "fp32.onnx"):
        judge(made, work, samples[NUM_CALIBRATION:])
    made.seconds = time.monotonic() - begin
    return made


def judge(made: Line, work: Path, samples: npt.NDArray[np.float32]) -> None:
    """Make the variants of an exported model, compare their answers, build them."""
    fp32, ranges = work / "fp32.onnx", work / "ranges"
    made.num_products = facts(fp32).num_quantizable
    exact = answers(Candidate("fp32", fp32, "simulation"), samples, work)
    models = {"fp32": fp32}
    if step(made, "calibrate", fp32, "--data", work / "calibration.npy", "-o", ranges):
        for target in ("tensorrt", "onnxruntime"):
            path = work / f"{target}.onnx"
            if step(made, "quantize", fp32, "--ranges", ranges, "--target", target, "-o", path):
                made.int8[target] = facts(path).num_quantized
                run = "simulation" if target == "tensorrt" else "kernels"
                rounded = answers(Candidate(target, path, run), samples, work)  # type: ignore[arg-type]
                made.sqnr_db[target] = ratio(exact, rounded)
        models["int8"] = work / "tensorrt.onnx"
        if step(made, "cast", fp32, "--ranges", ranges, "-o", work / "fp16.onnx"):
            models["fp16"] = work / "fp16.onnx"
            made.sqnr_db["fp16"] = ratio(exact, answers(Candidate("fp16", models["fp16"], "kernels"), samples, work))
    shape = "keras_tensor:1x" + "x".join(map(str, samples.shape[1:]))
    profile = [word for which in ("min", "opt", "max") for word in (f"--{which}-shapes", shape)]
    for precision in (each for each in BUILDS if each in models and models[each].exists()):
        options = ("--backend", "tensorrt_rtx", "--precision", precision, *profile)
        if step(made, "build", models[precision], *options, "-o", work / f"{precision}.engine"):
            made.built.append(precision)


def ratio(exact: Answers, rounded: Answers) -> float:
    """Mean over the samples, in dB."""
    return float(sqnrs_db(exact.logits, rounded.logits).mean())


def step(made: Line, *arguments: object) -> bool:
    """One command of ours; False if it failed, with its sentence noted."""
    failure = called([sys.executable, "-m", "pipeline", *map(str, arguments)])
    if failure:
        made.failures.append(f"{arguments[0]}: {failure.splitlines()[-1][:300]}")
    return not failure


def smooth(num: int, size: int) -> npt.NDArray[np.float32]:
    """(num, size, size, 3): noise of 8 x 8 pixels, made larger; 0 to 255."""
    noise = np.random.default_rng(0).integers(0, 256, (num, 8, 8, 3), np.uint8)
    pictures = (Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC) for each in noise)
    return np.stack([np.asarray(picture, np.float32) for picture in pictures])


def page(lines: list[Line], size: int, arguments: Sequence[str]) -> str:
    """The table as Markdown; ``arguments`` are those of the command that made it."""
    failed = sum(bool(each.failures) for each in lines)
    return "\n".join(
        [
            "# keras.applications through the pipeline",
            "",
            f"Made by `python benchmarks/architectures.py {' '.join(arguments)}`, random",
            f"weights, pictures of {size} pixels, {cpu_name()}. {len(lines)} architectures, {failed} with a failure.",
            "",
            "SQNR of what goes into the last Softmax against FP32, in dB, mean over smooth pictures; weights are",
            "random, so it tells whether something is broken, not what a trained network loses.",
            "",
            "| architecture | products | INT8 for TensorRT | for ONNX Runtime | FP16, dB | INT8 for TensorRT, dB "
            "| for ONNX Runtime, dB | built by RTX | |",
            "|---|---:|---:|---:|---:|---:|---:|---|---|",
            *(each.row() for each in lines),
            "",
        ]
    )


if __name__ == "__main__":
    main()
