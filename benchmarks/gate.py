"""False alarms and misses of the gate's statistics: the same engine against itself, and with a known delay added.

    python benchmarks/gate.py ROWS --runs 200 --same-runs 400 --output benchmarks/results/gate.md

Each run asks, as `pipeline/latency/paired.py` does with its default settings, if the candidate's p50 is at most 3 %
slower than the baseline's. Both are one ONNX file on ONNX Runtime (one thread, about 0.7 ms a query); the candidate
waits, busy, for 0 to 10 % of that after each query. A set is a run of each delay, in random order, in a process of its
own. Delays of 1 and 2 % lie near the limit and take long, so only one set in ``--sparse`` has them; 1: all. Rows are
added to the file ROWS (JSON lines), and a benchmark that was interrupted goes on with what is missing there.
``--only-table`` writes the table from what is there.

A *false alarm*: the same engine (A/A) is called a failure. A *miss*: a delay of 5 % is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.calibration import cpu_name
from engines.backends import onnxruntime
from pipeline.latency.benchmark import Candidate
from pipeline.latency.paired import LatencyLimit, PairedResult, compare_paired
from pipeline.latency.protocol import Pairing
from pipeline.stats.intervals import Limit
from pipeline.stats.proportions import wilson

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N,16,32,32] image) => (float[N,16,32,32] out) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, kernel)
  b = Relu (a)
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, kernel)
  d = Relu (c)
  e = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d, kernel)
  f = Relu (e)
  out = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (f, kernel)
}
"""
BATCH_SIZE = 4
DELAYS = (0.0, 0.01, 0.02, 0.05, 0.10)
SLOW_DELAYS = (0.01, 0.02)
LIMIT = Limit(1.03, at_most=True)
OUTCOMES = ("pass", "fail", "not decided")


def write_network(path: Path) -> None:
    network = onnx.parser.parse_model(NETWORK)
    kernel = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32) * 0.1
    network.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "kernel"))
    onnx.save(network, path)


def loading(model: Path, name: str, delay_ms: float) -> Callable[[], AbstractContextManager[Candidate]]:
    """Loads the network; each query waits so long after its answer."""

    @contextmanager
    def opened() -> Iterator[Candidate]:
        image = np.random.default_rng(1).normal(size=(BATCH_SIZE, 16, 32, 32)).astype(np.float32)
        delay_ns = int(delay_ms * 1e6)
        with onnxruntime.load(model, num_threads=1) as runner:

            def call() -> None:
                runner.infer({"image": image})
                if delay_ns:
                    until_ns = time.perf_counter_ns() + delay_ns
                    while time.perf_counter_ns() < until_ns:
                        pass

            yield Candidate(name, BATCH_SIZE, call, lambda: None)

    return opened


def plain_ms(model: Path) -> float:
    """The network's own latency: the median of 500 queries."""
    with loading(model, "plain", 0.0)() as candidate:
        times_ns = []
        for _ in range(550):
            start_ns = time.perf_counter_ns()
            candidate.call()
            times_ns.append(time.perf_counter_ns() - start_ns)
    return float(np.median(times_ns[50:])) / 1e6


def run_set(number: int, delays: Sequence[float]) -> Iterator[dict[str, Any]]:
    """One run of each of these delays."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "small.onnx"
        write_network(model)
        query_ms = plain_ms(model)
        for delay in np.random.default_rng(number).permutation(delays).tolist():
            load = os.getloadavg()[0]
            sides = loading(model, "candidate", delay * query_ms), loading(model, "baseline", 0.0)
            limit = LatencyLimit("p50", BATCH_SIZE, "p50", LIMIT, relative=True)
            result = compare_paired(*sides, [limit], Pairing(seed=number))
            yield {"set": number, "delay": delay, "query_ms": query_ms, "load": load} | row(result)


def row(result: PairedResult) -> dict[str, Any]:
    limit_result = result.limit_results[0]
    assert result.baseline is not None
    medians = [
        np.median(side.latency_ms.reshape(result.num_sessions, -1), axis=1)
        for side in (result.candidate, result.baseline)
    ]
    return {
        "p50": limit_result.outcome,
        "interval": [limit_result.interval.estimate, limit_result.interval.low, limit_result.interval.high],
        "num_loads": result.num_sessions,
        "num_queries": len(result.candidate.latency_ms),
        "seconds": result.seconds,
        "ratios": (medians[0] / medians[1]).round(4).tolist(),
    }


def add_row(path: Path, values: dict[str, Any]) -> None:
    """On a line of its own, also after one that was cut off."""
    text = path.read_text() if path.exists() else ""
    with path.open("a") as stream:
        stream.write("\n" * (text[-1:] not in ("", "\n")) + json.dumps(values) + "\n")


def read_rows(path: Path) -> dict[tuple[int, float], dict[str, Any]]:
    """By set and delay; a line that was cut off is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {
        (values["set"], values["delay"]): values
        for values in (json.loads(line) for line in lines if line.endswith("}"))
    }


