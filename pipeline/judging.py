"""`validate`, `bisect` and `benchmark` on files: judge outputs, run what has not been run, print the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calibration.data.batches import Samples, input_specs_from_onnx
from engines.contract import Precision
from pipeline.accuracy.bisection import Evidence, bisected
from pipeline.accuracy.comparison import Tolerance
from pipeline.artifact import Engine, OnnxModel, Outputs, Ranges, Timings, Tolerances
from pipeline.command.layer_table import note_lines, print_layers, split_lines
from pipeline.command.options import engine_from, model_from, needed, samples_from, specs_of
from pipeline.command.plan_run import raise_failures
from pipeline.direct import passing_folder, stage_from_options
from pipeline.errors import ConfigError
from pipeline.page.numbers import NONE, three_digits
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.infer import Infer
from pipeline.stages.validate import Judge, Judged, LabelFile, Labelled, Validate

NUM_SHOWN = 12
"""Nodes in the table of `bisect`."""
TOLERANCES = ("atol", "rtol", "min_cosine", "min_psnr_db", "min_sqnr_db", "max_metric_drop")


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
    with passing_folder(given["output"]) as work:
        samples = samples_from(given, specs_of(to_run[0])) if to_run else None
        labelled: Labelled | None = samples
        if samples is None and judge.name:
            labelled = _label_file(given)
        outputs = []
        for index, (path, engine) in enumerate(zip((reference, candidate), engines)):
            folder = work / str(index)
            folder.mkdir()
            outputs.append(Outputs(path) if engine is None or samples is None else Infer()(folder, engine, samples))
        evidence = evidence_from(engines, samples, given)
        tolerances = tolerances_from(given["tolerances"])
        judged = Judged(judge, precision, evidence, tolerances)
        verdict = stage(work, outputs[0], outputs[1], labelled, judged)
        found = verdict.read()
        if given["output"]:
            verdict.path.replace(given["output"])
    print_verdict(found)
    raise_failures({candidate.name: found})


def evidence_from(engines: Sequence[Engine | None], samples: Samples | None, given: dict[str, Any]) -> Evidence | None:
    """The models behind a candidate: its own ONNX file, or the one that was named beside it, and the reference's.

    Raises:
        ConfigError: a model or ranges are named that nothing can be done with.
    """
    reference, candidate = engines
    named: Path | None = given["model"]
    ranges: Path | None = given["ranges"]
    own = candidate.path if candidate is not None and candidate.path.suffix == ".onnx" else None
    model = named or own
    if reference is None or reference.path.suffix != ".onnx" or samples is None or model is None:
        for flag, path in (("--model", named), ("--ranges", ranges)):
            if path is not None:
                raise ConfigError(f"{flag}: has effect where REFERENCE is an ONNX file and --data is there; give both")
        return None
    if model_from(model).digest() == OnnxModel(reference.path).digest():
        return None
    return Evidence(OnnxModel(reference.path), OnnxModel(model), samples, None if ranges is None else Ranges(ranges))


def tolerances_from(path: Path | None) -> Tolerances | None:
    """What `trtforge tolerate` wrote, if it was named.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    if path is None:
        return None
    try:
        whole = {"precision", "outputs", "num_samples", "num_given", "method", "amaxes"} <= Tolerances(
            path
        ).read().keys()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as tolerances ({error}); make them with `trtforge tolerate`"
        ) from error
    if not whole:
        raise ConfigError(f"{path}: is not what `trtforge tolerate` writes; make it with that")
    return Tolerances(path)


def look_into(reference: Path, candidate: Path, given: dict[str, Any]) -> None:
    """Print which nodes of a candidate lose what the reference computes, the most suspect first."""
    ranges: Path | None = given["ranges"]
    models = OnnxModel(model_from(reference).path), OnnxModel(model_from(candidate).path)
    samples = samples_from(given, input_specs_from_onnx(reference))
    evidence = Evidence(*models, samples, None if ranges is None else Ranges(ranges))
    stage = Validate(num_bisected=given["num_bisected"])
    found = bisected(evidence, stage.num_bisected, stage.reference)
    said = [found.suspicion({}), *evidence.misfits()]
    if output := given["output"]:
        record = {"num_samples": found.num_samples, "sentences": said, "suspects": found.rows(len(found.suspects))}
        with passing_folder(output) as work:
            (work / "suspects.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
            (work / "suspects.json").replace(output)
    table = _table(f"{candidate.name}: SQNR, dB, on {found.num_samples} samples")
    table.add_column("tensor of FP32", overflow="fold")
    table.add_column("operator", overflow="fold")
    for column in ("before", "after", "sound", "drop"):
        table.add_column(column, justify="right", no_wrap=True)
    for suspect in found.suspects[:NUM_SHOWN]:
        ratios = (suspect.sqnr_in_db, suspect.sqnr_out_db, suspect.sound_db, suspect.drop_db)
        operator = suspect.operator.replace("QuantizeLinear and DequantizeLinear", "Q and DQ")
        table.add_row(Text(suspect.tensor), operator, *(f"{ratio:.1f}" for ratio in ratios))
    console = Console()
    console.print(table)
    for sentence in said:
        console.print(Text(sentence))


def _label_file(given: dict[str, Any]) -> LabelFile:
    """Where labels lie for outputs that were saved."""
    path = Path(needed(given["data"], "--data", "the metric compares with labels; name the .npz or .npy that has them"))
    if path.suffix == ".npz":
        needed(given["labels"], "--labels", f"name the key of the labels in {path}")
    return LabelFile(path, given["labels"])


def print_verdict(found: dict[str, Any]) -> None:
    """The numbers of a verdict as a table on stdout."""
    table = _table("passed" if found["passed"] else "out of bound")
    table.add_column("output", overflow="fold")
    for column in ("max\n|Δ|", "mean\n|Δ|", "cosine\nmin", "PSNR min\ndB", "passed"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in found["comparison"].items():
        table.add_row(
            Text(name),
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
    stage = stage_from_options(Benchmark(), given)
    output: Path | None = given["output"]
    with passing_folder(output) as work:
        samples: Samples = samples_from(given, specs_of(engines[0]))
        timings = stage(work, names, samples)
        if output:
            for row in timings.read()["timings"]:
                (work / row["samples"]).replace(output.with_name(row["samples"]))
            timings.path.replace(output)
            timings = Timings(output)
        print_timings(timings)


def print_timings(timings: Timings) -> None:
    """A table of latencies on stdout, with the protocol under it."""
    found = timings.read()
    rows = found["timings"]
    with_device = any(row["device_ms"] is not None for row in rows)
    table = _table("")
    table.add_column("engine", overflow="fold")
    heads = ["batch", "p50\nms", "p90\nms", "p99\nms", "mean\nms", "samples\nper s", "stable"]
    energies = {(row["name"], row["batch_size"]): row["energy_mj"] for row in found["energies"]}
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
    console = Console()
    console.print(table)
    for line in split_lines(found):
        console.print(Text(line))
    print_layers(found, console)
    console.print(Text(found["protocol"], style="dim"))
    for line in note_lines(found):
        click.echo(f"trtforge: {line}", err=True)
    for row in found["timings"]:
        if row["note"]:
            click.echo(f"trtforge: {row['name']} at batch {row['batch_size']}: {row['note']}", err=True)
    for one in found.get("traces", ()):
        click.echo(f"trtforge: {one['sentence']}", err=True)
    for note in (found["monitor"] or {"notes": ()})["notes"]:
        click.echo(f"trtforge: {note}", err=True)


def _table(title: str) -> Table:
    """A table that fits 80 columns."""
    return Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
