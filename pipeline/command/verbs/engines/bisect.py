"""Find the layer where a reduced-precision model loses accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from calibration.data.batches import input_specs_from_onnx
from engines.onnx_model import facts
from pipeline.accuracy.bisection import Evidence, run_bisection
from pipeline.artifact import OnnxModel, Ranges
from pipeline.command.options import (
    data_options,
    is_plan,
    model_from,
    output_option,
    samples_from,
)
from pipeline.command.outcome_tables import _table
from pipeline.errors import ConfigError
from pipeline.output import passing_folder, put
from pipeline.spelling import echo, table_console
from pipeline.stages.validate import Validate


@click.command()
@click.argument("reference", type=Path)
@click.argument("candidate", type=Path)
@data_options
@click.option("--ranges", type=Path, help="folder written by `trtforge calibrate`, to check the model's scales against")
@click.option(
    "--num-bisected",
    default=32,
    show_default=True,
    help="number of samples to run both models on, evenly spread; 0: all",
)
@output_option("also write all nodes to this JSON file")
def bisect(reference: Path, candidate: Path, **options: Any) -> None:
    """Find the layer at which CANDIDATE (ONNX in FP16 or with Q/DQ nodes) loses accuracy against REFERENCE (FP32 ONNX).

    Prints the SQNR before and after each node, the SQNR that correct rounding at the same places would leave, and the
    lines that except the layer.
    `trtforge validate` does this by itself for engines that fail.
    """

    if is_plan(reference):
        raise ConfigError(
            f"{reference}: is a plan; `trtforge validate {reference}` reports the layer of engines that fail"
        )
    look_into(reference, candidate, options)


NUM_SHOWN = 12
"""Nodes in the table of `bisect`."""


def look_into(reference: Path, candidate: Path, options: dict[str, Any]) -> None:
    """Print which nodes of a candidate lose what the reference computes, the most suspect first."""
    ranges: Path | None = options["ranges"]
    models = OnnxModel(model_from(reference).path), OnnxModel(model_from(candidate).path)
    if facts(candidate).is_dynamic:
        raise ConfigError(
            f"{candidate}: finds its scales at each run, which no simulation follows; keep nodes in FP32 by `trtforge "
            "quantize --exclude`, and compare"
        )
    samples = samples_from(options, input_specs_from_onnx(reference))
    evidence = Evidence(*models, samples, None if ranges is None else Ranges(ranges))
    stage = Validate(num_bisected=options["num_bisected"])
    bisection = run_bisection(evidence, stage.num_bisected, stage.reference)
    suggestion = bisection.override()
    sentences = [bisection.suspicion({}), *evidence.scale_mismatches()]
    if output := options["output"]:
        record = {
            "num_samples": bisection.num_samples,
            "sentences": sentences,
            "override": None if suggestion is None else suggestion.toml(),
            "suspects": bisection.rows(len(bisection.suspects)),
        }
        with passing_folder(output) as work:
            (work / "suspects.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
            put(work / "suspects.json", output, work)
    table = _table(f"{candidate.name}: SQNR, dB, on {bisection.num_samples} samples")
    table.add_column("tensor of FP32", overflow="fold")
    table.add_column("operator", overflow="fold")
    for column in ("before", "after", "sound", "drop"):
        table.add_column(column, justify="right", no_wrap=True)
    for suspect in bisection.suspects[:NUM_SHOWN]:
        ratios = (suspect.sqnr_in_db, suspect.sqnr_out_db, suspect.sound_db, suspect.drop_db)
        operator = suspect.operator.replace("QuantizeLinear and DequantizeLinear", "Q and DQ")
        table.add_row(Text(suspect.tensor), operator, *(f"{ratio:.1f}" for ratio in ratios))
    console = table_console()
    console.print(table)
    for sentence in sentences:
        console.print(Text(sentence))
    if suggestion is not None:
        echo(f"To except it, write into the plan:\n{suggestion.toml()}\nor: {suggestion.flags()}")
