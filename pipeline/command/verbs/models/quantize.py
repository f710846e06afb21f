"""FP32 ONNX and ranges -> INT8 ONNX (Q/DQ nodes, or dynamic)."""

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
from pipeline.stages.quantize import Quantize

OF_PLANS = ("min_sqnr_db", "max_metric_drop", "sensitivity")
"""Options of mixed precision, which is found on a plan's calibration samples and judged by its metric."""


@click.command()
@click.argument("model", type=Path)
@data_options
@RANGES
@METHOD
@ALLOW
@stage_options(Quantize, *OF_PLANS)
@output_option("ONNX file to write")
@plan_settings
@STORE
def quantize(model: Path, **options: Any) -> VerbOutcome:
    """Quantize MODEL (FP32 ONNX, or that of PLAN.toml) to INT8, with Q/DQ nodes placed for one backend.

    With `--precision dynamic --target onnxruntime` it needs no data: scales are found anew at each run.

    Mixed precision is for plans: [quantize] min_sqnr_db, max_metric_drop.
    """
    return rewrite("quantize", Quantize(), model, options)
