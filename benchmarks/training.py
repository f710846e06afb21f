"""What tuning, pruning and rounding win on the three networks, beside post-training quantization and other tools.

For each network and each placement: top-1 of FP32, and of INT8 by post-training quantization, with equalization, with
weights rounded by their data, tuned without labels and tuned with the labels of the same calibration samples; for ONNX
Runtime also with weights of 4 bits; what other tools make of the same samples (``benchmarks/training_others.py``); and
FP32 and INT8 after pruning, at once and while training, with the size of the file, raw and compressed. Every figure is
of the whole test set, each seed a run of its own; p is of McNemar's exact test against post-training quantization on
the same samples, of the seed that is worst, and of that itself against FP32. CPU seconds are those of the stage, beside
a plain pass of FP32 in ONNX Runtime over the same samples, in the same process; those of other tools are of their
processes, reading included.

Usage::

    python -m benchmarks.training FOLDER --environments WORK --output benchmarks/results/training.md
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.networks import NETWORKS, PLAN, Network
from benchmarks.training_others import SameSamples, by_others
from calibration.precision.placement import PlacementTarget, RoundingMethod
from engines.backends import onnxruntime
from engines.cpu import cpu_name
from pipeline.accuracy.weight_codes import codes_from_folder
from pipeline.accuracy.weight_rounding import RoundWeights
from pipeline.artifact import OnnxModel, WeightCodes
from pipeline.engine_runner import load_simulation
from pipeline.flow import models_of
from pipeline.plan import Plan, read_plan
from pipeline.report.compressed_size import compressed_sizes
from pipeline.results import Results
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.prune import Prune
from pipeline.stages.quantize import Quantize
from pipeline.stages.tune import Tune
from pipeline.stats.proportions import mcnemar
from pipeline.store import Store
from pipeline.training.options import TrainingAim

Bools = npt.NDArray[np.bool_]
SHORT = {"kws_dscnn/kws_ref_model": "kws", "resnet8_cifar10/resnet8_savedmodel": "resnet8",
         "fashion_mnist/fashion_mnv2_tiny_savedmodel": "fashion"}  # fmt: skip
CASES: tuple[tuple[PlacementTarget, int], ...] = (("tensorrt", 8), ("onnxruntime", 8), ("onnxruntime", 4))
"""Placements, and the bits of weights."""
LOSSES = ("teacher", "both")
KERAS = {"resnet8": "resnet8_cifar10/pretrainedResnet.h5", "fashion": "fashion_mnist/fashion_mnv2_tiny.keras"}
"""What Keras 2 is given, where it is not the SavedModel."""


@dataclass(frozen=True)
class Made:
    """One network, exported and calibrated, and the samples that judge it."""

    plan: Plan
    results: Results
    work: Path

    def right(self, model: OnnxModel) -> Bools:
        """(N,): whether each test sample is answered rightly, every node computed as it stands."""
        samples = self.results.evaluation
        with load_simulation(model.path) as runner:
            outputs = [next(iter(runner.infer(feed).values())) for feed in samples.batches(100)]
        return np.asarray(np.concatenate(outputs).argmax(axis=-1) == samples.labels())

    def folder(self) -> Path:
        """A new one."""
        return Path(tempfile.mkdtemp(dir=self.work))

    def aim(self, target: PlacementTarget | None, bits: int = 8, codes: WeightCodes | None = None) -> TrainingAim:
        """What is learned; with codes, it begins at these."""
        options = None
        if target is not None:
            options = self.quantize(target, bits).placement_options(self.results.fp32)
            options = replace(options, chosen=None if codes is None else codes_from_folder(codes))
        return TrainingAim(self.results.fp32, "top1", "", Path(), options)

    def quantize(self, target: PlacementTarget, bits: int = 8, rounding: RoundingMethod = "squant") -> Quantize:
        """For a placement; u8s8, so that the machine does not matter."""
        return Quantize(target=target, arithmetic="u8s8", weight_bits=bits, rounding=rounding)

    def int8_is_right(self, target: PlacementTarget, bits: int = 8) -> Bools:
        """(N,): as ``right``, of post-training quantization."""
        assert self.results.ranges is not None
        return self.right(self.quantize(target, bits)(self.folder(), self.results.fp32, self.results.ranges))

    def codes(self, target: PlacementTarget, bits: int) -> WeightCodes:
        """Weights rounded by the calibration samples."""
        assert self.results.ranges is not None
        assert self.results.calibration is not None
        options = self.quantize(target, bits, "gptq").placement_options(self.results.fp32)
        return RoundWeights(options, 1)(self.folder(), self.results.fp32, self.results.ranges, self.results.calibration)


@dataclass
class Row:
    """One line of the table: a figure for each seed."""

    network: str
    what: str
    top1: list[float]
    p_value: float | None
    used: str
    cpu_seconds: list[float]

    def text(self) -> str:
        """As Markdown."""
        if not self.top1:
            return f"| {self.network} | {self.what} | failed |  |  |  |"
        mean = float(np.mean(self.top1))
        spread = f" ± {interval(self.top1):.4f}" if len(self.top1) > 1 else ""
        p = "" if self.p_value is None else f"{self.p_value:.2g}"
        cpu = f"{np.mean(self.cpu_seconds):.1f}" if self.cpu_seconds else ""
        return f"| {self.network} | {self.what} | {mean:.4f}{spread} | {p} | {self.used} | {cpu} |"


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t with the few seeds that there are."""
    quantile = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 2.0)
    return float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))