def shares(rows: list[dict[str, Any]], key: str) -> list[str]:
    """Share of each outcome, in percent."""
    return [f"{100 * sum(run[key] == outcome for run in rows) / len(rows):.1f}" for outcome in OUTCOMES]


def with_interval(num_hits: int, num: int) -> str:
    low, high = wilson(num_hits, num)
    return f"{num_hits} of {num}, {100 * num_hits / num:.1f} % ({100 * low:.1f} to {100 * high:.2f})"


def table(rows: list[dict[str, Any]], command: str) -> str:
    """The page of results."""
    by_delay = {delay: [run for run in rows if run["delay"] == delay] for delay in DELAYS}
    loads = np.percentile([run["load"] for run in rows], (0, 50, 100))
    lines = [
        "# False alarms and misses of the gate",
        "",
        f"`{command}`",
        "",
        f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, ONNX Runtime "
        f"{onnxruntime.versions()['onnxruntime']}; other work ran on the machine: the load average was "
        f"{loads[1]:.1f} in the middle, {loads[0]:.1f} to {loads[2]:.1f}. One query takes "
        f"{np.median([run['query_ms'] for run in rows]):.2f} ms. The limit is *at most 3 % slower*, of p50; runs end "
        "when that is decided, long before p90 and p99 are: of these see [gate_tails.md](gate_tails.md). Percent of "
        "the runs.",
        "",
        "| delay | runs | pass | fail | not decided | median s | slowest s | median ratio |",
        "|---" * 8 + "|",
    ]
    for delay, runs in by_delay.items():
        name = f"{100 * delay:.0f} %" if delay else "none (A/A)"
        seconds = [run["seconds"] for run in runs]
        cells = [name, str(len(runs)), *shares(runs, "p50"), f"{np.median(seconds):.1f}", f"{max(seconds):.1f}"]
        cells.append(f"{np.median([run['interval'][0] for run in runs]):.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    same, slow = by_delay[0.0], by_delay[0.05]
    alone = np.array([ratio for run in same for ratio in run["ratios"]])
    wide = sum(not run["interval"][1] <= 1 <= run["interval"][2] for run in same)
    each = np.median([run["num_queries"] / run["num_loads"] for run in same])
    lines += [
        "",
        f"- False alarms (A/A called fail): {with_interval(sum(run['p50'] == 'fail' for run in same), len(same))}; "
        "the target is at most 1 %.",
        f"- Detection of 5 % (called fail): {with_interval(sum(run['p50'] == 'fail' for run in slow), len(slow))}; "
        "the target is at least 95 %.",
        f"- A/A runs whose 99 % interval leaves out 1: {with_interval(wide, len(same))}.",
        f"- What one load alone would have said: of {len(alone):,} single loads in the A/A runs (about {each:.0f} "
        f"queries of each side, in turns), {100 * np.mean(alone > LIMIT.bound):.1f} % have a p50 more than 3 % above "
        "the baseline's.",
        "- The delay is a share of the median that was measured at its set's begin; the median ratio is what it came "
        "to beside the baseline of the same run.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sparse", type=int, default=8)
    parser.add_argument("--same-runs", type=int, default=0, help="of A/A, if more: below 1 %% takes 0 of 381")
    parser.add_argument("--only-table", action="store_true")
    parser.add_argument("--set", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--delays", type=float, nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.set is not None:
        for found in run_set(given.set, given.delays):
            add_row(given.rows, found)
        return
    wanted = {
        number: [delay for delay in DELAYS if delay not in SLOW_DELAYS or number % given.sparse == 0]
        for number in range(given.runs)
    }
    wanted |= {number: [0.0] for number in range(given.runs, given.same_runs)}
    for number, delays in wanted.items():
        done = read_rows(given.rows)
        missing = [str(delay) for delay in delays if (number, delay) not in done]
        if missing and not given.only_table:
            own = [sys.executable, __file__, str(given.rows), "--set", str(number), "--delays", *missing]
            subprocess.run(own, check=True)
            print(f"{number + 1} of {len(wanted)}", file=sys.stderr, flush=True)
    options = f"--runs {given.runs} --sparse {given.sparse} --same-runs {given.same_runs}"
    rows = [one for (number, delay), one in read_rows(given.rows).items() if delay in wanted.get(number, ())]
    page = table(rows, f"python benchmarks/gate.py ROWS {options} --output benchmarks/results/gate.md")
    if given.output:
        given.output.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
