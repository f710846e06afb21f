"""Calibration that stops early: what it costs, how far its scales are from those of all samples, how often it is wrong.

Trained networks on samples of their own (`benchmarks/trained.py`), of which calibration gets those for calibration and
a part of those for evaluation, EfficientNet-Lite1 each also mirrored. Accuracy is of the evaluation samples, Q/DQ for
TensorRT computed as written, made by `trtforge quantize` with the ranges of all and with those of the stop. A cost is
the CPU time of a whole process in plain passes over all the samples (`benchmarks/calibration.py`, with imports and
start; one thread, watching for TensorRT), one after the other in one run: of networks for 28x28 and 32x32 pixels the
start of a process, reading the ranges and choosing among readings are most of it. Every stop is made again with the
samples in another order.

`How often it is wrong` takes many random orders of each network's samples, in sixty-fourths, and asks the rule itself.

    python -m benchmarks.calibration_stop DATA --work FOLDER --output benchmarks/results/calibration_stop.md

DATA is laid out as for `benchmarks/networks.py`; FOLDER keeps the exported models and what was measured of each.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import pickle
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.calibration import PLAIN, Cost, cpu_name, run
from benchmarks.candidates import trtforge
from benchmarks.trained import LITE_NAME, Trained, trained_networks
from calibration.graph.external_data import model_from_file
from calibration.graph.watched_outputs import watchable, write_watched
from calibration.histogram.collect import collect
from calibration.histogram.histogram import Histogram
from calibration.histogram.methods import READINGS, Method
from calibration.precision.watch import WatchedTensors, watched_tensors
from calibration.ranges.ranges import RangesRecord
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.stop import LOOKS, NUM_SECTIONS, StopRule, stop_from_folder
from engines.backends import onnxruntime as backend

NAMES = ("ResNet8, CIFAR-10 (SavedModel)", LITE_NAME, "MobileNetV2-like, Fashion-MNIST (SavedModel)")
CASES: tuple[tuple[str, float], ...] = (("auto", 0.2), ("auto", 0.4), ("mse", 0.2))
"""Method and share; EfficientNet-Lite1 takes the last alone, and no random orders: it is slow enough."""
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
UNBOUNDED = 1e9
NUM_UNITS = LOOKS[0] * NUM_SECTIONS
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """A stop beside all samples by the same reading."""

    method: str
    share: float
    num_used: int
    cost: float
    """Plain passes over all samples; the next is that of a calibration with all of them."""
    cost_of_all: float
    largest: float
    """|scale of the stop / scale of all - 1|: of all tensors that are scales, and the median."""
    median: float
    right: tuple[float, float]
    """Share of the evaluation samples: with the ranges of all, and of the stop."""
    is_same: bool
    """In another order of the samples, byte by byte."""


@dataclass(frozen=True)
class Section:
    """A network."""

    name: str
    num_samples: int
    right: float
    rows: tuple[Row, ...]
    orders: tuple[tuple[str, float, int, int, int], ...]
    """Method, share, random orders, those that stopped, those of them whose ranges were beyond the share."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num", type=int, default=5000, help="samples at most")
    parser.add_argument("--orders", type=int, default=25, help="random orders")
    parser.add_argument("--until", default="", help="the network to end with")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    sections = []
    for name in NAMES:
        kept = given.work / f"{name}.pickle"
        if not kept.exists():
            (network,) = trained_networks(given.data, given.work, name)
            kept.write_bytes(pickle.dumps(section(network, given.work, given.num, given.orders)))
        sections.append(pickle.loads(kept.read_bytes()))
        if name == given.until:
            break
    text = page(sections)
    print(text)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")


def samples_of(network: Trained, num: int) -> Floats:
    """Those for calibration and as many of the others as are missing; mirrored where there are few."""
    both = np.concatenate([network.calibration, network.evaluation])
    if network.name == LITE_NAME:
        both = np.concatenate([both, both[:, :, ::-1]])
    return np.ascontiguousarray(both[np.random.default_rng(0).permutation(len(both))][:num])


