"""FP32 ONNX and ranges -> FP16 ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.command.options import (
    METHOD,
    RANGES,
    STORE,
    data_options,
    output_option,
    plan_settings,
)
from pipeline.command.outcomes import VerbOutcome
from pipeline.command.rewrite import rewrite
from pipeline.command.sample_check import ALLOW
from pipeline.command.stage_options import stage_options
from pipeline.stages.cast import Cast


@click.command()
@click.argument("model", type=Path)
@data_options
@RANGES
@METHOD
@ALLOW
@stage_options(Cast)
@output_option("ONNX file to write")
@plan_settings
@STORE
def cast(model: Path, **options: Any) -> VerbOutcome:
    """Convert MODEL (FP32 ONNX, or that of PLAN.toml) to FP16.

    Nodes whose values exceed the range of FP16 on the calibration data stay in FP32.
    """
    return rewrite("cast", Cast(), model, options)
