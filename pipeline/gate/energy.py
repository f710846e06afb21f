"""The budgets of a gate about energy: millijoules per inference, the engines taking turns in blocks of some length.

Not the blocks by which latency is compared: those are shorter than the time between two readings of the power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.data.batches import Samples
from pipeline.gate.checks import EngineBudget, GateEngines, about, check_from_interval, check_not_measured
from pipeline.gate.record import Check
from pipeline.latency.benchmark import picks_of_blocks
from pipeline.latency.energy import MIN_READINGS, block_energies, block_windows_ns, total_energy
from pipeline.machine import child_process
from pipeline.machine.monitor import Readings
from pipeline.stages.benchmark import Benchmark, BenchmarkResult, measure_engines
from pipeline.stats.bootstrap import expanded_percentiles
from pipeline.stats.intervals import Interval


def measure_energy(
    out: Path, gate_engines: GateEngines, samples: Samples, engine_budgets: Sequence[EngineBudget], benchmark: Benchmark
) -> BenchmarkResult | None:
    """Run what budgets about energy ask for, by the benchmark's protocol; None if none asks."""
    about_energy = about(engine_budgets, "energy")
    if not about_energy:
        return None
    names = {name for name, _ in about_energy} | {
        gate_engines.baseline for _, budget in about_energy if budget.relative
    }
    engines = {name: engine for name, engine in gate_engines.engines.items() if name in names}
    batch_sizes = tuple(dict.fromkeys(budget.batch_size for _, budget in about_energy))
    stage = replace(benchmark, layers=False, batch_sizes=batch_sizes)
    stage.check_samples(samples)
    what = f"energy of {', '.join(engines)}"
    fed = dict.fromkeys(engines, samples)
    return child_process.call(out / "energy.log", what, measure_engines, stage, engines, fed)


def check_energy(
    engine_budget: EngineBudget,
    measured: BenchmarkResult,
    baseline: str,
    watched: tuple[Readings, str],
    confidence: float,
) -> Check:
    """The check of ``energy_mj``: by bootstrap over blocks, the same blocks for both where it is relative.

    Args:
        engine_budget: the engine and the budget.
        measured: the queries, and when they ran.
        baseline: the baseline's name.
        watched: what the monitor read meanwhile, and why there is no sensor of power, where there is none.
        confidence: of the interval.
    """
    (variant, budget), (readings, no_sensor) = engine_budget, watched
    times_ns, taken_mj, missing = total_energy(readings)
    if not len(times_ns):
        return check_not_measured(engine_budget, missing or no_sensor, "leave it out, or gate where power is measured")
    queries = {t.name: t.queries for t in measured.timings if t.batch_size == budget.batch_size}
    parts = []
    for name in (variant, *([baseline] if budget.relative else [])):
        windows = block_windows_ns(queries[name], measured.began_ns)
        num_readings = sum(int(((times_ns >= begin) & (times_ns <= end)).sum()) for begin, end in windows)
        if num_readings < MIN_READINGS:
            missing = f"only {num_readings} readings of the power fell into its blocks"
            return check_not_measured(engine_budget, missing, "raise min_seconds in [benchmark.protocol]")
        parts.append(block_energies(queries[name], windows, (times_ns, taken_mj), budget.batch_size))
    num_blocks = len(parts[0].energy_mj)
    picks = picks_of_blocks(num_blocks, 0)
    resampled = [part.resampled_mj(picks) for part in parts]
    estimates = [part.per_inference_mj() for part in parts]
    values = resampled[0] / resampled[1] if budget.relative else resampled[0]
    estimate = estimates[0] / estimates[1] if budget.relative else estimates[0]
    bounds = expanded_percentiles(values, estimate, num_blocks, (1 - confidence) / 2)
    interval = Interval(estimate, *bounds, confidence)
    return check_from_interval(engine_budget, interval, "raise min_seconds in [benchmark.protocol]")