def section(network: Trained, work: Path, num: int, num_orders: int) -> Section:
    """All of one network."""
    stem = network.name.split(",")[0]
    model = work / f"{stem}.onnx"
    if not model.exists():
        trtforge("export", network.source, "-o", model)
    samples = samples_of(network, num)
    with tempfile.TemporaryDirectory(dir=work) as text:
        folder = Path(text)
        np.save(folder / "a.npy", samples)
        np.save(folder / "b.npy", samples[np.random.default_rng(1).permutation(len(samples))])
        plain = cost([sys.executable, "-c", PLAIN, str(model), str(folder / "a.npy")], folder)
        rows, all_of = [], {}
        for method, share in CASES[2:] if network.name == LITE_NAME else CASES:
            if method not in all_of:
                all_of[method] = calibrate(model, folder, "a", method, 0.0)
            rows.append(row(network, model, (method, share), plain, all_of[method]))
        right = right_share(network, model)
    methods: tuple[Method, ...] = () if network.name == LITE_NAME else ("entropy", "mse")
    orders = tuple(each for method in methods for each in wrong_stops(model, samples, method, num_orders))
    return Section(network.name, len(samples), right, tuple(rows), orders)


def row(network: Trained, model: Path, case: tuple[str, float], plain: Cost, of_all: tuple[Path, Cost]) -> Row:
    """A stop, made with the samples in two orders."""
    method, share = case
    (ours, spent), (other, _) = (calibrate(model, of_all[0].parent, order, method, share) for order in "ab")
    stop = stop_from_folder(ours)
    assert stop is not None
    changes = scale_changes(ranges_from_folder(ours), ranges_from_folder(of_all[0]), watched_of(model).scaled)
    names = sorted(path.name for path in ours.iterdir())
    is_same = not any(filecmp.cmpfiles(ours, other, names, shallow=False)[1:])
    result = Row(
        method, share, stop.num_used, spent.cpu_s / plain.cpu_s, of_all[1].cpu_s / plain.cpu_s,
        float(changes.max()), float(np.median(changes)),
        (right_share(network, int8(model, of_all[0])), right_share(network, int8(model, ours))), is_same,
    )  # fmt: skip
    print(network.name, result, file=sys.stderr, flush=True)
    return result


def calibrate(model: Path, folder: Path, order: str, method: str, share: float) -> tuple[Path, Cost]:
    """The ranges by the command, and what it cost."""
    out = folder / f"{order}-{method}-{share}"
    command = [sys.executable, "-m", "pipeline", "calibrate", str(model), "--data", str(folder / f"{order}.npy"), "-o"]
    options = [str(out), "--num-threads", "1", "--watch", "tensorrt", "--method", method, "--stop", str(share)]
    return out, cost([*command, *options], folder)


def cost(command: list[str], folder: Path) -> Cost:
    """Of a process that must not fail."""
    spent = run(command, folder, 16.0)
    if spent is None:
        raise SystemExit(f"{command}: failed")
    return spent


def scale_changes(ours: RangesRecord, of_all: RangesRecord, names: frozenset[str]) -> Floats:
    """Of each tensor that is a scale, by the reading that the stop chose for TensorRT, as a share of that of all."""
    changes = []
    for name in sorted(names):
        tensor = ours.read_for("tensorrt").tensors[name]
        other = of_all.tensors[name].amax_by_method[tensor.method]
        changes.append(abs(tensor.amax / other - 1) if other else 0.0)
    return np.array(changes, np.float32)


def int8(model: Path, ranges: Path) -> Path:
    """The model in INT8, placed for TensorRT."""
    target = ranges.with_suffix(".onnx")
    trtforge("quantize", model, "--ranges", ranges, "-o", target)
    return target


def right_share(network: Trained, model: Path) -> float:
    """Top-1 of the evaluation samples, Q/DQ computed as written."""
    with backend.load_simulation(model, num_threads=1) as runner:
        name = runner.inputs[0].name
        answers = [next(iter(runner.infer({name: one[None]}).values())) for one in network.evaluation]
    return float(np.mean(np.concatenate(answers).argmax(-1) == network.labels))


def watched_of(model: Path) -> WatchedTensors:
    """As `--watch tensorrt` does."""
    proto = model_from_file(model)
    return watched_tensors(proto, "tensorrt", watchable(proto))


