"""Measure and compare the latency of engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from calibration.data.batches import Samples
from pipeline.artifact import Engine, Timings
from pipeline.command.layer_table import note_lines, print_layers, split_lines
from pipeline.command.options import (
    BACKEND,
    STORE,
    data_options,
    engine_from,
    is_plan,
    output_option,
    plan_options,
    refuse_plan_options,
    samples_from,
    specs_of,
)
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.command.table import _table
from pipeline.errors import ConfigError
from pipeline.output import passing_folder, put
from pipeline.page.numbers import NONE, three_digits
from pipeline.spelling import echo, table_console
from pipeline.stages.benchmark import Benchmark


@click.command()
@click.argument("engines", type=Path, nargs=-1, required=True)
@data_options
@BACKEND
@stage_options(Benchmark)
@output_option("also write the results to this JSON file, and raw latencies next to it")
@plan_options
@STORE
def benchmark(engines: tuple[Path, ...], backend: str, **options: Any) -> None:
    """Measure and compare the latency of ENGINES of one backend on --data, or of all engines of PLAN.toml."""

    if is_plan(engines[0]):
        if len(engines) > 1:
            raise ConfigError(f"{engines[1]}: has no effect together with a plan; give a plan, or engines")
        return by_plan(engines[0], options["store"], "benchmark", options["beside_plan"])
    refuse_plan_options(options)
    time_files([engine_from(path, backend, False) for path in engines], options)
    return None


def time_files(engines: list[Engine], options: dict[str, Any]) -> None:
    """Time engines against each other and print the table."""
    names = {engine.path.name: engine for engine in engines}
    if len(names) < len(engines):
        raise ConfigError("benchmark: two engines have the same file name; rename one")
    stage = stage_from_options(Benchmark(), options)
    output: Path | None = options["output"]
    with passing_folder(output) as work:
        samples: Samples = samples_from(options, specs_of(engines[0]))
        timings = stage(work, names, samples)
        if output:
            for row in timings.read()["timings"]:
                put(work / row["samples"], output.with_name(row["samples"]), work)
            put(timings.path, output, work)
            timings = Timings(output)
        print_timings(timings)


def print_timings(timings: Timings) -> None:
    """A table of latencies on stdout, with the protocol under it."""
    record = timings.read()
    rows = record["timings"]
    with_device = any(row["device_ms"] is not None for row in rows)
    table = _table("")
    table.add_column("engine", overflow="fold")
    heads = ["batch", "p50\nms", "p90\nms", "p99\nms", "mean\nms", "samples\nper s", "stable"]
    energies = {(row["name"], row["batch_size"]): row["energy_mj"] for row in record["energies"]}
    with_energy = any(energy is not None for energy in energies.values())
    for head in heads + ["device\np50 ms"] * with_device + ["energy\nmJ"] * with_energy:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        latency, device = row["latency_ms"], row["device_ms"]
        cells = [str(row["batch_size"]), *(three_digits(latency[key]) for key in ("p50", "p90", "p99", "mean"))]
        cells += [f"{row['throughput_per_s']:,.0f}", "yes" if row["stable"] else "no"]
        cells += [NONE if device is None else three_digits(device["p50"])] * with_device
        energy = energies[row["name"], row["batch_size"]]
        cells += [NONE if energy is None else three_digits(energy)] * with_energy
        table.add_row(Text(row["name"]), *cells)
    console = table_console()
    console.print(table)
    for line in split_lines(record):
        console.print(Text(line))
    print_layers(record, console)
    console.print(Text(record["protocol"], style="dim"))
    for line in note_lines(record):
        echo(f"trtforge: {line}", err=True)
    for row in record["timings"]:
        if row["note"]:
            echo(f"trtforge: {row['name']} at batch {row['batch_size']}: {row['note']}", err=True)
    for trace in record.get("traces", ()):
        echo(f"trtforge: {trace['sentence']}", err=True)
    for note in (record["monitor"] or {"notes": ()})["notes"]:
        echo(f"trtforge: {note}", err=True)
