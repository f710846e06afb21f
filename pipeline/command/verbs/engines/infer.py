"""Engine and samples -> outputs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.command.options import (
    BACKEND,
    SIMULATE,
    STORE,
    data_options,
    engine_from,
    is_plan,
    needed,
    output_option,
    plan_options,
    plugin_option,
    refuse_plan_options,
    samples_from,
    specs_of,
)
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.output import check_file_target, make
from pipeline.stages.infer import Infer


@click.command()
@click.argument("engine", type=Path)
@data_options
@BACKEND
@plugin_option
@SIMULATE
@stage_options(Infer)
@output_option("file to write the outputs to, such as outputs.json")
@plan_options
@STORE
def infer(engine: Path, backend: str, simulate: bool, **options: Any) -> VerbOutcome:
    """Run ENGINE, or all engines of PLAN.toml, on all samples, and save the outputs in Polygraphy's format."""
    if is_plan(engine):
        return by_plan(engine, options["store"], "infer", options["beside_plan"])
    refuse_plan_options(options)
    opened = engine_from(engine, backend, simulate)
    output = needed(options["output"], "-o", "name the file for the outputs, such as outputs.json")
    check_file_target(output)
    samples = samples_from(options, specs_of(opened))
    stage = stage_from_options(Infer(), options)
    return Made(make(output, partial(stage, engine=opened, samples=samples)))
