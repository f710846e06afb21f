"""FP32 ONNX and samples -> tolerances for `validate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from calibration.data.batches import input_specs_from_onnx
from calibration.histogram.methods import Method
from calibration.ranges.ranges import METHODS
from engines import backend as backend_named
from engines.precision import precision_named
from pipeline.artifact import TfliteModel
from pipeline.command.options import (
    BACKEND,
    PRECISION,
    SIMULATE,
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
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.errors import ConfigError
from pipeline.output import check_file_target, make
from pipeline.stages.quantize import Quantize
from pipeline.stages.tolerate import Rounding, Tolerate


@click.command()
@click.argument("model", type=Path)
@data_options
@BACKEND
@SIMULATE
@PRECISION
@click.option(
    "--method",
    type=click.Choice(("any", *METHODS)),
    default="any",
    show_default=True,
    help="for INT8: calibration method of the engine, or any",
)
@stage_options(Tolerate)
@output_option("file to write, such as tolerances.json")
@plan_settings
@STORE
def tolerate(model: Path, backend: str, simulate: bool, **options: Any) -> VerbOutcome:
    """Derive the tolerances within which a correct engine of MODEL (FP32 ONNX, or that of PLAN.toml) agrees with FP32.

    They follow from the rounding of --precision on --backend (with --simulate: on TensorRT), on the samples that the
    engines will be validated with. Apply them by `trtforge validate --tolerances`; a plan applies them by itself.
    """
    if is_plan(model):
        return by_plan(model, options["store"], "tolerate", options["beside_plan"])
    opened = model_from(model)
    rounding = rounding_for(options["precision"], backend, simulate, options.pop("method"))
    output = needed(options["output"], "-o", "name the file to write, such as tolerances.json")
    check_file_target(output)
    samples = samples_from(options, input_specs_from_onnx(model))
    stage = stage_from_options(Tolerate(), options)
    return Made(make(output, partial(stage, model=opened, samples=samples, rounding=rounding)))


def rounding_for(precision: str, name: str, simulate: bool, method: Method | Literal["any"]) -> Rounding:
    """What engines of a backend round; with ``simulate``, of TensorRT.

    Raises:
        ConfigError: the backend takes no model of that precision.
    """
    asked, runtime = precision_named(precision), backend_named(name)
    if not asked.is_full and runtime.TAKES == TfliteModel.FORMAT and not simulate:
        return Rounding(precision, "tflite", method="minmax" if asked.has_many_levels else method)
    placement = "tensorrt" if simulate else runtime.PLACEMENT
    if asked.is_integer and (placement == "none" or not (asked.has_scales or asked.is_dynamic)):
        raise ConfigError(f"--backend {name}: does not take {asked.title} models; choose another")
    if asked.is_dynamic and placement != "onnxruntime":
        raise ConfigError(f"--precision {precision}: is for onnxruntime and litert; choose another")
    if not asked.is_integer:
        return Rounding(precision, "tensorrt" if placement == "tensorrt" else "none")
    arithmetic = Quantize().chosen_arithmetic()[0] if placement == "onnxruntime" else "s8s8"
    return Rounding(precision, placement, arithmetic=arithmetic, method=method)
