"""Find the layer where a reduced-precision model loses accuracy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from calibration.data.batches import Samples
from engines.backends import litert
from engines.contract import DYNAMIC
from engines.litert.facts import is_tflite
from engines.onnx_model import shape_text
from engines.precision import FP32
from pipeline.accuracy.bisection import Evidence, TfliteEvidence
from pipeline.artifact import ModelFile, OnnxModel, Ranges, TfliteModel
from pipeline.command.options import (
    data_options,
    is_plan,
    model_from,
    model_specs,
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
    """Find the layer at which CANDIDATE loses accuracy against REFERENCE: two ONNX files, or two `.tflite` files.

    CANDIDATE is in FP16, dynamic-range INT8, with Q/DQ nodes, or a `.tflite` file in a precision; REFERENCE is in FP32.

    Prints the SQNR before and after each node, the SQNR that correct rounding at the same places would leave, and the
    lines that except the layer.
    `trtforge validate` does this by itself for engines that fail.
    """

    if is_plan(reference):
        raise ConfigError(
            f"{reference}: is a plan; `trtforge validate {reference}` reports the layer of engines that fail"
        )
    look_into(reference, candidate, options)


def evidence_of_files(reference: Path, candidate: Path, options: dict[str, Any]) -> Evidence | TfliteEvidence:
    """Both models, and the samples.

    Raises:
        ConfigError: one is a `.tflite` file and the other is not, or one is not there; the
            reference is not in FP32, or they do not take the same inputs.
        DataError: samples that do not fit.
    """
    from calibration.graph.weightless import skeleton_from_file
    from calibration.quantized.grids import is_quantized

    ranges = None if options["ranges"] is None else Ranges(options["ranges"])
    are_tflite = [path.is_file() and is_tflite(path) for path in (reference, candidate)]
    if not any(are_tflite):
        models = OnnxModel(model_from(reference).path), OnnxModel(model_from(candidate).path)
        _check_float(reference, is_quantized(skeleton_from_file(reference)))
        return Evidence(*models, _samples(models, options), ranges)
    if not all(are_tflite):
        raise ConfigError(
            f"{candidate}: {'is' if are_tflite[1] else 'is not'} a .tflite file and {reference} "
            f"{'is' if are_tflite[0] else 'is not'}; give two files of one format, made of one network"
        )
    files = TfliteModel(reference), TfliteModel(candidate)
    facts = litert.tflite_facts(reference)
    _check_float(reference, facts.precision() != FP32.name)
    return TfliteEvidence(*files, _samples(files, options), ranges)


def _check_float(reference: Path, is_reduced: bool) -> None:
    if is_reduced:
        raise ConfigError(
            f"{reference}: is in a reduced precision itself, the network in FP32 is expected; name that first, and "
            "then what is judged"
        )


def _samples(models: Sequence[ModelFile], options: dict[str, Any]) -> Samples:
    """What both take."""
    specs, others = (model_specs(model) for model in models)
    if names := sorted({spec.name for spec in specs} ^ {spec.name for spec in others}):
        raise ConfigError(
            f"{models[1].path}: has not the inputs of {models[0].path} ('{names[0]}' is of one of them alone); give "
            "two files of one network"
        )
    shapes = {spec.name: spec.shape for spec in others}
    for spec in specs:
        if not _may_be_one(spec.shape, shapes[spec.name]):
            raise ConfigError(
                f"{models[1].path}: takes input '{spec.name}' as {shape_text(shapes[spec.name])}, {models[0].path} as "
                f"{shape_text(spec.shape)}; give two files of one network"
            )
    return samples_from(options, specs)


def _may_be_one(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether what has the one shape may have the other; the batch does not count."""
    sizes = zip(shape[1:], other[1:])
    return len(shape) == len(other) and all(size == theirs or DYNAMIC in (size, theirs) for size, theirs in sizes)


NUM_SHOWN = 12
"""Nodes in the table of `bisect`."""


def look_into(reference: Path, candidate: Path, options: dict[str, Any]) -> None:
    """Print which nodes of a candidate lose what the reference computes, the most suspect first."""
    stage = Validate(num_bisected=options["num_bisected"])
    evidence = evidence_of_files(reference, candidate, options)
    bisection = evidence.bisect(stage.num_bisected, stage.reference)
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
