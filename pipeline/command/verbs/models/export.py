"""SavedModel, Keras, PyTorch or ONNX -> checked FP32 ONNX."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.command.options import (
    STORE,
    is_plan,
    needed,
    output_option,
    plan_settings,
    preprocess_from,
)
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.errors import ConfigError
from pipeline.output import check_file_target, make
from pipeline.sources.contract import source_from_path
from pipeline.stages.export import Export, pixels_from


@click.command()
@click.argument("source", type=Path)
@click.option("--signature", default="serving_default", show_default=True, help="signature of a SavedModel")
@stage_options(Export)
@click.option("--preprocess", default="", metavar="TOML", help="with --fold-preprocess: such as 'scale = 0.0039'")
@output_option("ONNX file to write")
@plan_settings
@STORE
def export(source: Path, **options: Any) -> VerbOutcome:
    """Convert SOURCE, or the source of PLAN.toml, to an FP32 ONNX model.

    SOURCE is a SavedModel folder, a .keras, .h5, .onnx, .tflite or .pt2 file, or module:function that returns a PyTorch
    network. Of a quantized .tflite file the model has Q/DQ nodes, and is built and judged as INT8.

    With a plan, the outputs of the ONNX model are compared with those of the trained network on the evaluation data.
    """
    if is_plan(source):
        return by_plan(source, options["store"], "export", options["beside_plan"])
    preprocess = options.pop("preprocess")
    stage = stage_from_options(Export(), options)
    if preprocess and not stage.fold_preprocess:
        raise ConfigError("--preprocess: has no effect without --fold-preprocess; add it, or drop this")
    pixels = pixels_from(preprocess_from(preprocess)) if preprocess else None
    network = source_from_path(source, options["signature"])
    output = needed(options["output"], "-o", "name the ONNX file to write")
    check_file_target(output)
    return Made(make(output, partial(stage, source=network, pixels=pixels)))
