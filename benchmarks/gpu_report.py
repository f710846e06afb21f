"""What `scripts/gpu_check` found, as Markdown; and our thresholds beside those of TensorRT's own calibrator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_steps import Step
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.trt_cache import cache_from_bytes

LEVELS = 127
QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True)
class Found:
    """What was found on one network; it grows as steps are done."""

    name: str
    reports: dict[str, dict[str, Any]]
    """Of each plan: its report.json."""
    ratios: dict[str, float]
    """Of each tensor: our threshold / TensorRT's; empty where it has no calibrator."""
    beside: list[dict[str, Any]]
    costs: dict[str, dict[str, Any]]
    """Of each engine: what `benchmarks/runner.py` wrote."""


def ratios(ranges: Path, cache: Path) -> dict[str, float]:
    """Our threshold / that of TensorRT's calibration cache, of each tensor that both have and that is not all zero."""
    theirs = cache_from_bytes(cache.read_bytes(), str(cache)).scales
    ours = ranges_from_folder(ranges).tensors
    return {
        name: ours[name].amax / (scale * LEVELS)
        for name, scale in theirs.items()
        if name in ours and ours[name].amax > 0 and scale > 0
    }


def page(steps: Sequence[Step], found: Sequence[Found], versions: Mapping[str, str], *, whole: bool = True) -> str:
    """The whole page; or, for a run that may be cut off, what it has so far."""
    here = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = ["# On a GPU", "", f"Made by `scripts/gpu_check` on {here}.", ""]
    lines += [] if whole else ["**Not finished**: the run was cut off after what stands here.", ""]
    for one in found:
        lines += [f"## {one.name}", "", *_variants(one), *_ratios(one), *_beside(one), *_costs(one)]
    lines += ["## Steps", "", "| step | seconds | |", "|---|--:|---|"]
    lines += [f"| {step.title} | {step.seconds:.1f} | {step.problem or 'done'} |" for step in steps]
    lines += ["", "```console", *(f"$ {step.command}" for step in steps if step.command), "```", ""]
    return "\n".join(lines)


def _variants(one: Found) -> Iterator[str]:
    head = "| plan | variant | KiB | INT8 products | metric | drop | Polygraphy's verdict | batch | p50 ms | p99 ms "
    yield f"{head}| samples/s |"
    yield "|---|---|--:|--:|--:|--:|---|--:|--:|--:|--:|"
    for plan, report in one.reports.items():
        for variant in report["variants"]:
            integer = "?" if variant["num_int8"] < 0 else variant["num_int8"]
            verdict = "; ".join(variant["failures"]) or "passed"
            head = f"| {plan} | {variant['name']} | {variant['size_bytes'] / 1024:.0f} | {integer} of "
            head += f"{variant['num_quantizable']} | {_number(variant['metric'])} | {_number(variant['metric_drop'])} "
            head += f"| {verdict} |"
            for row in variant["by_batch"]:
                latency = row["latency_ms"]
                yield (
                    f"{head} {row['batch_size']} | {latency['p50']:.4f} | {latency['p99']:.4f} | "
                    f"{row['throughput_per_s']:,.0f} |"
                )
            if not variant["by_batch"]:
                yield f"{head} {variant['latency_missing']} | | | |"
    yield ""
    yield "| plan | variant | batch | to the device ms | computing ms | back ms | enqueue ms | device memory MiB |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for plan, report in one.reports.items():
        for variant in report["variants"]:
            for row in variant["by_batch"]:
                if split := row["split_ms"]:
                    parts = " | ".join(f"{split[name]:.4f}" for name in split)
                    memory = _number(variant["device_memory_mib"])
                    yield f"| {plan} | {variant['name']} | {row['batch_size']} | {parts} | {memory} |"
    yield ""
    yield from (
        f"- {plan}, {variant['name']}: {note}"
        for plan, report in one.reports.items()
        for variant in report["variants"]
        for note in variant["notes"]
    )
    yield ""


def _ratios(one: Found) -> Iterator[str]:
    if not one.ratios:
        return
    values = np.array(list(one.ratios.values()))
    spread = ", ".join(f"{level} %: {np.percentile(values, level):.4f}" for level in QUANTILES)
    near = np.mean(np.abs(values - 1) <= 0.01)
    yield f"Our thresholds / TensorRT's own, {len(values)} tensors: {spread}; {near:.0%} within 1 %. Furthest apart:"
    yield ""
    for name in sorted(one.ratios, key=lambda name: -abs(np.log(one.ratios[name])))[:5]:
        yield f"- `{name}`: {one.ratios[name]:.4f}"
    yield ""


def _beside(one: Found) -> Iterator[str]:
    if not one.beside:
        return
    yield "| engine | batch | way | p50 ms | p99 ms | samples/s | device p50 ms | furthest from ours |"
    yield "|---|--:|---|--:|--:|--:|--:|--:|"
    for row in one.beside:
        if "missing" in row:
            yield f"| {row['engine']} | {row['batch']} | {row['way']} | {row['missing']} | | | | |"
            continue
        cells = [_number(row.get(key)) for key in ("p50_ms", "p99_ms", "samples_per_s", "device_p50_ms", "most_apart")]
        yield f"| {row['engine']} | {row['batch']} | {row['way']} | {' | '.join(cells)} |"
    yield ""
    yield "p50 is the host's wall-clock time from arrays in to arrays out, but for trtexec, whose latency is the sum of"
    yield "its copies and its computation on the device; its rows and ours meet in the device's p50."
    yield ""


def _costs(one: Found) -> Iterator[str]:
    if not one.costs:
        return
    yield "| engine | by hand µs | ours µs | more µs | ours, CUDA graph µs | more µs |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, cost in one.costs.items():
        hand, plain, graph = (cost["median_us"][way] for way in ("by hand", "ours", "ours, CUDA graph"))
        yield f"| {name} | {hand:.2f} | {plain:.2f} | {plain - hand:+.2f} | {graph:.2f} | {graph - hand:+.2f} |"
    yield ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.5g}"