def made_of(folder: Path, network: Network, work: Path, more: str = "") -> Made:
    """Export and calibrate; ``more`` stands at the end of the plan."""
    shapes = {name: [batch, *network.shape] for name, batch in (("smallest", 1), ("usual", 8), ("largest", 32))}
    text = PLAN.format(source=folder / network.source, input=network.input, data=folder / network.data,
                       scale=network.scale, method="auto", seconds=0.1, **shapes)  # fmt: skip
    path = work / "plan.toml"
    path.write_text(text.replace('"fp16", ', "").replace(', "tensorrt_rtx"', "") + more)
    plan = read_plan(path)
    return Made(plan, models_of(plan, Store(work / "store"), "calibrate"), work)


def tuning_rows(made: Made, name: str, seeds: Sequence[int], epochs: int) -> Iterator[Row]:
    """FP32, and for each placement what post-training quantization and tuning make of it."""
    full = made.right(made.results.fp32)
    yield Row(name, "FP32", [float(full.mean())], None, "", [])
    for target, bits in CASES:
        ranges = made.results.ranges
        assert ranges is not None
        what, ptq = _called(target, bits), made.int8_is_right(target, bits)
        yield Row(name, f"{what}, PTQ", [float(ptq.mean())], p_of(ptq, full), "", [])
        if bits != 8:
            nearest = made.quantize(target, bits, "nearest")(made.folder(), made.results.fp32, ranges)
            yield _row_of(name, f"{what}, PTQ, rounding nearest", made.right(nearest), ptq, [])
        begin = time.process_time()
        codes = made.codes(target, bits)
        seconds = time.process_time() - begin
        by_data = made.quantize(target, bits, "gptq")(made.folder(), made.results.fp32, ranges, codes)
        yield _row_of(name, f"{what}, PTQ, rounding gptq", made.right(by_data), ptq, [seconds])
        yield from (_tuned_row(made, name, Case(target, bits, loss), (seeds, epochs), ptq) for loss in LOSSES)
        if bits != 8:
            yield _tuned_row(made, name, Case(target, bits, "teacher", codes), (seeds, epochs), ptq)


