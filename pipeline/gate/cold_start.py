"""What an engine costs a process that starts with it: the time to its first answer, and the most memory it takes.

Definitions, each over several processes that are started one after another, the engines taking turns:

- *cold start*: wall-clock time in a fresh process from asking the backend for the engine (which loads the runtime's
  libraries) to holding the outputs of its first query. Starting the interpreter is not in it, nor that of another one
  which has the library; the file may be in the system's cache, as it is after a deployment that has just copied it.
- *device memory*: by how much the GPU's free memory fell meanwhile (``engines.contract.RunnerFacts``).
- *peak memory*: the most memory that the engine's process had at once (``VmHWM``, proc(5)): the interpreter, the
  runtime's libraries, the engine and its queries. Of ``getrusage``'s number a child would inherit its parent's.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.contract import Array
from pipeline.artifact import Engine
from pipeline.engine_runner import engine_process, runner_of
from pipeline.errors import Unavailable
from pipeline.gate.checks import EngineBudget, check_from_interval, check_not_measured
from pipeline.gate.record import Check
from pipeline.machine import child_process
from pipeline.machine.system_files import text_of
from pipeline.stats.intervals import Interval

NUM_QUERIES = 8
"""Run after the first one, before the memory is read: some runtimes take more at the second query."""


@dataclass(frozen=True)
class ColdStart:
    """One fresh process."""

    cold_start_ms: float
    peak_memory_mib: float
    device_memory_mib: float | None
    """None where the backend does not tell."""


def measure_cold_starts(
    out: Path, engines: Mapping[str, Engine], feed: Mapping[str, Array], num_starts: int, num_threads: int
) -> dict[str, list[ColdStart]]:
    """Start every engine ``num_starts`` times, taking turns: A B, B A, A B, ...

    Args:
        out: the folder for the processes' log.
        engines: by name.
        feed: one batch.
        num_starts: processes per engine.
        num_threads: threads of a runtime on the CPU; 0: its own choice.

    Raises:
        EngineError, StageError: an engine does not load, or crashed.
    """
    measured: dict[str, list[ColdStart]] = {name: [] for name in engines}
    for turn in range(num_starts):
        order: Sequence[str] = list(engines) if turn % 2 == 0 else list(engines)[::-1]
        for name in order:
            what = f"cold start of {name}"
            measured[name].append(
                child_process.call(out / "starts.log", what, _start, engines[name], feed, num_threads)
            )
    return measured


def _start(engine: Engine, feed: Mapping[str, Array], num_threads: int) -> ColdStart:
    process_id = engine_process(engine)
    begin = time.perf_counter()
    with runner_of(engine, num_threads) as runner:
        runner.infer(feed)
        cold_start_ms = (time.perf_counter() - begin) * 1e3
        for _ in range(NUM_QUERIES):
            runner.infer(feed)
        device_memory_mib = runner.facts().device_memory_mib
        peak_memory_mib = _peak_memory_mib(process_id)
    return ColdStart(cold_start_ms, peak_memory_mib, device_memory_mib)


def _peak_memory_mib(process_id: int) -> float:
    match = re.search(r"^VmHWM:\s+(\d+) kB", text_of(Path(f"/proc/{process_id}/status")), re.MULTILINE)
    if match is None:
        raise Unavailable(
            f"/proc/{process_id}/status: does not report a process's peak memory; leave out peak_memory_mib"
        )
    return int(match[1]) / 1024


def median_interval(values: Sequence[float], confidence: float) -> Interval:
    """The median of a few independent numbers, and the exact interval between two of them that holds the true one.

    Order statistics (Hahn and Meeker, Statistical Intervals, 1991, 5.2): the true median lies between the r-th
    smallest and the r-th largest of n unless fewer than r fall on one side of it, which is a matter of coins. Where n
    are too few for that confidence, the bounds are the smallest and the largest, and the confidence is what they give.
    """
    ordered, num = sorted(values), len(values)
    misses = [2 * sum(math.comb(num, i) for i in range(r)) / 2**num for r in range(1, num // 2 + 1)]
    ranks = [r for r, probability in enumerate(misses, 1) if probability <= 1 - confidence]
    rank = max(ranks, default=1)
    attained = max(1 - misses[rank - 1], 0.0) if misses else 0.0
    return Interval(statistics.median(ordered), ordered[rank - 1], ordered[-rank], confidence if ranks else attained)


def check_cold_start(
    engine_budget: EngineBudget, cold_starts: Mapping[str, Sequence[ColdStart]], baseline: str, confidence: float
) -> Check:
    """The check of ``cold_start_ms``, ``peak_memory_mib`` or ``device_memory_mib``.

    A relative budget is about the median of the ratios of the starts that followed each other.
    """
    variant, budget = engine_budget
    measured = {name: [getattr(start, budget.quantity.name) for start in of] for name, of in cold_starts.items()}
    if None in [value for name in (variant, *([baseline] if budget.relative else [])) for value in measured[name]]:
        why = "the backend does not report device memory"
        return check_not_measured(engine_budget, why, "leave it out, or gate on a GPU")
    values = measured[variant]
    if budget.relative:
        values = [candidate / reference for candidate, reference in zip(values, measured[baseline])]
    interval = median_interval(values, confidence)
    if interval.confidence < confidence:
        why = (
            f"{len(values)} starts give a confidence of {interval.confidence:.1%} at most, {confidence:.1%} is "
            "requested"
        )
        return check_not_measured(
            engine_budget, why, f"raise cold_starts to {math.ceil(1 - math.log2(1 - confidence))}"
        )
    return check_from_interval(engine_budget, interval, f"raise cold_starts: this is the median of {len(values)}")
