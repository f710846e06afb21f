"""Do derived tolerances pass every sound engine and catch every wrong one? Trained networks, made wrong on purpose.

For each network, precision, placement and calibration method: the engine as it should be, and the same engine with one
fault. What of the verdict catches it is told apart: the outputs against what was derived, the scales against the
ranges, the ranges against the evaluation samples. Beside it, what a cosine that is guessed says. Usage, with a folder
laid out as for `benchmarks/networks.py`::

    python benchmarks/tolerances.py FOLDER --output benchmarks/results/tolerances.md
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks.compiled import compile_program
from benchmarks.networks import NETWORKS, Network
from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.precision.placement import PlacementTarget
from calibration.ranges.ranges import METHODS
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, write_ranges
from pipeline.accuracy.bisection import Evidence, run_bisection
from pipeline.accuracy.comparison import Tolerance, write_outputs
from pipeline.artifact import Engine, OnnxModel, Outputs, Ranges, Tolerances
from pipeline.engine_runner import runner_of
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.quantize import Quantize
from pipeline.stages.tolerate import Rounding, Tolerate
from pipeline.stages.validate import Judge, Judged, Validate

NUM_EVALUATED = 512
NUM_BISECTED = 16
GUESSED = {"fp16": 0.999, "int8": 0.9}
"""The cosines of a batch that are asked for where nothing is derived."""
DERIVED = Tolerance()
Change = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
TARGETS: tuple[PlacementTarget, ...] = ("tensorrt", "onnxruntime")


@dataclass
class Tally:
    """One kind of engine, over all cases."""

    num: int = 0
    outputs: int = 0
    """Called wrong by the outputs."""
    ranges: int = 0
    scales: int = 0
    any: int = 0
    guessed: int = 0
    """Called wrong by the tolerances that were guessed."""
    named: int = 0
    searched: int = 0
    margins_db: list[float] = field(default_factory=list)
    """SQNR less the derived bound."""


@dataclass(frozen=True)
class Setting:
    """One network with its data, and where to work."""

    fp32: OnnxModel
    calibration: Samples
    evaluation: Samples
    reference: Outputs
    work: Path


@dataclass(frozen=True)
class Kind:
    """Engines of one kind: what was derived for them, and the ranges that are right."""

    precision: Any
    simulated: bool
    tolerances: Tolerances
    ranges: Ranges


def main() -> None:
    """Run all networks and write the tables."""
    compile_program()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS), help="calibration methods")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    given = parser.parse_args()
    tallies: dict[tuple[str, str], Tally] = {}
    bounds: list[str] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for network in (NETWORKS[0], NETWORKS[1], NETWORKS[3]):
            work = Path(folder) / network.input / network.name.split(",")[0]
            work.mkdir(parents=True)
            setting = prepared(network, given.folder, work)
            for method in given.methods.split(","):
                bounds += judge_all(setting, network.name.split(",")[0], method, tallies)
            print(f"{network.name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    text = page(tallies, bounds, given.methods.split(","))
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")


def prepared(network: Network, folder: Path, work: Path) -> Setting:
    """Export the network, and write its samples as it takes them."""
    model = work / "fp32.onnx"
    command = [sys.executable, "-m", "pipeline", "export", str(folder / network.source), "-o", str(model)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with np.load(folder / network.data) as stored:
        arrays = {key: stored[key].astype(np.float32) * np.float32(network.scale) for key in ("x_calib", "x_test")}
    specs = input_specs_from_onnx(model)
    opened = []
    for key, array in arrays.items():
        np.savez(work / f"{key}.npz", **{network.input: array})
        source = DataSource(str(work / f"{key}.npz"), limit=NUM_EVALUATED if key == "x_test" else 0)
        opened.append(open_samples(source, specs, Preprocess()))
    fp32 = OnnxModel(model)
    return Setting(fp32, opened[0], opened[1], answers(Engine(model), opened[1], work / "reference.json"), work)


def answers(engine: Engine, samples: Samples, path: Path, change: Change = lambda array: array) -> Outputs:
    """What an engine answers to the samples, changed."""
    batches = []
    with runner_of(engine, 1) as runner:
        for batch in samples.batches(64):
            feed = {name: change(np.asarray(array, np.float32)) for name, array in batch.items()}
            batches.append(runner.infer(feed))
    write_outputs(path, "engine", batches)
    return Outputs(path)


def judge_all(setting: Setting, name: str, method: str, tallies: dict[tuple[str, str], Tally]) -> Iterator[str]:
    """All engines of one network and method; lines for the table of bounds."""
    folder = setting.work / method
    folder.mkdir()
    ranges = Calibrate(method=method)(folder, setting.fp32, setting.calibration)  # type: ignore[arg-type]
    if method == METHODS[0]:
        made = made_in(folder / "fp16", partial(Cast(), model=setting.fp32, ranges=ranges))
        rounding = Rounding("fp16", "none")
        tolerances = made_in(
            folder / "tolerances_fp16",
            partial(Tolerate(), model=setting.fp32, samples=setting.evaluation, rounding=rounding),
        )
        kind = Kind("fp16", False, tolerances, ranges)
        margin = judge_kind(setting, kind, made, tallies, "FP16")
        yield bound_line(name, "fp16", "–", kind, margin)
    for target in TARGETS:
        stage = Quantize(target=target)
        arithmetic = stage.chosen_arithmetic()[0] if target == "onnxruntime" else "s8s8"
        rounding = Rounding("int8", target, arithmetic=arithmetic, method=method, corrects_biases=True)  # type: ignore[arg-type]
        tolerances = made_in(
            folder / f"tolerances_{target}",
            partial(Tolerate(), model=setting.fp32, samples=setting.evaluation, rounding=rounding),
        )
        model = made_in(folder / target, partial(stage, model=setting.fp32, ranges=ranges))
        kind = Kind("int8", target == "tensorrt", tolerances, ranges)
        margin = judge_kind(setting, kind, model, tallies, f"INT8 {target}")
        judge_ranges(setting, kind, stage, tallies, f"INT8 {target}")
        if method == "entropy":
            judge_scales(setting, kind, model, tallies, f"INT8 {target}")
        yield bound_line(name, f"int8 {target}", method, kind, margin)


def made_in(folder: Path, stage: Callable[[Path], Any]) -> Any:
    """What a stage makes in a folder of its own."""
    folder.mkdir()
    return stage(folder)


def judge_kind(
    setting: Setting, kind: Kind, model: OnnxModel, tallies: dict[tuple[str, str], Tally], column: str
) -> float:
    """The sound engine, and the same on inputs that are wrong; the sound one's SQNR less the bound, dB."""
    evidence = Evidence(setting.fp32, model, setting.evaluation, kind.ranges)
    margin = count(setting, kind, evidence, tallies.setdefault(("sound", column), Tally()))
    wrong: dict[str, Change] = {
        "normalized to -1 … 1 of the largest": lambda x: x / np.float32(np.abs(x).max()) * 2 - 1,
        "scaled by 0.8": lambda x: x * np.float32(0.8),
    }
    if setting.evaluation.specs[0].shape[-1] == 3:
        wrong["channels swapped"] = lambda x: x[..., ::-1].copy()
    for what, change in wrong.items():
        count(setting, kind, evidence, tallies.setdefault((f"input {what}", column), Tally()), change)
    return margin


