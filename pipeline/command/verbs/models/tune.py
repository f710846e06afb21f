"""FP32 ONNX and samples -> weights and ranges trained for INT8."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from calibration.data.batches import input_specs_from_onnx
from pipeline.accuracy.weight_codes import codes_from_folder
from pipeline.accuracy.weight_rounding import RoundWeights
from pipeline.artifact import OnnxModel, Ranges
from pipeline.command.options import (
    METHOD,
    RANGES_FOLDER,
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
from pipeline.output import check_folder_target, make, work_folder
from pipeline.stages.calibrate import Calibrate, check_float
from pipeline.stages.quantize import Quantize
from pipeline.stages.tune import Tune
from pipeline.training.curve import TRAINING_FILE


@click.command()
@click.argument("model", type=Path)
@data_options
@RANGES_FOLDER
@METHOD
@ALLOW
@aim_options
@stage_options(Quantize, "placement", "rest", "override", "min_sqnr_db", "max_metric_drop")
@stage_options(Tune)
@output_option("folder to write: model.onnx, ranges and training.json")
@plan_settings
@STORE
def tune(model: Path, **options: Any) -> VerbOutcome:
    """Train MODEL (FP32 ONNX, or that of PLAN.toml) for INT8 on one backend, so that it answers as FP32 does.

    Quantization-aware training, without labels: FP32 is the teacher. Then write the INT8 model of what was learned:

    \b
    trtforge tune model.onnx --data samples.npz --target onnxruntime -o tuned
    trtforge quantize tuned/model.onnx --ranges tuned/ranges --target onnxruntime -o int8.onnx
    """
    if is_plan(model):
        return by_plan(model, options["store"], "tune", options["beside_plan"])
    check_torch("tune")
    opened = model_from(model)
    output = needed(options["output"], "-o", "name the folder to write to")
    check_folder_target(output, TRAINING_FILE)
    check_float(opened)
    samples = samples_from(options, input_specs_from_onnx(model))
    written = stage_from_options(Quantize(), options)
    placement = written.placement_options(opened)
    aim = aim_from(opened, options, placement)
    stage = stage_from_options(Tune(), options)
    check_samples(opened, samples, options["allow"])
    with work_folder(output) as work:
        ranges = options["ranges"] and Ranges(options["ranges"])
        ranges = ranges or Calibrate(method=options["method"])(work, opened, samples)
        if written.rounds_by_data():
            codes = codes_from_folder(RoundWeights(placement)(work, opened, ranges, samples))
            aim = replace(aim, placement=replace(placement, chosen=codes))
        run = partial(stage, model=OnnxModel(opened.path), ranges=ranges, samples=samples, aim=aim)
        return Made(make(output, run))
