"""How near INT8 stays to FP32 by each reading of the ranges: auto beside each method, and ONNX Runtime's min-max.

Networks of FOLDER (laid out as for `benchmarks/networks.py`, and with `efficientnet_lite1/` and `ppocr_rec/` where they
are there), each exported once, calibrated on its calibration samples, judged on evaluation samples: SQNR of what goes
into a last Softmax and agreement of the arg max with FP32's, Q/DQ computed in float. Usage::

    python benchmarks/range_choice.py FOLDER --output benchmarks/results/range_choice.md
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks.calibration import cpu_name
from benchmarks.candidates import ORT, READER, python, trtforge
from benchmarks.networks import NETWORKS
from calibration.analysis.range_choice import choice_from_folder, sample_sqnr_db
from calibration.data.batches import input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.graph.answers import answer_tensors
from calibration.graph.watched_outputs import watch_tensors
from calibration.precision.placement import PlacementTarget
from calibration.ranges.ranges import AUTO, METHODS, RangeMethod
from pipeline.artifact import OnnxModel
from pipeline.engine_runner import load_simulation
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.quantize import Quantize

Floats = npt.NDArray[np.float32]
TARGETS: tuple[PlacementTarget, ...] = ("tensorrt", "onnxruntime")
READINGS: tuple[RangeMethod, ...] = (AUTO, *METHODS)


@dataclass(frozen=True)
class Network:
    """A trained network and its samples, preprocessed."""

    name: str
    source: Path
    calibration: Floats
    evaluation: Floats


@dataclass(frozen=True)
class Judged:
    """One INT8 model against FP32 on the evaluation samples: means over them."""

    sqnr_db: float
    agreement: float


def networks(folder: Path) -> Iterator[Network]:
    """What is there of the known ones."""
    for known in NETWORKS:
        if (folder / known.source).is_dir():  # Not the Keras files of the same weights.
            preprocess = Preprocess(scale=known.scale, dtype="float32")
            with np.load(folder / known.data) as stored:
                samples = [np.asarray(preprocess(stored[key]), np.float32) for key in ("x_calib", "x_test")]
            yield Network(known.name, folder / known.source, *samples)
    lite = folder / "efficientnet_lite1"
    if lite.exists():
        images = [photos(lite / kind, lite / f"{kind}.csv") for kind in ("calibration", "evaluation")]
        yield Network("EfficientNet-Lite1, ImageNet", lite / "efficientnet_lite1_savedmodel", *images)
    text = folder / "ppocr_rec"
    if text.exists():
        with np.load(text / "lines.npz") as stored:
            lines = [(stored[k].astype(np.float32) * np.float32(0.00784313725) - 1).transpose(0, 3, 1, 2)
                     for k in ("x_calib", "x_test")]  # fmt: skip
        yield Network("PP-OCRv4, text recognition", text / "ch_PP-OCRv4_rec.onnx", *map(np.ascontiguousarray, lines))


def photos(folder: Path, table: Path) -> Floats:
    """(N, 240, 240, 3): (x - 127) / 128."""
    with table.open() as stream:
        names = [row["file"] for row in csv.DictReader(stream)]
    return np.stack([(np.asarray(Image.open(folder / name).convert("RGB"), np.float32) - 127) / 128 for name in names])


def answers(model: onnx.ModelProto, names: list[str], samples: Floats, work: Path) -> list[dict[str, Floats]]:
    """Of each sample, in float with Q/DQ as written."""
    path = work / "run.onnx"
    onnx.save(watch_tensors(model, names), path)
    with load_simulation(path, 1) as runner:
        name = runner.inputs[0].name
        outputs = [runner.infer({name: sample[None]}) for sample in samples]
    return [{key: np.asarray(output[key], np.float32) for key in names} for output in outputs]


def judged(expected: list[dict[str, Floats]], answered: list[dict[str, Floats]]) -> Judged:
    """Mean SQNR, and the share of equal arg max over the last axis."""
    ratios = [ratio for want, have in zip(expected, answered) if (ratio := sample_sqnr_db(want, have)) is not None]
    equal = [
        (want[key].argmax(axis=-1) == have[key].argmax(axis=-1)).mean()
        for want, have in zip(expected, answered)
        for key in want
    ]
    return Judged(float(np.mean(ratios)), float(np.mean(equal)))


def section(network: Network, num_judged: int, work: Path) -> list[str]:
    """The table of a network."""
    fp32 = OnnxModel(work / "fp32.onnx")
    trtforge("export", network.source, "-o", fp32.path)
    proto = onnx.load(fp32.path)
    names, (spec,) = answer_tensors(proto), input_specs_from_onnx(fp32.path)
    np.savez(work / "calibration.npz", **{spec.name: network.calibration})  # type: ignore[arg-type]
    np.save(work / "calibration.npy", network.calibration)
    samples = open_samples(DataSource(str(work / "calibration.npz")), (spec,), Preprocess())
    at = np.linspace(0, len(network.evaluation) - 1, min(num_judged, len(network.evaluation))).astype(int)
    evaluation = network.evaluation[at]
    expected = answers(proto, names, evaluation, work)
    lines = ["| ranges | for tensorrt: SQNR, dB | agrees | for onnxruntime: SQNR, dB | agrees | calibrate, CPU s |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    chosen = ""
    for method in READINGS:
        folder = work / method
        folder.mkdir()
        start = time.process_time()
        ranges = Calibrate(method=method, num_threads=1)(folder, fp32, samples)
        seconds = time.process_time() - start
        cells = []
        for target in TARGETS:
            (folder / target).mkdir()
            int8 = Quantize(target=target, arithmetic="u8s8")(folder / target, fp32, ranges)
            end = judged(expected, answers(onnx.load(int8.path), names, evaluation, work))
            cells.append(f"{end.sqnr_db:.1f} | {end.agreement:.4f}")
        lines.append(f"| {method} | {' | '.join(cells)} | {seconds:.1f} |")
        if (choice := choice_from_folder(ranges.path)) is not None:
            chosen = choice.sentence()
    python(sys.executable, READER + ORT, fp32.path, work / "calibration.npy", work / "ort.onnx", "MinMax per_channel")
    end = judged(expected, answers(onnx.load(work / "ort.onnx"), names, evaluation, work))
    lines.append(f"| ONNX Runtime, min-max per channel | | | {end.sqnr_db:.1f} | {end.agreement:.4f} | |")
    counted = f"{len(evaluation)} evaluation samples, {len(network.calibration)} for calibration."
    return [f"## {network.name}", "", counted, "", *lines, "", f"auto: {chosen}.", ""]


def main() -> None:
    """Judge all networks and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=256, help="evaluation samples of each network, evenly spread")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    options = parser.parse_args()
    page = ["# Which reading of the ranges", "", f"`python {' '.join(['benchmarks/range_choice.py', *sys.argv[1:]])}`",
            "", f"{cpu_name()}. One thread; Q/DQ computed in float.", ""]  # fmt: skip
    for network in networks(options.folder.resolve()):
        with tempfile.TemporaryDirectory() as work:
            page += section(network, options.samples, Path(work))
        print("\n".join(page[-16:]), file=sys.stderr, flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
