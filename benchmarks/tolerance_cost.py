"""What deriving tolerances costs beside calibrating: six kinds of engines, FP32, FP16 and INT8 for two backends.

CPU seconds, one process for `calibrate` (auto, 64 images, both placements) and one for all kinds, which share FP32's
answers and the ranges of each half as in a plan; one thread, without imports. FP16 is one kind for both backends, as a
plan serves it. Peak memory by stage is in `benchmarks/whole_run.py`. Networks are those of `benchmarks/calibration.py`,
and any ONNX model with the images that it takes. Usage::

    python benchmarks/calibration.py FOLDER --num 64 --repetitions 1
    python benchmarks/tolerance_cost.py FOLDER/ResNet50.onnx=FOLDER/ResNet50_images_64.npy … --output FILE
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks.calibration import aside, cpu_name
from benchmarks.compiled import compile_program
from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.precision.placement import PlacementTarget
from calibration.ranges.ranges import AUTO, methods_of_tensors
from calibration.ranges.ranges_file import ranges_from_folder
from pipeline.artifact import OnnxModel
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.tolerate import Rounding, Tolerate

NUM = 64
TARGETS: tuple[PlacementTarget, ...] = ("onnxruntime", "tensorrt")


def samples_of(model: Path, images: Path) -> Samples:
    """The first images."""
    return open_samples(DataSource(str(images), limit=NUM), input_specs_from_onnx(model), Preprocess())


def calibrate(model: Path, images: Path, folder: Path) -> None:
    """By auto, for both placements."""
    network, samples = OnnxModel(model), samples_of(model, images)
    timed(folder / "calibrate", lambda out: Calibrate(num_threads=1)(out, network, samples))


def tolerate(model: Path, images: Path, folder: Path) -> None:
    """All kinds."""
    network, samples = OnnxModel(model), samples_of(model, images)
    ranges = ranges_from_folder(folder / "calibrate" / "ranges")
    corrects = any(tensor.channel_means for tensor in ranges.tensors.values())
    kinds = [Rounding("fp32", "none"), Rounding("fp32", "tensorrt"), Rounding("fp16", "none")]
    for target in TARGETS:
        methods = methods_of_tensors(ranges.read_for(target))
        kinds.append(Rounding("int8", target, (), "s8s8", AUTO, methods=methods, corrects_biases=corrects))

    def all_kinds(out: Path) -> None:
        for number, kind in enumerate(kinds):
            part = out / str(number)
            part.mkdir()
            Tolerate(num_threads=1)(part, network, samples, kind)

    timed(folder / "tolerate", all_kinds)


def timed(out: Path, make: Callable[[Path], object]) -> None:
    """Make it there, and write what it took beside it."""
    out.mkdir()
    start = time.process_time()
    make(out)
    out.with_suffix(".json").write_text(json.dumps(time.process_time() - start))


def row(model: Path, images: Path) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for part in (calibrate, tolerate):
            aside(part, model, images, folder)
        first, second = (json.loads((folder / f"{name}.json").read_text()) for name in ("calibrate", "tolerate"))
    return f"| {model.stem} | {first:.2f} | {second:.2f} | {second / first:.2f} |"


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("Usage::")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+", help="MODEL.onnx=IMAGES.npy")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    compile_program()
    names = " ".join(f"{Path(each.split('=')[0]).name}=…" for each in asked.networks)
    lines = [
        "# What tolerances cost",
        "",
        f"`python benchmarks/tolerance_cost.py {names}`",
        "",
        f"{cpu_name()}. All six kinds of engines together, beside `calibrate` on {NUM} images; what each column is: ",
        "see the head of the script.",
        "",
        "| network | calibrate, CPU s | tolerate, CPU s | of calibrate |",
        "|---|---:|---:|---:|",
    ]
    for each in asked.networks:
        model, images = (Path(part) for part in each.split("="))
        lines.append(row(model.resolve(), images.resolve()))
        print(lines[-1], flush=True)
    if asked.output:
        asked.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
