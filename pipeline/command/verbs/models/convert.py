"""SavedModel or Keras file -> float .tflite file, for LiteRT."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.command.options import STORE, is_plan, needed, output_option, plan_settings
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.engine_runner import SIMULATOR
from pipeline.output import check_file_target, make, passing_folder
from pipeline.sources.contract import check_convertible, source_from_path, source_kind
from pipeline.stages.convert import Convert
from pipeline.stages.export import Export


@click.command()
@click.argument("source", type=Path)
@click.option("--signature", default="serving_default", show_default=True, help="signature of a SavedModel")
@click.option(
    "--allow",
    default="",
    metavar="A,B,…",
    help="operators that touch files or run Python, and Lambda layers of Keras files, that are allowed to",
)
@stage_options(Convert)
@output_option(".tflite file to write")
@plan_settings
@STORE
def convert(source: Path, signature: str, allow: str, **options: Any) -> VerbOutcome:
    """Convert SOURCE (SavedModel folder, .keras, .h5), or the source of PLAN.toml, to a float .tflite file.

    A .tflite file is written again with names for its inputs and outputs, and a fixed batch.

    It is exported to ONNX on the way, by which it is checked as `trtforge export` does.
    """
    if is_plan(source):
        return by_plan(source, options["store"], "convert", options["beside_plan"])
    stage = stage_from_options(Convert(), options)
    network = source_from_path(source, signature)
    check_convertible(network)
    output = needed(options["output"], "-o", "name the .tflite file to write")
    check_file_target(output)
    with passing_folder(None) as work:
        exported = stage_from_options(Export(), {"allow": allow})(work, network)
        trained = source_kind(network.KIND).trained(network, exported, SIMULATOR)
        return Made(make(output, partial(stage, trained=trained)))
