"""What folding the preprocessing into the network brings: answers, bytes of a query, and CPU time on ONNX Runtime.

Each plan is run as it is and with [export] fold_preprocess. Then both INT8 models, both FP32 models, and the plan's
preprocessing in NumPy take turns on one thread, in blocks of queries, each block of every one in random order; CPU time
is counted, so that who else uses the machine counts little. A ratio is the median over blocks of folded : plain.

    python -m benchmarks.pixels PLAN... [--store FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.batches import Samples
from engines.backends import onnxruntime
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.store import Store

SETTINGS = ('variants.precisions=["fp32", "int8"]', 'variants.backends=["onnxruntime"]')
BLOCKS = 41
BLOCK_SECONDS = 0.15
COLUMNS = ("network", "bytes of a query", "metric of INT8", "FP32", "INT8", "INT8 and preprocessing")


@dataclass(frozen=True)
class Side:
    """A plan with or without folding, run."""

    made: Results
    query: Mapping[str, AnyArray]
    """The first evaluation sample, as the network takes it."""

    def model(self, name: str) -> Path:
        """Of a variant."""
        return next(model.path for variant, model in self.made.models.items() if variant.name == name)

    def metric(self, name: str) -> float:
        """Of a variant, on the evaluation samples."""
        verdict = next(verdict for variant, verdict in self.made.verdicts.items() if variant.name == name)
        return float(verdict.read()["metric"])


def side(path: Path, folded: bool, store: Store) -> Side:
    """Run a plan until validate."""
    plan = read_plan(path, (*SETTINGS, f"export.fold_preprocess={str(folded).lower()}"))
    made = run(plan, store, "validate")
    return Side(made, next(iter(made.evaluation.batches(1))))


def seconds(call: Callable[[], object], num: int) -> float:
    """CPU time of one call, of ``num`` in turn."""
    begin = time.process_time()
    for _ in range(num):
        call()
    return (time.process_time() - begin) / num


def raced(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """CPU time of a call by block, in seconds; in each block all of them, in random order."""
    random = np.random.default_rng(0)
    nums = {}
    for name, call in calls.items():
        seconds(call, 10)
        nums[name] = max(2, int(BLOCK_SECONDS / len(calls) / seconds(call, 10)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(BLOCKS):
        for name in random.permutation(list(calls)):
            times[name].append(seconds(calls[name], nums[name]))
    return times


def prepare(samples: Samples) -> Callable[[], object]:
    """What a program has to do to one stored sample before each query, without reading it."""
    block = next(iter(samples.reader.blocks(1)))
    return lambda: {name: np.ascontiguousarray(samples.preprocess(array)) for name, array in block.arrays.items()}


def row(path: Path, store: Store) -> list[str]:
    """The measurements of one plan."""
    sides = {"plain": side(path, False, store), "folded": side(path, True, store)}
    calls: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for name, each in sides.items():
            for precision in ("fp32", "int8"):
                runner = stack.enter_context(onnxruntime.load(each.model(f"{precision}@onnxruntime"), num_threads=1))
                calls[f"{name} {precision}"] = partial(runner.infer, each.query)
            calls[f"{name} prepared"] = prepare(each.made.evaluation)
        times = raced(calls)
    whole = {
        name: [a + b for a, b in zip(times[f"{name} int8"], times[f"{name} prepared"], strict=True)] for name in sides
    }
    sizes = {name: sum(array.nbytes for array in each.query.values()) for name, each in sides.items()}
    metrics = {name: each.metric("int8@onnxruntime") for name, each in sides.items()}
    return [
        path.stem,
        f"{sizes['plain']} → {sizes['folded']} ({sizes['folded'] / sizes['plain']:.2f})",
        f"{metrics['plain']:.4f} → {metrics['folded']:.4f}",
        compared(times["plain fp32"], times["folded fp32"]),
        compared(times["plain int8"], times["folded int8"]),
        compared(whole["plain"], whole["folded"]),
    ]


def compared(before: list[float], after: list[float]) -> str:
    """Both medians in microseconds, and the median of their ratios with the quartiles."""
    ratios = [new / old for old, new in zip(before, after, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    microseconds = [f"{1e6 * statistics.median(times):.1f}" for times in (before, after)]
    return f"{' → '.join(microseconds)} µs ({middle:.2f}, {low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--store", type=Path, default=Path(".trtforge"))
    options = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for path in options.plans:
        print("| " + " | ".join(row(path, Store(options.store))) + " |", flush=True)


if __name__ == "__main__":
    main()
