"""What an engine costs a process: the time to its first answer, the most memory it takes, and how that grows.

Growth is defined in ``pipeline/latency/memory_growth.py``. The others, each over several processes that are started one
after another, the engines taking turns:

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
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from calibration.data.batches import Samples
from engines.contract import Array
from pipeline.artifact import Engine
from pipeline.engine_runner import engine_process, runner_of
from pipeline.errors import Unavailable
from pipeline.gate.checks import EngineBudget, about, check_from_interval, check_not_measured
from pipeline.gate.record import Check
from pipeline.latency.memory_growth import GrowthLimit, MemorySoak, MemoryTrace, Where, soak_memory
from pipeline.latency.protocol import Pairing
from pipeline.machine import child_process
from pipeline.machine.system_files import text_of
from pipeline.stages.benchmark import Benchmark
from pipeline.stats.intervals import Interval

NUM_QUERIES = 8
"""Run after the first one, before the memory is read: some runtimes take more at the second query."""
NUM_BATCHES = 8
"""A soak goes round these."""
MEMORY_OF: dict[str, Where] = {"memory_growth_mib_per_h": "process", "device_memory_growth_mib_per_h": "device"}
"""Quantity -> whose memory."""
NOT_TOLD: dict[Where, tuple[str, str]] = {
    "process": ("there were too few readings", "raise max_seconds in [gate.pairing]"),
    "device": ("the backend does not report device memory", "leave it out, or gate on a GPU"),
}
"""Why memory or its growth is not known, and what to do."""


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
        return check_not_measured(engine_budget, *NOT_TOLD["device"])
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


@dataclass(frozen=True, eq=False)
class MemoryGrowth:
    """An engine's memory over time at one batch size."""

    engine: str
    batch_size: int
    soak: MemorySoak
    memory: MemoryTrace

    @property
    def file_name(self) -> str:
        """Of its readings."""
        return f"memory_growth-{self.engine}-batch{self.batch_size}.npz"


def measure_growth(
    out: Path,
    engines: Mapping[str, Engine],
    samples: Samples,
    engine_budgets: Sequence[EngineBudget],
    how: tuple[Pairing, Benchmark],
) -> list[MemoryGrowth]:
    """Run what budgets about growth ask for, one engine after another, each in a process of its own.

    Args:
        out: the folder for the processes' log.
        engines: by name.
        samples: what they run on.
        engine_budgets: of a gate; others are left out.
        how: how long; the benchmark has the number of threads.

    Raises:
        ConfigError: an engine does not take one of the batch sizes.
        EngineError, StageError: an engine does not load, or crashed.
    """
    pairing, benchmark = how
    limits: dict[tuple[str, int], list[GrowthLimit]] = {}
    for name, budget in about(engine_budgets, "growth"):
        limit = GrowthLimit(MEMORY_OF[budget.quantity.name], budget.bound)
        limits.setdefault((name, budget.batch_size), []).append(limit)
    growths: list[MemoryGrowth] = []
    if limits:
        replace(benchmark, batch_sizes=tuple(dict.fromkeys(size for _, size in limits))).check_samples(samples)
    for (name, size), bounds in limits.items():
        soak = MemorySoak(
            tuple(bounds),
            pairing.confidence,
            pairing.min_seconds,
            pairing.max_seconds,
            pairing.warmup_queries,
            pairing.warmup_seconds,
        )
        feeds = list(islice((batch for batch in samples.batches(size) if _is_full(batch, size)), NUM_BATCHES))
        what = f"memory growth of {name}"
        run = engines[name], feeds, benchmark.num_threads, soak
        memory = child_process.call(out / "growth.log", what, soak_memory, *run)
        growths.append(MemoryGrowth(name, size, soak, memory))
    return growths


def _is_full(batch: Mapping[str, Array], size: int) -> bool:
    return len(next(iter(batch.values()))) == size


def check_growth(engine_budget: EngineBudget, growths: Sequence[MemoryGrowth]) -> Check:
    """The check of ``memory_growth_mib_per_h`` or ``device_memory_growth_mib_per_h``."""
    name, budget = engine_budget
    growth = next(each for each in growths if (each.engine, each.batch_size) == (name, budget.batch_size))
    where, soak, memory = MEMORY_OF[budget.quantity.name], growth.soak, growth.memory
    slope = memory.growth_per_h(where, soak.tail)
    if slope is None:
        return check_not_measured(engine_budget, *NOT_TOLD[where])
    interval = Interval(slope.slope, slope.low, slope.high, soak.confidence)
    return check_from_interval(engine_budget, interval, _longer(memory.seconds, slope.times_as_long(budget.bound)))


def _longer(seconds: float, times: float) -> str:
    """What would decide."""
    if math.isinf(times):
        return "the growth is so near to the bound that no time would decide; choose another bound"
    return f"about {math.ceil(seconds * times):,} s would be enough: raise max_seconds in [gate.pairing]"
