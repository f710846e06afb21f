"""What `trtforge deliver --to cpp` writes, beside Python: the same answers to the bit, and the CPU time of a query.

A plan's engines of ONNX Runtime are built, each is delivered as a program, and that is compiled. It gets the stored
evaluation samples, preprocesses them itself, and its outputs are compared with those that Python computes. Then the
program and Python take turns on one thread, in blocks of queries of one sample, each block of both in random order;
CPU time is counted, so that who else uses the machine counts little. A block's figure is the median of its queries; the
ratio is the median over blocks of C++ : Python, with its quartiles.

    python -m benchmarks.cpp_program PLAN --headers FOLDER [--precisions fp32 int8] [--store FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.batches import Samples
from engines.backends import onnxruntime
from pipeline.delivery.contents import delivered_from
from pipeline.delivery.cpp import cpp_program, deliver_to_cpp
from pipeline.flow import run
from pipeline.plan import Plan, read_plan
from pipeline.results import Results
from pipeline.store import Store
from pipeline.trained.pixels import preprocess_of

NUM_SAMPLES = 8
"""Whose answers are compared."""
BLOCKS = 21
BLOCK_SECONDS = 1.0
WARM_UP = 20
COLUMNS = ("engine", "answers that differ", "Python, p50 of CPU time", "C++, p50 of CPU time", "C++ : Python")


@dataclass(frozen=True)
class Program:
    """Compiled, with its engine and the files of stored samples."""

    binary: Path
    engine: Path
    folder: Path

    def answer(self, samples: Mapping[str, AnyArray], num_runs: int) -> str:
        """What it prints of these stored samples; its outputs lie in the folder ``out``."""
        for name, array in samples.items():
            np.save(self.folder / f"{name}.npy", array)
        inputs = [f"{name}={self.folder / name}.npy" for name in samples]
        quick = ["--threads", "1", "--runs", str(num_runs), "--warm-up", str(WARM_UP if num_runs > 1 else 0)]
        command = [str(self.binary), str(self.engine), *inputs, "--output", str(self.folder / "out"), *quick]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def outputs(self) -> list[AnyArray]:
        """Of the last answer, in the engine's order."""
        files = sorted((self.folder / "out").iterdir(), key=lambda file: int(file.name.partition("-")[0]))
        return [np.load(file) for file in files]


def compiled(engine: Path, plan: Plan, headers: Path, folder: Path) -> Program:
    """The program of an engine, against the library of the wheel."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    library = folder / "libonnxruntime.so.1"
    library.symlink_to(next(Path(spec.origin).parent.glob("capi/libonnxruntime.so.*")))
    source, build = folder / "program", folder / "build"
    deliver_to_cpp(cpp_program(delivered_from("timed", engine, "onnxruntime"), preprocess_of(plan), (), ()), source)
    definitions = [f"-DONNXRUNTIME_INCLUDE={headers.resolve()}", f"-DONNXRUNTIME_LIBRARY={library}"]
    subprocess.run(["cmake", "-S", source, "-B", build, *definitions], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "--parallel", "2"], check=True, capture_output=True)
    return Program(build / "trtforge_model", source / "model.onnx", folder)


def stored_samples(samples: Samples) -> dict[str, AnyArray]:
    """The first ones, before preprocessing; all of one size."""
    parts = [block.arrays for block, _ in zip(samples.reader.blocks(NUM_SAMPLES), range(NUM_SAMPLES), strict=False)]
    return {name: np.concatenate([part[name] for part in parts])[:NUM_SAMPLES] for name in parts[0]}


def row(name: str, engine: Path, program: Program, results: Results) -> list[str]:
    """What is measured of one engine."""
    samples = results.evaluation
    stored = stored_samples(samples)
    query = next(iter(samples.batches(1)))
    with onnxruntime.load(engine, num_threads=1) as runner:
        expected = runner.infer(next(iter(samples.batches(NUM_SAMPLES))))
        program.answer(stored, 1)
        made = program.outputs()
        differing = sum(
            a.shape != b.shape or a.tobytes() != b.tobytes() for a, b in zip(expected.values(), made, strict=True)
        )
        of_one = {key: array[:1] for key, array in stored.items()}
        begin = time.process_time()
        for _ in range(WARM_UP):
            runner.infer(query)
        num_queries = max(20, int(BLOCK_SECONDS * WARM_UP / (time.process_time() - begin)))
        times: dict[str, list[float]] = {"Python": [], "C++": []}
        random = np.random.default_rng(0)
        for _ in range(BLOCKS):
            for side in random.permutation(list(times)):
                if side == "C++":
                    text = program.answer(of_one, num_queries)
                    times[side].append(1e3 * float(re.findall(r"cpu_ms p50 ([\d.]+)", text)[0]))
                    continue
                each = []
                for number in range(WARM_UP + num_queries):
                    begin = time.process_time()
                    runner.infer(query)
                    if number >= WARM_UP:
                        each.append(1e6 * (time.process_time() - begin))
                times[side].append(statistics.median(each))
    ratios = [cpp / python for cpp, python in zip(times["C++"], times["Python"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = [f"{statistics.median(times[side]):.1f} µs" for side in ("Python", "C++")]
    return [name, f"{differing} of {len(made)} outputs", *medians, f"{middle:.3f} ({low:.3f} to {high:.3f})"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--headers", type=Path, required=True, help="folder of onnxruntime_cxx_api.h")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--store", type=Path, default=Path(".trtforge"))
    options = parser.parse_args()
    quoted = ", ".join(f'"{precision}"' for precision in options.precisions)
    plan = read_plan(options.plan, (f"variants.precisions=[{quoted}]", 'variants.backends=["onnxruntime"]'))
    results = run(plan, Store(options.store), "build")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for variant, engine in results.engines.items():
        with tempfile.TemporaryDirectory() as folder:
            program = compiled(engine.path, plan, options.headers, Path(folder))
            print("| " + " | ".join(row(variant.name, engine.path, program, results)) + " |", flush=True)


if __name__ == "__main__":
    main()
