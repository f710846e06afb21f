"""What calling a backend in another process costs per query, beside the same calls in one process of the same Python.

Usage: python -m benchmarks.elsewhere [--python PYTHON] [--sessions N] [--rounds N] [--seconds S] [--output FILE.md]

PYTHON (default .venv/python38/bin/python, which scripts/bindings makes) has ONNX Runtime for its 3.8. On one side it
runs the loop of timed queries by itself; on the other as JetPack 5's is called, from this Python; both on one thread.
In each session both are started anew, in random order, for where memory comes to lie makes two loads of one file
differ; then they take turns, round by round, in random order. Of a block: p50, p99, and queries per second from its
first begin to its last end, as throughput is defined here. A session's ratio is the median of its rounds'; shown is
the median over sessions, with an interval of 95 % by bootstrap over sessions. Between blocks: from when a block is
asked for to when its times are here, less the block itself. Held to: p50 within its interval of 1, and throughput at
most 2 % less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.arrays import Floats
from engines.backends import onnxruntime
from engines.contract import Array, BuildOptions, ShapeRange
from engines.elsewhere.backend import BoundFeeds, ElsewhereBackend
from engines.elsewhere.process import ElsewhereProcess
from engines.timed_queries import BlockLength, QueryArrivals

ROOT = Path(__file__).resolve().parents[1]
MOST_LOST = 0.02
ALONE = """
import json, sys, time
from functools import partial
from pathlib import Path
import numpy as np
from engines.backends import onnxruntime
from engines.timed_queries import BlockLength, QueryArrivals, run_queries
feed = {"x": np.load(sys.argv[2])}
with onnxruntime.load(Path(sys.argv[1]), num_threads=1) as runner:
    for line in sys.stdin:
        length, clock = BlockLength(1, float(line)), time.perf_counter_ns
        starts, ends, _ = run_queries(
            partial(runner.infer, feed), runner.device_ms, length, clock, QueryArrivals().begin(clock)
        )
        ms, span_ns = (np.asarray(ends) - np.asarray(starts)) / 1e6, ends[-1] - starts[0]
        print(json.dumps([np.median(ms), np.quantile(ms, 0.99), len(ms) / span_ns * 1e9]), flush=True)
"""


@dataclass(frozen=True)
class Block:
    """One block of one side."""

    p50_ms: float
    p99_ms: float
    queries_per_s: float
    around_ms: float = 0.0
    """Of the side that is called: what passed between blocks."""


def small(path: Path) -> tuple[int, ...]:
    """A matrix product of nothing: all that is timed is what surrounds it."""
    return _saved(path, [("w", np.eye(4, dtype=np.float32))], [helper.make_node("MatMul", ["x", "w"], ["y"])], (1, 4))


def convolutions(path: Path) -> tuple[int, ...]:
    """Six convolutions of 3 x 3 over 64 channels of 56 x 56, as a stage of ResNet-50 has."""
    random = np.random.default_rng(0)
    weights: list[tuple[str, Array]] = []
    nodes: list[onnx.NodeProto] = []
    last = "x"
    for number in range(6):
        weights.append((f"w{number}", (random.standard_normal((64, 64, 3, 3)) / 24).astype(np.float32)))
        nodes += [
            helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{number}"], ["y" if number == 5 else f"r{number}"]),
        ]
        last = f"r{number}"
    return _saved(path, weights, nodes, (1, 64, 56, 56))


NETWORKS: dict[str, Callable[[Path], tuple[int, ...]]] = {"a small product": small, "six convolutions": convolutions}


def _saved(
    path: Path, weights: Sequence[tuple[str, Array]], nodes: Sequence[onnx.NodeProto], shape: tuple[int, ...]
) -> tuple[int, ...]:
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return shape


@contextmanager
def alone(python: str, engine: Path, feed: Path) -> Iterator[Callable[[float], Block]]:
    """The loop in one process."""
    command = (python, "-c", ALONE, str(engine), str(feed))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def run(seconds: float) -> Block:
            ask.write(f"{seconds * 1e9}\n")
            ask.flush()
            return Block(*json.loads(answers.readline()))

        yield run
        ask.close()


@contextmanager
def through(python: str, engine: Path, feed: Path) -> Iterator[Callable[[float], Block]]:
    """The loop in a process that is called from here."""
    process = ElsewhereProcess(python, onnxruntime.__name__, "onnxruntime")
    with ElsewhereBackend(process).load(engine, 1) as runner:
        bound: BoundFeeds = runner.bind([{"x": np.load(feed)}])

        def run(seconds: float) -> Block:
            before_ns = time.perf_counter_ns()
            starts, ends, _ = bound.run_queries(BlockLength(1, seconds * 1e9), QueryArrivals())
            ms, span_ns = (np.asarray(ends) - np.asarray(starts)) / 1e6, ends[-1] - starts[0]
            around_ms = (time.perf_counter_ns() - before_ns - span_ns) / 1e6
            return Block(float(np.median(ms)), float(np.quantile(ms, 0.99)), len(ms) / span_ns * 1e9, around_ms)

        yield run
    process.close()


def interval(ratios: Floats) -> tuple[float, float, float]:
    """The median, and its interval of 95 % by bootstrap."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (5000, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975)).tolist()
    return float(np.median(ratios)), low, high


