"""Float .tflite file and ranges -> a lower precision, for LiteRT."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.artifact import Ranges
from pipeline.command.options import RANGES_FOLDER, STORE, is_plan, needed, output_option, plan_settings, tflite_from
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.output import check_file_target, make
from pipeline.stages.ptq import Ptq


@click.command()
@click.argument("model", type=Path)
@RANGES_FOLDER
@stage_options(Ptq)
@output_option(".tflite file to write")
@plan_settings
@STORE
def ptq(model: Path, **options: Any) -> VerbOutcome:
    """Write a lower precision into MODEL (a float .tflite file), or all of PLAN.toml for LiteRT.

    \b
    trtforge convert my_savedmodel -o model.tflite
    trtforge calibrate model.tflite --data samples.npz -o ranges
    trtforge ptq model.tflite --ranges ranges -o int8.tflite
    """
    if is_plan(model):
        return by_plan(model, options["store"], "ptq", options["beside_plan"])
    opened = tflite_from(model)
    stage = stage_from_options(Ptq(), options)
    output = needed(options["output"], "-o", "name the .tflite file to write")
    check_file_target(output)
    ranges = Ranges(options["ranges"]) if options["ranges"] else None
    return Made(make(output, partial(stage, model=opened, ranges=ranges)))