def judge_ranges(
    setting: Setting, kind: Kind, stage: Quantize, tallies: dict[tuple[str, str], Tally], column: str
) -> None:
    """Engines made with ranges that are all too small or too wide."""
    found, histograms = ranges_from_folder(kind.ranges.path), histograms_from_folder(kind.ranges.path)
    for factor, what in ((0.5, "all ranges halved"), (2.0, "all ranges doubled")):
        folder = kind.tolerances.path.parent / f"ranges{factor}"
        folder.mkdir()
        tensors = {
            name: replace(t, amax=t.amax * factor, min=t.min * factor, max=t.max * factor)
            for name, t in found.tensors.items()
        }
        write_ranges(replace(found, tensors=tensors), histograms, folder)
        changed = Ranges(folder)
        model = made_in(folder.parent / f"model{factor}", partial(stage, model=setting.fp32, ranges=changed))
        evidence = Evidence(setting.fp32, model, setting.evaluation, changed)
        count(setting, kind, evidence, tallies.setdefault((what, column), Tally()))


def judge_scales(
    setting: Setting, kind: Kind, model: OnnxModel, tallies: dict[tuple[str, str], Tally], column: str
) -> None:
    """Engines with one wrong scale: of each activation and of each weight."""
    proto = onnx.load(model.path)
    constants = {tensor.name for tensor in proto.graph.initializer}
    quantizes = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    of_tensors = {node.input[1]: node.input[0] for node in quantizes if node.input[0] not in constants}
    of_weights = {
        node.input[1]: "" for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[1] not in of_tensors
        and "bias" not in node.input[1].lower()
    }  # fmt: skip
    for factor in (0.5, 2.0):
        for scales, what in ((of_tensors, "one tensor's scale"), (of_weights, "one weight's scales")):
            tally = tallies.setdefault((f"{what} × {factor:g}", column), Tally())
            for scale, tensor in scales.items():
                path = kind.tolerances.path.parent / "wrong.onnx"
                onnx.save(with_scale(proto, scale, factor), path)
                evidence = Evidence(setting.fp32, OnnxModel(path), setting.evaluation, kind.ranges)
                count(setting, kind, evidence, tally)
                if tensor:
                    first = run_bisection(evidence, NUM_BISECTED, "onnxruntime").suspects[0]
                    tally.searched += 1
                    tally.named += first.tensor == tensor.removesuffix("_float")