@dataclass(frozen=True)
class Case:
    """What is tuned for, and by what."""

    target: PlacementTarget
    bits: int
    loss: str
    codes: WeightCodes | None = None
    """That it begins at."""

    def words(self) -> str:
        """For a row."""
        begins = "" if self.codes is None else " from gptq's codes"
        return f"{_called(self.target, self.bits)}, tuned by {self.loss}{begins}"


def _called(target: PlacementTarget, bits: int) -> str:
    return f"{'INT8' if bits == 8 else 'INT8, weights of 4 bits,'} {target}"


def _tuned_row(made: Made, name: str, case: Case, runs: tuple[Sequence[int], int], ptq: Bools) -> Row:
    """Of each seed, after so many epochs."""
    results, (seeds, epochs) = made.results, runs
    assert results.ranges is not None
    assert results.calibration is not None
    top1, p_values, seconds, used = [], [], [], 0
    for seed in seeds:
        stage = Tune(seed=seed, epochs=epochs, loss=case.loss, num_threads=1)
        aim, begin = made.aim(case.target, case.bits, case.codes), time.process_time()
        tuned = stage(made.folder(), results.fp32, results.ranges, results.calibration, aim)
        seconds.append(time.process_time() - begin)
        used += (is_used := tuned.read()["is_used"])
        stage_of_int8 = made.quantize(case.target, case.bits, "gptq" if case.codes and not is_used else "squant")
        decided = (case.codes,) if case.codes is not None and not is_used else ()
        right = made.right(stage_of_int8(made.folder(), tuned.model, tuned.ranges, *decided))
        top1.append(float(right.mean()))
        p_values.append(p_of(right, ptq))
    return Row(name, case.words(), top1, max(p_values), f"{used} of {len(seeds)}", seconds)


def _row_of(name: str, what: str, right: Bools, ptq: Bools, seconds: list[float]) -> Row:
    return Row(name, what, [float(right.mean())], p_of(right, ptq), "", seconds)


def equalized_rows(folder: Path, network: Network, made: Made, name: str) -> Iterator[Row]:
    """Post-training quantization of the network whose channels were made alike."""
    work = made.folder()
    other = made_of(folder, network, work, "\n[export]\nequalize = true\n")
    for target, bits in CASES:
        right, ptq = other.int8_is_right(target, bits), made.int8_is_right(target, bits)
        yield _row_of(name, f"{_called(target, bits)}, equalized, PTQ", right, ptq, [])


def rows_of_others(
    folder: Path, network: Network, made: Made, name: str, environments: tuple[Path, Sequence[int]]
) -> Iterator[Row]:
    """What other tools make of the same samples; p is against ours for ONNX Runtime."""
    results, work = made.results, made.folder()
    assert results.calibration is not None
    for key, samples in (("x", results.calibration), ("test", results.evaluation)):
        np.save(work / key, np.concatenate([next(iter(feed.values())) for feed in samples.batches(500)]))
    np.save(work / "y", results.calibration.labels())
    labels = np.asarray(results.evaluation.labels(), np.int64)
    keras = folder / KERAS.get(name, network.source)
    same = SameSamples(folder / network.source, keras, results.fp32.path, work, labels)
    ptq = made.int8_is_right("onnxruntime")
    for result in by_others(same, *environments):
        if result.failure:
            yield Row(name, f"{result.what}: {result.failure.strip().splitlines()[-1][:120]}", [], None, "", [])
            continue
        top1 = [float(right.mean()) for right in result.right]
        worst = max(p_of(right, ptq) for right in result.right)
        yield Row(name, result.what, top1, worst, "", list(result.cpu_seconds))


def p_of(first: Bools, second: Bools) -> float:
    """Exact and two-sided, of two judgements of the same samples."""
    return mcnemar(int((first & ~second).sum()), int((~first & second).sum()))


