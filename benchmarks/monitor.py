"""What watching the machine costs: the same engine timed with the monitor and without it, in turns (A/A).

Usage: python -m benchmarks.monitor [--pairs N] [--monitor-ms MS] [--rails N]

Each pair is two runs of the benchmark stage, each in a process of its own, in random order: one reads a made-up Jetson
of so many rails every so many milliseconds beside what this machine has, the other reads nothing. Prints, for the
median, the 99th percentile and the mean, the ratio with / without: its median over the pairs, and the pairs' extremes.
Beside it stand the ratios of pairs in which neither was watched: what chance alone does.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from calibration.data.batches import input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from pipeline.artifact import Engine
from pipeline.latency.protocol import Protocol
from pipeline.stages import benchmark
from pipeline.stages.benchmark import Benchmark

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N,8,16,16] image) => (float[N,8,16,16] out) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, kernel)
  b = Relu (a)
  out = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, kernel)
}
"""
PROTOCOL = Protocol(warmup_seconds=0.1, min_seconds=1.5, num_blocks=5)


def made_up_rails(root: Path, num_rails: int) -> None:
    """A Jetson's power monitors below the root, besides links to this machine's own /sys and /proc."""
    for number in range(num_rails):
        folder = root / "sys/class/hwmon" / f"hwmon{number // 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text("ina3221")
        (folder / f"in{number % 3 + 1}_label").write_text(f"RAIL_{number}")
        (folder / f"in{number % 3 + 1}_input").write_text("5000")
        (folder / f"curr{number % 3 + 1}_input").write_text("1000")
    for name in ("sys/class/thermal", "sys/class/devfreq", "sys/devices", "proc"):
        if Path("/", name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(Path("/", name))


def latencies(work: Path, monitor_ms: int) -> dict[str, float]:
    """One run: median, 99th percentile and mean, milliseconds."""
    samples = open_samples(
        DataSource(str(work / "data.npz")), input_specs_from_onnx(work / "small.onnx"), Preprocess(), work
    )
    stage = Benchmark(num_threads=1, monitor_ms=monitor_ms, protocol=PROTOCOL)
    with tempfile.TemporaryDirectory(dir=work) as out:
        timings = stage(Path(out), {"small": Engine(work / "small.onnx")}, samples)
        (row,) = timings.read()["timings"]
        return {key: row["latency_ms"][key] for key in ("p50", "p99", "mean")}


def pair(work: Path, first_ms: int, second_ms: int) -> dict[str, float]:
    """The first's latencies / the second's, run in random order."""
    order = [("first", first_ms), ("second", second_ms)]
    random.shuffle(order)
    found = {which: latencies(work, monitor_ms) for which, monitor_ms in order}
    return {key: found["first"][key] / found["second"][key] for key in found["first"]}


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--monitor-ms", type=int, default=100)
    parser.add_argument("--rails", type=int, default=6)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        network = onnx.parser.parse_model(NETWORK)
        kernel = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
        network.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "kernel"))
        onnx.save(network, work / "small.onnx")
        np.savez(work / "data.npz", image=np.zeros((4, 8, 16, 16), dtype=np.float32))
        made_up_rails(work / "root", given.rails)
        benchmark.ROOT = work / "root"
        watched, chance = [], []
        for number in range(given.pairs):
            watched.append(pair(work, given.monitor_ms, 0))
            chance.append(pair(work, 0, 0))
            print(f"pair {number + 1} of {given.pairs}", flush=True)
    print(f"\nwith / without a monitor that reads every {given.monitor_ms} ms, {given.pairs} pairs\n")
    print("|      | watched / not | lowest | highest | not / not | lowest | highest |")
    print("|------|---------------|--------|---------|-----------|--------|---------|")
    for key in watched[0]:
        cells = []
        for pairs in (watched, chance):
            ratios = [one[key] for one in pairs]
            cells += [statistics.median(ratios), min(ratios), max(ratios)]
        print(f"| {key:<4} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