def with_scale(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """The model with one scale multiplied."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for tensor in found.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return found


def count(
    setting: Setting, kind: Kind, evidence: Evidence, tally: Tally, change: Change = lambda array: array
) -> float:
    """Judge an engine and count what calls it wrong; its SQNR less the bound, dB."""
    assert evidence.model is not None
    engine = Engine(evidence.model.path, simulated=kind.simulated)
    outputs = answers(engine, setting.evaluation, setting.work / "outputs.json", change)
    stage = Validate(tolerances={"fp16": DERIVED, "int8": DERIVED}, num_bisected=0)
    judge = Judge("", "", Path())
    found = stage(
        setting.work, setting.reference, outputs, None, Judged(judge, kind.precision, evidence, kind.tolerances)
    ).read()
    by = [
        sum(sentence.startswith(word) for sentence in found["failures"]) > 0 for word in ("output", "ranges", "tensor")
    ]
    tally.num += 1
    tally.outputs, tally.ranges, tally.scales = tally.outputs + by[0], tally.ranges + by[1], tally.scales + by[2]
    tally.any += not found["passed"]
    (name,) = found["derived"]
    tally.guessed += found["comparison"][name]["cosine_min"] < GUESSED[kind.precision]
    margin = float(found["comparison"][name]["sqnr_db"] - found["derived"][name]["min_sqnr_db"])
    tally.margins_db.append(margin)
    return margin


def bound_line(name: str, kind: str, method: str, known: Kind, margin_db: float) -> str:
    """One line of the table of bounds."""
    (bound,) = known.tolerances.read()["outputs"].values()
    return (
        f"| {name} | {kind} | {method} | {bound['mean_db']:.1f} ± {bound['deviation_db']:.1f} | "
        f"{bound['min_sqnr_db']:.1f} | {bound['min_sqnr_db'] + margin_db:.1f} | {bound['atol']:.3f} | "
        f"{bound['floor_db'] or float('inf'):.0f} |"
    )


def page(tallies: dict[tuple[str, str], Tally], bounds: list[str], methods: list[str]) -> str:
    """The Markdown."""
    lines = [
        "# Derived tolerances: sound engines pass, wrong ones are caught",
        "",
        "Made by `python benchmarks/tolerances.py FOLDER --output benchmarks/results/tolerances.md`: DS-CNN (keyword "
        "spotting), ResNet8 (CIFAR-10) and a MobileNetV2-like network (Fashion-MNIST), "
        f"{NUM_EVALUATED} evaluation samples each, calibration by {', '.join(methods)}. TensorRT's placement is "
        "simulated, ONNX Runtime's runs its integer kernels.",
        "",
        "Of each kind of engine: how many there are; how many are called wrong by their outputs alone, by their ranges "
        "against the evaluation samples, by their scales against the ranges, by any of these; how many a guessed "
        f"cosine calls wrong ({GUESSED['fp16']:g} for FP16, {GUESSED['int8']:g} for INT8); and how often bisection on "
        f"{NUM_BISECTED} samples names the very tensor first. Single scales are changed with entropy alone.",
        "",
        "| engines | kind | number | outputs | ranges | scales | called wrong | guessed cosine | named |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (what, column), tally in sorted(tallies.items(), key=lambda item: (item[0][0] != "sound", item[0])):
        named = f"{tally.named} of {tally.searched}" if tally.searched else ""
        lines.append(
            f"| {what} | {column} | {tally.num} | {tally.outputs} | {tally.ranges} | {tally.scales} | "
            f"**{tally.any}** | {tally.guessed} | {named} |"
        )
    lines += [
        "",
        "## What was derived, and where sound engines are",
        "",
        "SQNR in dB: of the engines that were drawn at random (mean ± standard deviation), the bound, the sound "
        "engine's on all samples; the derived atol; the SQNR of one FP32 run against another.",
        "",
        "| network | engine | method | drawn | bound | sound engine | atol | FP32 again |",
        "|---|---|---|---:|---:|---:|---:|---:|",
        *bounds,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
