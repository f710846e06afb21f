"""FP32 ONNX or .tflite file and samples -> the range of each tensor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.artifact import OnnxModel
from pipeline.command.options import (
    STORE,
    data_options,
    is_plan,
    model_file_from,
    model_specs,
    needed,
    output_option,
    plan_settings,
    samples_from,
)
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.sample_check import ALLOW, check_samples
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.output import check_folder_target, make
from pipeline.stages.calibrate import Calibrate, check_float


@click.command()
@click.argument("model", type=Path)
@data_options
@ALLOW
@stage_options(Calibrate)
@output_option("folder to write the ranges to")
@plan_settings
@STORE
def calibrate(model: Path, **options: Any) -> VerbOutcome:
    """Run samples through MODEL (FP32 ONNX or float .tflite, or that of PLAN.toml), and write each tensor's range.

    \b
    trtforge calibrate model.onnx --data photos -o ranges \\
        --preprocess 'resize = [256], crop = [224, 224], scale = 0.0039, dtype = "float32"'
    trtforge ranges show ranges
    """
    if is_plan(model):
        return by_plan(model, options["store"], "calibrate", options["beside_plan"])
    opened = model_file_from(model)
    output = needed(options["output"], "-o", "name the folder to write the ranges to")
    check_folder_target(output)
    if isinstance(opened, OnnxModel):
        check_float(opened)
    samples = samples_from(options, model_specs(opened))
    stage = stage_from_options(Calibrate(), options)
    check_samples(opened, samples, options["allow"])
    return Made(make(output, partial(stage, model=opened, samples=samples)))
