"""Check that samples fit the model and are representative."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from calibration.data.batches import input_specs_from_onnx
from calibration.data.source import InputSpec
from pipeline.command.options import (
    STORE,
    data_options,
    is_plan,
    model_from,
    output_option,
    plan_settings,
    samples_from,
)
from pipeline.command.outcomes import Linted, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.errors import ConfigError
from pipeline.output import passing_folder, put
from pipeline.stages.lint import Evaluated, Lint

F = TypeVar("F", bound=Callable[..., Any])


def evaluation_options(function: F) -> F:
    """The options that name evaluation samples, to compare with."""
    for option in (
        click.option("--evaluation-labels", default="", help="like --labels, for the evaluation samples"),
        click.option(
            "--evaluation-input",
            "evaluation_inputs",
            multiple=True,
            metavar="NAME=KEY",
            help="like --input, for the evaluation samples",
        ),
        click.option(
            "--evaluation", metavar="PATH", help="evaluation samples to compare with, preprocessed in the same way"
        ),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("model", type=Path)
@data_options
@evaluation_options
@stage_options(Lint)
@output_option("also write the findings to this JSON file")
@plan_settings
@STORE
def lint(model: Path, **options: Any) -> VerbOutcome:
    """Check that samples match what MODEL (FP32 ONNX, or that of PLAN.toml) was trained on, and represent it.

    Prints one finding per line: severity, code, sentence. Exit status 2 if a finding is an error and --allow does not
    name its code. docs/data.md describes each code, its evidence, and the limits of the check.
    """
    if is_plan(model):
        return by_plan(model, options["store"], "lint", options["beside_plan"])
    opened = model_from(model)
    specs = input_specs_from_onnx(model)
    other = evaluation_from(options, specs)
    samples = samples_from(options, specs)
    stage = stage_from_options(Lint(), options)
    output: Path | None = options["output"]
    with passing_folder(output) as work:
        findings = stage(work, opened, samples, other)
        if output is not None:
            shutil.copyfile(findings.path, work / "copy")
            put(work / "copy", output, work)
        return Linted(findings.read(), stage.allow)


def evaluation_from(options: dict[str, Any], specs: tuple[InputSpec, ...]) -> Evaluated | None:
    """The evaluation samples, if there are any; takes their options, but not the preprocessing, out of ``options``."""
    evaluation_keys = {name: options.pop(f"evaluation_{name}") for name in ("inputs", "labels")}
    path = options.pop("evaluation")
    if path:
        return Evaluated(
            samples_from({**evaluation_keys, "data": path, "limit": 0, "preprocess": options["preprocess"]}, specs)
        )
    if any(evaluation_keys.values()):
        raise ConfigError("--evaluation is missing: its input or labels are given; name the samples")
    return None