def session(files: tuple[Path, Path], given: argparse.Namespace, order: np.random.Generator) -> list[list[Block]]:
    """The blocks of both sides, which are started anew."""
    sides: list[list[Block]] = [[], []]
    with ExitStack() as stack:
        runs = {
            side: stack.enter_context((alone, through)[side](given.python, *files)) for side in order.permutation(2)
        }
        for number in range(given.rounds + 2):
            for side in order.permutation(2):
                block = runs[side](given.seconds)
                if number >= 2:  # Two rounds warm up.
                    sides[side].append(block)
    return sides


def compared(name: str, given: argparse.Namespace) -> tuple[list[str], bool]:
    """Rows of the table for one network, and whether it is within what it is held to."""
    with tempfile.TemporaryDirectory() as folder:
        model, engine, feed = (Path(folder) / file for file in ("m.onnx", "engine.onnx", "x.npy"))
        shape = NETWORKS[name](model)
        onnxruntime.build(model, engine, BuildOptions(shapes={"x": ShapeRange(shape, shape, shape)}))
        np.save(feed, np.random.default_rng(1).standard_normal(shape).astype(np.float32))
        order = np.random.default_rng(2)
        sessions = [session((engine, feed), given, order) for _ in range(given.sessions)]
    rows, holds = [], True
    for label, key, is_held in (
        ("p50, ms", "p50_ms", lambda low, high: low <= 1),
        ("p99, ms", "p99_ms", lambda low, high: True),
        ("queries per second", "queries_per_s", lambda low, high: high >= 1 - MOST_LOST),
    ):
        tables = np.array([[[getattr(block, key) for block in side] for side in sides] for sides in sessions])
        first, second = np.median(tables, axis=(0, 2))
        middle, low, high = interval(np.median(tables[:, 1] / tables[:, 0], axis=1))
        holds &= is_held(low, high)
        rows.append(f"| {name} | {label} | {first:.4g} | {second:.4g} | {middle:.4f} ({low:.4f} to {high:.4f}) |")
    around_ms = np.median([block.around_ms for sides in sessions for block in sides[1]])
    rows.append(f"| {name} | between blocks, ms | | {around_ms:.2f} | |")
    return rows, holds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=str(ROOT / ".venv" / "python38" / "bin" / "python"))
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    results = [compared(name, given) for name in NETWORKS]
    table = [
        "| network | quantity | one process | through the other process | ratio (95 %) |",
        "|---|---|---|---|---|",
        *(row for rows, _ in results for row in rows),
    ]
    print("\n".join(table))
    if given.output:
        versions = ElsewhereBackend(ElsewhereProcess(given.python, onnxruntime.__name__, "onnxruntime")).versions()
        title = "# A backend in another process: what it costs per query"
        how = (
            f"Made by `python -m benchmarks.elsewhere --output {given.output}`: {given.sessions} sessions of "
            f"{given.rounds} rounds of {given.seconds:g} s for each side, on {versions['cpu']} with ONNX Runtime "
            f"{versions['onnxruntime']} for Python 3.8, called from {sys.version_info[0]}.{sys.version_info[1]}; "
            "one thread. TensorRT was not measured: no machine with Python 3.8 and a GPU was at hand. What is measured "
            "is told at the head of the script."
        )
        given.output.write_text("\n\n".join([title, how, "\n".join(table)]) + "\n")
    if not all(holds for _, holds in results):
        sys.exit("more than it is held to: see the ratios")


if __name__ == "__main__":
    main()
