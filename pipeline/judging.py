"""`validate` and `benchmark` on files: judge outputs, run what has not been run, print the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from calibration.batches import Samples
from engines.contract import Precision
from pipeline.artifact import Engine, Outputs, Timings
from pipeline.commands import engine_from, needed, raise_failures, samples_from, specs_of
from pipeline.comparison import Tolerance
from pipeline.direct import stage_from_options, work_folder
from pipeline.errors import ConfigError
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.infer import Infer
from pipeline.stages.validate import Judge, LabelFile, Labelled, Validate

TOLERANCES = ("atol", "rtol", "min_cosine", "min_psnr_db", "max_metric_drop")


def tolerance_from(precision: Precision, given: dict[str, Any]) -> Tolerance:
    """The tolerances for a precision, with those that were given on the command line."""
    changes = {name: given.pop(name) for name in TOLERANCES if given[name] is not None}
    return replace(Validate().tolerance(precision), **changes)


def judge_files(reference: Path, candidate: Path, given: dict[str, Any]) -> None:
    """Judge a candidate against a reference, print the verdict, and raise CheckFailed if it is out of bound."""
    precision: Precision = given["precision"]
    tolerance = tolerance_from(precision, given)
    stage = Validate().with_tolerance(precision, tolerance)
    judge = Judge(given["metric"], given["metric_output"], Path())
    engines = [
        None if path.suffix == ".json" else engine_from(path, backend, simulate)
        for path, backend, simulate in (
            (reference, "onnxruntime", False),
            (candidate, given["backend"], given["simulate"]),
        )
    ]
    to_run = [engine for engine in engines if engine is not None]
    samples = samples_from(given, specs_of(to_run[0])) if to_run else None
    labelled: Labelled | None = samples
    if samples is None and judge.name:
        labelled = LabelFile(Path(needed(given["data"], "--data", "the metric needs labels")), given["labels"])
    output = given["output"] or Path("verdict.json")
    with work_folder(output) as work:
        outputs = []
        for index, (path, engine) in enumerate(zip((reference, candidate), engines)):
            folder = work / str(index)
            folder.mkdir()
            outputs.append(Outputs(path) if engine is None or samples is None else Infer()(folder, engine, samples))
        folder = work / "verdict"
        folder.mkdir()
        verdict = stage(folder, outputs[0], outputs[1], labelled, (judge, precision))
        found = verdict.read()
        if given["output"]:
            verdict.path.replace(output)
    print_verdict(found)
    raise_failures({candidate.name: found})


def print_verdict(found: dict[str, Any]) -> None:
    """The numbers of a verdict as a table on stdout."""
    table = Table(title="passed" if found["passed"] else "out of bound")
    for column in ("output", "max |Δ|", "mean |Δ|", "cosine min", "PSNR min, dB", "passed"):
        table.add_column(column)
    for name, row in found["comparison"].items():
        table.add_row(
            name,
            f"{row['max_abs']:.3g}",
            f"{row['mean_abs']:.3g}",
            f"{row['cosine_min']:.6f}",
            f"{row['psnr_db']:.1f}",
            "yes" if row["passed"] else "no",
        )
    console = Console()
    console.print(table)
    if found["metric"] is not None:
        console.print(f"metric {found['metric']:.4f}, reference {found['reference_metric']:.4f}", highlight=False)
    if found["agreement"] is not None:
        console.print(f"same arg max on {found['agreement']:.2%} of the samples", highlight=False)


def time_files(engines: list[Engine], given: dict[str, Any]) -> None:
    """Time engines against each other and print the table."""
    names = {engine.path.name: engine for engine in engines}
    if len(names) < len(engines):
        raise ConfigError("benchmark: two engines have the same file name; rename one")
    samples: Samples = samples_from(given, specs_of(engines[0]))
    stage = stage_from_options(Benchmark(), given)
    output = given["output"] or Path("timings.json")
    with work_folder(output) as work:
        timings = stage(work, names, samples)
        print_timings(timings)
        if given["output"]:
            timings.path.replace(output)
            for row in Timings(output).read()["timings"]:
                (work / row["samples"]).replace(output.with_name(row["samples"]))


def print_timings(timings: Timings) -> None:
    """A table of latencies on stdout, with the protocol under it."""
    found = timings.read()
    table = Table()
    for column in ("engine", "batch", "p50 ms", "p90 ms", "p99 ms", "mean ms", "samples/s", "device p50 ms", "stable"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in found["timings"]:
        latency, device = row["latency_ms"], row["device_ms"]
        numbers = [f"{latency[key]:.3f}" for key in ("p50", "p90", "p99", "mean")]
        on_device = "–" if device is None else f"{device['p50']:.3f}"
        stable = "yes" if row["stable"] else "no"
        table.add_row(
            row["name"], str(row["batch_size"]), *numbers, f"{row['throughput_per_s']:.0f}", on_device, stable
        )
    console = Console()
    console.print(table)
    console.print(found["protocol"], style="dim", highlight=False)
    for row in found["timings"]:
        if row["note"]:
            click.echo(f"trtforge: {row['name']} at batch {row['batch_size']}: {row['note']}", err=True)
