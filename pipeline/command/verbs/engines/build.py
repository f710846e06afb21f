"""ONNX or .tflite -> engine."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from calibration.data.batches import Samples
from engines import backend as backend_named
from engines.contract import SharingBackend
from pipeline.artifact import ModelFile, Ranges
from pipeline.builder.plugins import name_plugins
from pipeline.command.on_options import FLAGS, OnOptions, on_options, refuse_on
from pipeline.command.options import (
    BACKEND,
    DATA_FLAGS,
    PRECISION,
    RANGES,
    SETTINGS,
    STORE,
    PlanOptions,
    data_options,
    given_options,
    is_plan,
    is_quiet,
    model_file_from,
    model_specs,
    names_from,
    needed,
    output_option,
    profile_options,
    samples_from,
    shape_ranges,
)
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.sample_check import check_samples
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.errors import ConfigError
from pipeline.output import check_file_target, check_folder_target, make
from pipeline.spelling import with_and
from pipeline.stages.build import Build, BuildTarget, takers_of


@click.command()
@click.argument("model", type=Path)
@BACKEND
@PRECISION
@profile_options
@stage_options(Build)
@data_options
@click.option(
    "--allow",
    default="",
    metavar="A,B,…",
    help="codes of `trtforge lint` findings that are not treated as errors, such as range; with the plan of a bundle: "
    "functions that it names (module:function) and may run",
)
@SETTINGS
@RANGES
@output_option("engine file to write; its record is written next to it")
@on_options
@STORE
def build(model: Path, backend: str, precision: str, on: OnOptions, **options: Any) -> VerbOutcome:
    """Build an engine from MODEL (an ONNX or .tflite file that carries its precision), or all engines of PLAN.toml.

    With --on they are built, validated and timed on that machine, as by `trtforge run --on`, and brought here.
    """
    if is_plan(model):
        beside_plan = PlanOptions(names_from(options["allow"]), options["settings"], quiet=is_quiet())
        if on:
            return build_on(model, options["store"], on, beside_plan, backend)
        return by_plan(model, options["store"], "build", beside_plan)
    refuse_on(on, model)
    if options["settings"]:
        raise ConfigError(f"--set {options['settings'][0]}: has an effect only on a plan; drop it")
    opened = model_file_from(model)
    target = BuildTarget(backend, precision, shape_ranges(options))
    check_options_for(backend)
    stage = stage_from_options(Build(), options)
    name_plugins([Path(name) for name in stage.plugins])
    output = needed(options["output"], "-o", "name the engine to write; its record goes beside it")
    runtime = backend_named(backend)
    if isinstance(runtime, SharingBackend):
        check_folder_target(output, runtime.DESCRIPTION)
    else:
        check_file_target(output)
    calibration = calibration_for(stage, opened, target, options)
    return Made(make(output, partial(stage, model=opened, target=target, calibration=calibration)))


def build_on(path: Path, store: Path, on: OnOptions, beside_plan: PlanOptions, backend: str) -> VerbOutcome:
    """All engines of a plan, on other machines.

    Raises:
        ConfigError: an option stands beside the plan, which would have no effect.
    """
    from pipeline.command.on_devices import RUN, report_on, run_on

    taken = ("--store", "--backend", "--set", *FLAGS)
    if beside := [flag for flag in given_options() if flag not in taken]:
        raise ConfigError(f"{beside[0]}: has no effect together with --on; write it into {path}")
    backends = (backend,) if "--backend" in given_options() else ()
    plan, outcomes = run_on(path, store, on, beside_plan, replace(RUN, backends=backends))
    return report_on(plan, outcomes, tables=False)


def check_options_for(backend: str) -> None:
    """Raise ConfigError if an option of the builder is given that this backend has no use for."""
    options = {field.name for field in fields(Build)}
    for flag in given_options():
        name = flag.removeprefix("--").replace("-", "_")
        if name in options and backend not in (takers := takers_of(name)):
            raise ConfigError(
                f"{flag}: has no effect on an engine for {backend}, it is for {with_and(takers)}; drop it"
            )


def calibration_for(
    stage: Build, model: ModelFile, target: BuildTarget, options: dict[str, Any]
) -> Ranges | Samples | None:
    """What TensorRT's calibrator reads; None for what is not native INT8.

    Raises:
        ConfigError: it is missing, or given where it has no effect.
    """
    wanted = stage.native_scales if stage.is_native(target.backend, target.precision) else ""
    for flag in given_options():
        if flag in (*DATA_FLAGS, "--allow") and wanted != "tensorrt":
            raise ConfigError(f"{flag}: has an effect only with --int8 native --native-scales tensorrt; drop it")
        if flag == "--ranges" and wanted != "ranges":
            raise ConfigError(f"{flag}: has an effect only with --int8 native --native-scales ranges; drop it")
    if wanted == "tensorrt":
        samples = samples_from(options, model_specs(model))
        check_samples(model, samples, options["allow"])
        return samples
    if wanted == "ranges":
        return Ranges(needed(options["ranges"], "--ranges", "name the folder that `trtforge calibrate` wrote"))
    return None
