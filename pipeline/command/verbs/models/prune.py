"""FP32 ONNX and samples -> the same with weights at zero."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from calibration.data.batches import input_specs_from_onnx
from pipeline.command.options import (
    STORE,
    data_options,
    is_plan,
    model_from,
    needed,
    output_option,
    plan_settings,
    samples_from,
)
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.sample_check import ALLOW, check_samples
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.command.training import aim_from, aim_options, check_torch
from pipeline.output import check_file_target, make
from pipeline.stages.calibrate import check_float
from pipeline.stages.prune import Prune


@click.command()
@click.argument("model", type=Path)
@data_options
@ALLOW
@aim_options
@stage_options(Prune)
@output_option("ONNX file to write")
@plan_settings
@STORE
def prune(model: Path, **options: Any) -> VerbOutcome:
    """Set weights of MODEL (FP32 ONNX, or that of PLAN.toml) to zero, so that the file compresses better.

    At once, which loses accuracy; or with --epochs while it is trained to answer as before:

    \b
    trtforge prune model.onnx --data samples.npz --share 0.5 --epochs 20 -o pruned.onnx
    """
    if is_plan(model):
        return by_plan(model, options["store"], "prune", options["beside_plan"])
    opened = model_from(model)
    output = needed(options["output"], "-o", "name the ONNX file to write")
    check_file_target(output)
    check_float(opened)
    samples = samples_from(options, input_specs_from_onnx(model))
    aim = aim_from(opened, options, None)
    stage = stage_from_options(Prune(), options)
    if stage.epochs:
        check_torch("prune")
    check_samples(opened, samples, options["allow"])
    return Made(make(output, partial(stage, model=opened, samples=samples, aim=aim)))
