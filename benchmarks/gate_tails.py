"""How long budgets of p90 and p99 beside a baseline take to be decided, and what bounding single loads does for it.

    python benchmarks/gate_tails.py FOLDER --seconds 240 --output benchmarks/results/gate_tails.md

For each delay, candidate and baseline (``benchmarks/gate.py``) are run in turns for ``--seconds``, with the default
settings of ``pipeline/latency/paired.py`` and as many queries per load as p99 asks for; the loads are kept in FOLDER,
and what is there is not measured again. From these loads gates are drawn randomly, as ``pipeline/latency/paired.py``
would run it in the time that it is given: looks, confidence and intervals are its own. So hundreds of gates are shown
without hours of measuring; it takes loads to be independent, of which the page has the correlation. Each is decided
twice: as the gate does, no load counting for more than its reach (``pipeline/latency/intervals.py``), and by the plain
mean.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.calibration import cpu_name
from benchmarks.gate import BATCH_SIZE, OUTCOMES, loading, plain_ms, write_network
from calibration.arrays import Floats
from engines.backends import onnxruntime
from pipeline.latency.intervals import LEAST_GROUPS, Statistic, clip_bound, session_statistics, winsorized_mean
from pipeline.latency.paired import LatencyLimit, compare_paired
from pipeline.latency.protocol import Pairing
from pipeline.machine.cpu_load import cpu_times, load_from_others
from pipeline.stats.intervals import Interval, Limit, outcome, planned_looks

CASES: tuple[tuple[Statistic, float, float], ...] = (
    ("p50", 0.0, 1.03),
    ("p50", 0.05, 1.03),
    ("mean", 0.0, 1.03),
    ("mean", 0.05, 1.03),
    ("mean", 0.10, 1.03),
    ("p90", 0.0, 1.03),
    ("p90", 0.05, 1.03),
    ("p90", 0.10, 1.03),
    ("p99", 0.0, 1.03),
    ("p99", 0.0, 1.05),
    ("p99", 0.0, 1.10),
    ("p99", 0.0, 1.25),
    ("p99", 0.10, 1.03),
)
"""Statistic, delay, and the limit that the candidate is held to."""
GIVEN_SECONDS = (60, 300)
CONFIDENCE = Pairing().confidence
SURE = 0.999999
"""The highest confidence, with which the measurement itself decides next to nothing."""


def record(folder: Path, delay: float, seconds: float) -> None:
    """Measure one delay, unless it was."""
    kept, about = folder / f"delay_{delay:g}.npz", folder / f"delay_{delay:g}.json"
    if about.is_file():
        return
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "small.onnx"
        write_network(model)
        query_ms = plain_ms(model)
        limit = LatencyLimit("p99", BATCH_SIZE, "p99", Limit(1 + delay, at_most=True), relative=True)
        before = cpu_times(Path("/"))
        result = compare_paired(
            loading(model, "candidate", delay * query_ms),
            loading(model, "baseline", 0.0),
            [limit],
            Pairing(max_seconds=seconds, confidence=SURE),
        )
        others = load_from_others(before, cpu_times(Path("/")))
    assert result.baseline is not None
    candidate_ms, baseline_ms = (
        side.latency_ms.reshape(result.num_sessions, -1) for side in (result.candidate, result.baseline)
    )
    np.savez_compressed(kept, candidate=candidate_ms, baseline=baseline_ms)
    facts = {"query_ms": query_ms, "seconds": result.seconds, "num_loads": result.num_sessions, "others": others}
    about.write_text(json.dumps(facts))


def ratios(folder: Path, delay: float, statistic: Statistic) -> Floats:
    """The logarithm of the ratio of each load, (num_loads,)."""
    with np.load(folder / f"delay_{delay:g}.npz") as kept:
        candidate, baseline = (session_statistics(kept[name], statistic) for name in ("candidate", "baseline"))
    return np.asarray(np.log(candidate / baseline))


def drawn(logs: Floats, clip: float, limit: Limit, most: int, random: np.random.Generator) -> tuple[str, int]:
    """One gate: what it says, and after how many loads."""
    looks = planned_looks(LEAST_GROUPS, most)
    tail = (1 - CONFIDENCE) / 2 / len(looks)
    session_logs = logs[random.integers(len(logs), size=looks[-1])]
    for num in looks:
        center, half = winsorized_mean(session_logs[:num], clip, tail)
        interval = Interval(math.exp(center), math.exp(center - half), math.exp(center + half), CONFIDENCE)
        if (decisions := outcome(interval, limit)) != "not decided":
            return decisions, num
    return "not decided", looks[-1]


def cells(folder: Path, case: tuple[Statistic, float, float], num_gates: int) -> list[str]:
    """A row for each time that is given: as the gate decides, and by the plain mean."""
    statistic, delay, bound = case
    logs = ratios(folder, delay, statistic)
    about = json.loads((folder / f"delay_{delay:g}.json").read_text())
    each_s = about["seconds"] / about["num_loads"]
    rows = []
    for given in GIVEN_SECONDS:
        row = [statistic, f"{delay:.0%}" if delay else "none", f"{bound:g}", str(given)]
        for clip in (clip_bound(statistic, bound), math.inf):
            random = np.random.default_rng(0)
            limit = Limit(bound, at_most=True)
            decisions = [drawn(logs, clip, limit, math.floor(given / each_s), random) for _ in range(num_gates)]
            row += [f"{100 * sum(one == which for one, _ in decisions) / num_gates:.1f}" for which in OUTCOMES]
            row.append(f"{np.median([num for _, num in decisions]) * each_s:.1f}")
        rows.append(f"| {' | '.join(row)} |")
    return rows


def spread_row(folder: Path, delay: float, statistic: Statistic) -> str:
    """How the ratios of single loads lie."""
    logs = ratios(folder, delay, statistic)
    low, middle, high = (math.exp(value) for value in np.quantile(logs, (0.05, 0.5, 0.95)))
    follow = float(np.corrcoef(logs[:-1], logs[1:])[0, 1])
    center = math.exp(winsorized_mean(logs, clip_bound(statistic, 1.0), 0.1)[0])
    row = (statistic, f"{delay:.0%}" if delay else "none", str(len(logs)), f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}")
    return f"| {' | '.join((*row, f'{math.exp(logs.mean()):.3f}', f'{center:.3f}', f'{follow:+.2f}'))} |"


def table(folder: Path, num_gates: int, command: str) -> str:
    """The page of results."""
    delays = sorted({delay for _, delay, _ in CASES})
    about = [json.loads((folder / f"delay_{delay:g}.json").read_text()) for delay in delays]
    others = ", ".join(f"{one['others']:.0%}" for one in about)
    with np.load(folder / "delay_0.npz") as kept:
        num_queries = kept["baseline"].shape[1]
    lines = [
        "# How long p90 and p99 take beside a baseline",
        "",
        f"`{command}`",
        "",
        f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, ONNX Runtime "
        f"{onnxruntime.versions()['onnxruntime']}, one thread; one query takes {about[0]['query_ms']:.2f} ms. Other "
        f"programs took {others} of the CPU time while these delays were measured one after the other; where that is "
        f"more than half, the tails are theirs. A load has {num_queries} queries of each side and takes "
        f"{about[0]['seconds'] / about[0]['num_loads']:.2f} s. {num_gates} gates drawn from the loads for each row; "
        "percent of them, and the median time until it is decided or the time is over.",
        "",
        "| | delay | limit | given s | pass | fail | not decided | median s | plain mean: pass | fail | not decided "
        "| median s |",
        "|---" * 12 + "|",
        *(row for case in CASES for row in cells(folder, case, num_gates)),
        "",
        "The left half is what the gate does: of p90 and p99 no load counts for more than its reach. The right half is "
        "the plain geometric mean of all loads, as it is taken of p50.",
        "",
        "The loads themselves: ratio candidate / baseline of each, by quantile; the geometric mean; that of the loads "
        "within their reach; and the correlation of each load with the next.",
        "",
        "| | delay | loads | 5 % | 50 % | 95 % | mean | as the gate | correlation |",
        "|---" * 9 + "|",
        *(spread_row(folder, delay, statistic) for statistic in ("p50", "mean", "p90", "p99") for delay in delays),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--gates", type=int, default=400)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for delay in sorted({delay for _, delay, _ in CASES}):
        record(given.folder, delay, given.seconds)
    command = f"python benchmarks/gate_tails.py FOLDER --seconds {given.seconds:g} --output {given.output}"
    page = table(given.folder, given.gates, command)
    if given.output:
        given.output.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
