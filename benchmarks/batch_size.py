"""What one sample costs on the CPU when so many are run at once: the figures behind ``[infer] batch_size = 0``.

Usage: python -m benchmarks.batch_size MODEL[:SIMULATION] ... [--num 64] [--rounds 3] [--output FILE]

Each MODEL is an ONNX file of one input, an open batch and otherwise fixed shapes; with ``:simulation`` its Q/DQ or FP16
nodes are computed as written, as TensorRT's engines are judged where none can run. Inputs are drawn. The batch sizes
take turns, round by round; medians of CPU milliseconds of all threads per sample.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.calibration import cpu_name
from calibration.data.batches import input_specs_from_onnx
from engines import backend
from engines.backends import onnxruntime
from pipeline.stages.infer import usual_batch_size

SIZES = (1, 2, 4, 8, 16, 32)
SIMULATION = ":simulation"


def cpu_ms(model: str, num: int, rounds: int) -> tuple[int, int, dict[int, float]]:
    """Bytes of one sample, how many `infer` runs at once, and CPU milliseconds for each by batch size."""
    path = Path(model.removesuffix(SIMULATION))
    (spec,) = input_specs_from_onnx(path)
    shape = (num, *(int(size) for size in spec.shape[1:]))
    inputs = np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    load = onnxruntime.load_simulation if model.endswith(SIMULATION) else backend("onnxruntime").load
    times: dict[int, list[float]] = defaultdict(list)
    with load(path, num_threads=0) as runner:
        for size in SIZES * (rounds + 1):
            start = time.process_time()
            for row in range(0, num, size):
                runner.infer({spec.name: inputs[row : row + size]})
            times[size].append((time.process_time() - start) / num * 1e3)
    choice = usual_batch_size({spec.name: inputs[:1]}, 1)
    return inputs[0].nbytes, choice, {size: statistics.median(taken[1:]) for size, taken in times.items()}


def main() -> None:
    """Measure each model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--num", type=int, default=64, help="samples of a round, a multiple of 32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    options = parser.parse_args()
    lines = ["# Samples per run on the CPU", "", "`python -m benchmarks.batch_size MODEL ...`", ""]
    lines += [f"{cpu_name()}. CPU milliseconds per sample when so many are run at once; the choice is in bold.", ""]
    lines += ["| model | KiB of a sample |" + "".join(f" {size} |" for size in SIZES), "|---|" + "---:|" * 7]
    for model in options.models:
        num_bytes, choice, taken = cpu_ms(model, options.num, options.rounds)
        nearest = max(size for size in SIZES if size <= choice)
        cells = (f" **{ms:.2f}** |" if size == nearest else f" {ms:.2f} |" for size, ms in taken.items())
        lines.append(f"| {Path(model).name} | {num_bytes / 1024:.0f} |" + "".join(cells))
    print("\n".join(lines))
    if options.output is not None:
        options.output.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