def wrong_stops(
    model: Path, samples: Floats, method: Method, num_orders: int
) -> list[tuple[str, float, int, int, int]]:
    """Of random orders, how many stopped, and how many of those were wrong of any tensor."""
    units = units_of(model, samples)
    size, names = len(samples) // NUM_UNITS, sorted(watched_of(model).scaled & units[0].keys())
    of_all = {name: READINGS[method](reduce(Histogram.merged, [unit[name] for unit in units])) for name in names}
    random, counts = np.random.default_rng(2), dict.fromkeys(SHARES, (0, 0))
    for _ in range(num_orders):
        sums = summed([units[index] for index in random.permutation(NUM_UNITS)[: NUM_UNITS // 2]], names)
        rule = StopRule(UNBOUNDED, (size * NUM_UNITS, 1), 99.99, lambda _found: dict.fromkeys(names, (method,)))
        for number, histograms in enumerate(sums, 1):  # With no bound all three looks are taken.
            if rule.is_due(number * size):
                rule.on_part(number * size, histograms)
        for share in SHARES:
            looks = rule.stop().looks
            passed = [look.num_samples for look in looks if look.change / look.allowed * UNBOUNDED <= share]
            if passed:
                histograms = sums[passed[0] // size - 1]
                ranges = {name: READINGS[method](histograms[name]) for name in names}
                is_wrong = any(abs(ranges[name] - of_all[name]) > share * of_all[name] for name in names)
                counts[share] = counts[share][0] + 1, counts[share][1] + is_wrong
    return [(method, share, num_orders, *counts[share]) for share in SHARES]


def units_of(model: Path, samples: Floats) -> list[dict[str, Histogram]]:
    """The histograms of each sixty-fourth of the samples."""
    proto, size = model_from_file(model), len(samples) // NUM_UNITS
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "watched.onnx")
        write_watched(model, proto, watched_of(model).names, target)
        with backend.load_values(target, num_threads=1) as runner:
            name = runner.inputs[0].name
            return [
                collect(runner.infer, ({name: samples[row : row + 1]} for row in range(begin, begin + size)))
                for begin in range(0, size * NUM_UNITS, size)
            ]


def summed(units: Sequence[Mapping[str, Histogram]], names: Sequence[str]) -> list[dict[str, Histogram]]:
    """Of the first unit, of the first two, and so on."""
    sums: list[dict[str, Histogram]] = []
    for unit in units:
        sums.append({name: sums[-1][name].merged(unit[name]) if sums else unit[name] for name in names})
    return sums


def page(sections: Sequence[Section]) -> str:
    """The results as Markdown."""
    command = "python -m benchmarks.calibration_stop DATA --work FOLDER --output benchmarks/results/calibration_stop.md"
    lines = ["# Calibration that stops early", "", f"`{command}`", "", f"{cpu_name()}, {os.cpu_count()} cores.", ""]
    lines += [" ".join((__doc__ or "").split("\n\n")[1].split()), ""]
    for each in sections:
        lines += [f"## {each.name}, {each.num_samples} samples", "", f"FP32 is right on {each.right:.2%}.", ""]
        heads = (
            "used",
            "plain passes",
            "all samples: plain passes",
            "scales off by, at most",
            "half of them",
            "right, all",
        )
        lines += [f"| | {' | '.join(heads)} | right, stop | shuffled |", "|---" * 9 + "|"]
        lines += [
            f"| {r.method}, stop {r.share:g} | {r.num_used} | {r.cost:.2f} | {r.cost_of_all:.2f} | {r.largest:.1%} "
            f"| {r.median:.1%} | {r.right[0]:.2%} | {r.right[1]:.2%} | {'same bytes' if r.is_same else 'DIFFERENT'} |"
            for r in each.rows
        ]
        lines.append("")
        if not each.orders:
            continue
        lines += ["| reading | stop | random orders | stopped before the end | of those, wrong |", "|---" * 5 + "|"]
        lines += ["| " + " | ".join((o[0], f"{o[1]:g}", *map(str, o[2:]))) + " |" for o in each.orders] + [""]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