def pruning_rows(made: Made, name: str, seeds: Sequence[int], epochs: int) -> Iterator[str]:
    """Top-1 and sizes after pruning a half, of FP32 and of INT8 for ONNX Runtime."""
    results = made.results
    assert results.calibration is not None
    assert results.ranges is not None
    dense = results.fp32
    int8 = made.quantize("onnxruntime")(made.folder(), dense, results.ranges)
    row = PrunedRow(name, "dense", [float(made.right(dense).mean())], [float(made.right(int8).mean())])
    yield row.text((dense, int8))
    for how, stage in pruning_stages(epochs):
        row = PrunedRow(name, how)
        for seed in seeds if stage.epochs else (1,):
            out, begin = made.folder(), time.process_time()
            pruned = replace(stage, seed=seed)(out, dense, results.calibration, made.aim(None))
            row.cpu_seconds.append(time.process_time() - begin)
            if stage.epochs:
                row.used.append(bool(json.loads((out / "training.json").read_text())["is_used"]))
            ranges = Calibrate()(made.folder(), pruned, results.calibration)
            int8 = made.quantize("onnxruntime")(made.folder(), pruned, ranges)
            row.full.append(float(made.right(pruned).mean()))
            row.small.append(float(made.right(int8).mean()))
        yield row.text((pruned, int8))


def pruning_stages(epochs: int) -> list[tuple[str, Prune]]:
    """What a half of the weights is set to zero by."""
    plain = Prune(num_threads=1)
    return [
        ("obs", plain),
        ("obs, trained", replace(plain, epochs=epochs)),
        ("obs, 2:4", replace(plain, pattern="2:4")),
        ("obs, 75 %", replace(plain, share=0.75)),
        ("obs, 75 %, trained", replace(plain, share=0.75, epochs=epochs)),
        ("wanda", replace(plain, method="wanda")),
        ("wanda, trained meanwhile", replace(plain, method="wanda", epochs=epochs)),
        ("wanda, 75 %, trained meanwhile", replace(plain, share=0.75, method="wanda", epochs=epochs)),
    ]


@dataclass
class PrunedRow:
    """One line of the table of zeros: a figure for each seed."""

    network: str
    how: str
    full: list[float] = field(default_factory=list)
    """Top-1 in FP32."""
    small: list[float] = field(default_factory=list)
    """The same in INT8."""
    used: list[bool] = field(default_factory=list)
    """Whether what was trained is used."""
    cpu_seconds: list[float] = field(default_factory=list)

    def text(self, files: tuple[OnnxModel, OnnxModel]) -> str:
        """As Markdown, with the sizes of FP32's and INT8's file of the last seed."""
        sizes = []
        for file in files:
            each = compressed_sizes(file.path)
            sizes.append(" / ".join(f"{size / 1024:.0f}" for size in (file.path.stat().st_size, *each.values())))
        spread = f" ± {interval(self.full):.4f}" if len(self.full) > 1 else ""
        used = f"{sum(self.used)} of {len(self.used)}" if self.used else ""
        cpu = f"{np.mean(self.cpu_seconds):.1f}" if self.cpu_seconds else ""
        cells = (self.network, self.how, f"{np.mean(self.full):.4f}{spread}", f"{np.mean(self.small):.4f}", used, cpu)
        return f"| {' | '.join((*cells, *sizes))} |"


def plain_pass_seconds(made: Made) -> float:
    """CPU seconds of FP32 in ONNX Runtime over the calibration samples, one thread, in batches as `tune` takes."""
    assert made.results.calibration is not None
    with load_simulation(made.results.fp32.path, 1) as runner:
        feeds = list(made.results.calibration.batches(32))
        runner.infer(feeds[0])
        begin = time.process_time()
        for feed in feeds:
            runner.infer(feed)
        return time.process_time() - begin


