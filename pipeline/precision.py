"""The verbs that find ranges and write a precision into a model: `calibrate`, `cast`, `quantize`.

In a file of their own, which loads no more than they need: on small models starting is a good part of the work.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from calibration.data.batches import input_specs_from_onnx
from pipeline.artifact import OnnxModel, Ranges
from pipeline.command.options import (
    DATA_FLAGS,
    METHOD,
    RANGES,
    STORE,
    data_options,
    given_options,
    is_plan,
    model_from,
    needed,
    output_option,
    samples_from,
)
from pipeline.command.plan_run import by_plan
from pipeline.direct import check_file_target, check_folder_target, make, stage_from_options, stage_options, work_folder
from pipeline.errors import ConfigError
from pipeline.linting import ALLOW, check_samples
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.quantize import Quantize


@click.command()
@click.argument("model", type=Path)
@data_options
@ALLOW
@stage_options(Calibrate)
@output_option("the folder to write the ranges to")
@STORE
def calibrate(model: Path, **given: Any) -> None:
    """Run representative samples through MODEL (FP32 ONNX), or PLAN.toml's, and write each tensor's range.

    \b
    trtforge calibrate model.onnx --data photos -o ranges \\
        --preprocess 'resize = [256], crop = [224, 224], scale = 0.0039, dtype = "float32"'
    trtforge ranges show ranges
    """
    if is_plan(model):
        return by_plan(model, given["store"], "calibrate")
    opened = model_from(model)
    output = needed(given["output"], "-o", "name the folder to write the ranges to")
    check_folder_target(output)
    samples = samples_from(given, input_specs_from_onnx(model))
    stage = stage_from_options(Calibrate(), given)
    check_samples(opened, samples, given["allow"])
    click.echo(make(output, partial(stage, model=opened, samples=samples)).path)
    return None


def ranges_for(model: OnnxModel, given: dict[str, Any], work: Path) -> Ranges:
    """The ranges that were given, or found now from the data that was given.

    Raises:
        ConfigError: both were given; one would have no effect.
    """
    if given["ranges"]:
        if beside := [flag for flag in given_options() if flag in (*DATA_FLAGS, "--allow")]:
            raise ConfigError(f"{beside[0]}: has no effect beside --ranges; drop one of the two")
        return Ranges(given["ranges"])
    samples = samples_from(given, input_specs_from_onnx(model.path))
    check_samples(model, samples, given["allow"])
    return Calibrate(method=given["method"])(work, model, samples)


def rewrite(verb: str, stage: Cast | Quantize, model: Path, given: dict[str, Any]) -> None:
    """What `cast` and `quantize` have in common: a model and ranges in, a model out."""
    if is_plan(model):
        by_plan(model, given["store"], verb)
        return
    opened = model_from(model)
    stage = stage_from_options(stage, given)
    output = needed(given["output"], "-o", "name the ONNX file to write")
    check_file_target(output)
    with work_folder(output) as work:
        ranges = ranges_for(opened, given, work)
        click.echo(make(output, partial(stage, model=opened, ranges=ranges)).path)


@click.command()
@click.argument("model", type=Path)
@data_options
@RANGES
@METHOD
@ALLOW
@stage_options(Cast)
@output_option("the ONNX file to write")
@STORE
def cast(model: Path, **given: Any) -> None:
    """Write FP16 into MODEL (FP32 ONNX), or PLAN.toml's; what leaves FP16's range on the data stays FP32."""
    rewrite("cast", Cast(), model, given)


@click.command()
@click.argument("model", type=Path)
@data_options
@RANGES
@METHOD
@ALLOW
@stage_options(Quantize)
@output_option("the ONNX file to write")
@STORE
def quantize(model: Path, **given: Any) -> None:
    """Write INT8 into MODEL (FP32 ONNX), or PLAN.toml's, as Q/DQ nodes placed for a target."""
    rewrite("quantize", Quantize(), model, given)