def main() -> None:
    """Run and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--environments", type=Path, help="where other tools' environments are; without it, only ours")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pruning-epochs", type=int, default=30)
    parser.add_argument("--only", default="", help="names with commas between")
    options = parser.parse_args()
    seeds = list(range(1, options.seeds + 1))
    rows: list[str] = []
    pruned: list[str] = []
    costs: list[str] = []
    for network in NETWORKS:
        name = SHORT.get(network.source, "")
        if not name or (options.only and name not in options.only.split(",")):
            continue
        with tempfile.TemporaryDirectory() as text:
            made = made_of(options.folder.resolve(), network, Path(text))
            plain = plain_pass_seconds(made)
            begin = len(rows)
            folder = options.folder.resolve()
            made_rows = [tuning_rows(made, name, seeds, options.epochs), equalized_rows(folder, network, made, name)]
            if options.environments is not None:
                where = options.environments.resolve(), seeds
                made_rows.append(rows_of_others(folder, network, made, name, where))
            for row in chain(*made_rows):
                rows.append(row.text())
                print(rows[-1], flush=True)
                if "tuned" in row.what:
                    costs.append(_cost(name, row, plain, options.epochs, made))
            assert len(rows) > begin
            for line in pruning_rows(made, name, seeds, options.pruning_epochs):
                pruned.append(line)
                print(line, flush=True)
        write(options.output, rows, pruned, costs, vars(options))


def _cost(name: str, row: Row, plain: float, epochs: int, made: Made) -> str:
    """CPU seconds of a tuning in passes, everything included: reading, the teacher, the files that are judged."""
    assert made.results.calibration is not None
    passes = float(np.mean(row.cpu_seconds)) / plain
    return f"| {name} | {row.what} | {plain:.3f} | {np.mean(row.cpu_seconds):.1f} | {passes / epochs:.1f} |"


def write(path: Path, rows: list[str], pruned: list[str], costs: list[str], options: dict[str, Any]) -> None:
    """The page, as far as it is."""
    how = "python -m benchmarks.training FOLDER --environments WORK"
    how += f" --seeds {options['seeds']} --epochs {options['epochs']}"
    path.write_text(
        "\n".join([
            "# Tuning and pruning", "",
            f"`{how} --pruning-epochs {options['pruning_epochs']}` on {cpu_name()}, ONNX Runtime "
            f"{onnxruntime.versions()['onnxruntime']}; whole test sets (kws 800, resnet8 2000, fashion "
            "10,000); trained on the calibration samples (200, 500, 1000) alone, a quarter of them held out.",
            "", "## INT8", "",
            "± is the 95 % interval over seeds; p of McNemar's exact test against PTQ, of the worst seed, and of PTQ "
            "against FP32; used: how "
            "many seeds beat PTQ on the held-out samples beyond doubt, the others are PTQ itself. What others make of "
            "the same calibration samples: NNCF 3.4.0 (its placement is OpenVINO's; accuracy control to a drop of 0 on "
            "these samples), TFMOT 0.8.1 with tf_keras (by labels, 10 epochs of Adam at 1e-4 on three quarters), and "
            "TensorFlow's converter to LiteRT; p is against ours for ONNX Runtime.", "",
            "| network | variant | top-1 | p | used | CPU s |", "|---|---|---|---|---|---|", *rows,
            "", "## What a tuning costs", "",
            "CPU seconds of one thread, with everything but loading torch the first time; a plain pass is FP32 in ONNX "
            "Runtime over the same samples.", "",
            "| network | variant | plain pass, s | tuning, s | plain passes for each epoch |", "|---|---|---|---|---|",
            *costs, "", "## Weights at zero", "",
            "A half of them, or as many as the row says, of each output channel. Sizes in KiB: raw / gzip / xz / zstd. "
            "Used: how many seeds, trained, beat what was pruned at once on held-out samples beyond doubt; the others "
            "are pruned at once.", "",
            "| network | how | FP32 top-1 | INT8 top-1 | used | CPU s | FP32 file | INT8 file (ONNX Runtime) |",
            "|---|---|---|---|---|---|---|---|", *pruned, "",
        ]),
        encoding="utf-8",
    )  # fmt: skip


if __name__ == "__main__":
    main()
