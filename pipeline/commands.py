"""The verbs on engines and sources: each takes a plan (`PLAN.toml`), or works directly on files."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from calibration.data.batches import Samples, input_specs_from_onnx
from calibration.histogram.methods import Method
from calibration.ranges.ranges import METHODS
from engines import backend as backend_named
from engines.contract import Precision
from pipeline.artifact import OnnxModel, Ranges
from pipeline.command.options import (
    BACKEND,
    DATA_FLAGS,
    PRECISION,
    RANGES,
    SIMULATE,
    STORE,
    data_options,
    engine_from,
    given_options,
    is_plan,
    model_from,
    needed,
    output_option,
    profile_options,
    samples_from,
    shape_ranges,
    specs_of,
)
from pipeline.command.plan_run import by_plan
from pipeline.direct import check_file_target, make, stage_from_options, stage_options
from pipeline.errors import ConfigError
from pipeline.linting import ALLOW, check_samples
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.build import Build, Target, takers_of
from pipeline.stages.export import Export, source_from_path
from pipeline.stages.infer import Infer
from pipeline.stages.quantize import Quantize
from pipeline.stages.tolerate import Rounding, Tolerate


@click.command()
@click.argument("source", type=Path)
@click.option("--signature", default="serving_default", show_default=True, help="of a SavedModel")
@stage_options(Export)
@output_option("the ONNX file to write")
@STORE
def export(source: Path, **given: Any) -> None:
    """Convert SOURCE (SavedModel folder, .keras, .h5, .onnx), or PLAN.toml's, to an FP32 ONNX model.

    With a plan, the ONNX model's answers are compared with the network's on the evaluation data.
    """
    if is_plan(source):
        return by_plan(source, given["store"], "export")
    stage = stage_from_options(Export(), given)
    network = source_from_path(source, given["signature"])
    output = needed(given["output"], "-o", "name the ONNX file to write")
    check_file_target(output)
    click.echo(make(output, partial(stage, source=network)).path)
    return None


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
    help="INT8: by which ranges are read",
)
@stage_options(Tolerate)
@output_option("the file to write, such as tolerances.json")
@STORE
def tolerate(model: Path, backend: str, simulate: bool, **given: Any) -> None:
    """Derive how far outputs of a sound engine of MODEL (FP32 ONNX), or of PLAN.toml's, may be from FP32's.

    From the rounding of --precision for --backend (with --simulate: for TensorRT), on the samples that engines are
    going to be judged on. `validate --tolerances` holds an engine to it; a plan does by itself.
    """
    if is_plan(model):
        return by_plan(model, given["store"], "tolerate")
    opened = model_from(model)
    rounding = rounding_for(given["precision"], backend, simulate, given.pop("method"))
    output = needed(given["output"], "-o", "name the file to write, such as tolerances.json")
    check_file_target(output)
    samples = samples_from(given, input_specs_from_onnx(model))
    stage = stage_from_options(Tolerate(), given)
    click.echo(make(output, partial(stage, model=opened, samples=samples, rounding=rounding)).path)
    return None


def rounding_for(precision: Precision, name: str, simulate: bool, method: Method | Literal["any"]) -> Rounding:
    """What engines of a backend round; with ``simulate``, of TensorRT.

    Raises:
        ConfigError: the backend takes no INT8.
    """
    placement = "tensorrt" if simulate else backend_named(name).PLACEMENT
    if precision != "int8":
        return Rounding(precision, "tensorrt" if placement == "tensorrt" else "none")
    if placement == "none":
        raise ConfigError(f"--backend {name}: takes no INT8 model; name another")
    arithmetic = Quantize().chosen_arithmetic()[0] if placement == "onnxruntime" else "s8s8"
    return Rounding("int8", placement, arithmetic=arithmetic, method=method)


@click.command()
@click.argument("model", type=Path)
@BACKEND
@PRECISION
@profile_options
@stage_options(Build)
@data_options
@ALLOW
@RANGES
@output_option("the engine to write; its record goes beside it")
@STORE
def build(model: Path, backend: str, precision: Precision, **given: Any) -> None:
    """Build an engine from MODEL (ONNX, its precision written in it), or PLAN.toml's engines."""
    if is_plan(model):
        return by_plan(model, given["store"], "build")
    opened = model_from(model)
    target = Target(backend, precision, shape_ranges(given))
    check_options_for(backend)
    stage = stage_from_options(Build(), given)
    output = needed(given["output"], "-o", "name the engine to write; its record goes beside it")
    check_file_target(output)
    calibration = calibration_for(stage, opened, target, given)
    click.echo(make(output, partial(stage, model=opened, target=target, calibration=calibration)).path)
    return None


def check_options_for(backend: str) -> None:
    """Raise ConfigError if an option of the builder is given that this backend has no use for."""
    options = {one.name for one in fields(Build)}
    for flag in given_options():
        name = flag.removeprefix("--").replace("-", "_")
        if name in options and backend not in (takers := takers_of(name)):
            raise ConfigError(
                f"{flag}: has no effect on an engine for {backend}, it is for {' and '.join(takers)}; drop it"
            )


def calibration_for(stage: Build, model: OnnxModel, target: Target, given: dict[str, Any]) -> Ranges | Samples | None:
    """What TensorRT's calibrator reads; None for what is not native INT8.

    Raises:
        ConfigError: it is missing, or given where it has no effect.
    """
    wanted = stage.native_scales if stage.is_native(target.backend, target.precision) else ""
    for flag in given_options():
        if flag in (*DATA_FLAGS, "--allow") and wanted != "tensorrt":
            raise ConfigError(f"{flag}: has effect with --int8 native --native-scales tensorrt alone; drop it")
        if flag == "--ranges" and wanted != "ranges":
            raise ConfigError(f"{flag}: has effect with --int8 native --native-scales ranges alone; drop it")
    if wanted == "tensorrt":
        samples = samples_from(given, input_specs_from_onnx(model.path))
        check_samples(model, samples, given["allow"])
        return samples
    if wanted == "ranges":
        return Ranges(needed(given["ranges"], "--ranges", "name the folder that `trtforge calibrate` wrote"))
    return None


@click.command()
@click.argument("engine", type=Path)
@data_options
@BACKEND
@SIMULATE
@stage_options(Infer)
@output_option("the file for the outputs, such as outputs.json")
@STORE
def infer(engine: Path, backend: str, simulate: bool, **given: Any) -> None:
    """Run ENGINE, or PLAN.toml's engines, on all samples; the outputs are saved in Polygraphy's format."""
    if is_plan(engine):
        return by_plan(engine, given["store"], "infer")
    opened = engine_from(engine, backend, simulate)
    output = needed(given["output"], "-o", "name the file for the outputs, such as outputs.json")
    check_file_target(output)
    samples = samples_from(given, specs_of(opened))
    stage = stage_from_options(Infer(), given)
    click.echo(make(output, partial(stage, engine=opened, samples=samples)).path)
    return None


@click.command()
@click.argument("reference", type=Path)
@click.argument("candidate", type=Path, required=False)
@data_options
@click.option("--metric", default="", help="top1, top5, mae, cosine, auc or module:function")
@click.option("--metric-output", default="", help="the output that the metric reads, where there are several")
@click.option("--atol", type=float, help="largest absolute difference")
@click.option("--rtol", type=float, help="largest relative difference, added to atol")
@click.option("--min-cosine", type=float, help="smallest cosine similarity")
@click.option("--min-psnr-db", type=float, help="smallest peak signal-to-noise ratio, dB")
@click.option("--min-sqnr-db", type=float, help="smallest signal to quantization noise ratio, dB")
@click.option("--max-metric-drop", type=float, help="largest drop of the metric")
@click.option("--tolerances", type=Path, help="what `trtforge tolerate` wrote for such engines, on the same samples")
@click.option("--model", type=Path, help="the ONNX model that CANDIDATE was built from, if it is none itself")
@click.option("--ranges", type=Path, help="folder that `trtforge calibrate` wrote, to hold the model's scales to")
@BACKEND
@SIMULATE
@PRECISION
@output_option("write the verdict here too (JSON)")
@STORE
def validate(reference: Path, candidate: Path | None, **given: Any) -> None:
    """Compare CANDIDATE with REFERENCE, or all engines of PLAN.toml with its FP32 model.

    Each is a file of outputs (.json from `trtforge infer` or `polygraphy run --save-outputs`), or a model to be run on
    --data: REFERENCE an ONNX file on ONNX Runtime, CANDIDATE an engine of --backend. Outputs are judged again with
    other tolerances without running anything. Exit status 5 if out of bound; where both models are known, with the
    likely layer.
    """
    from pipeline.judging import judge_files

    if is_plan(reference):
        return by_plan(reference, given["store"], "validate")
    judge_files(reference, needed(candidate, "CANDIDATE", "name outputs or an engine to judge"), given)
    return None


@click.command()
@click.argument("reference", type=Path)
@click.argument("candidate", type=Path)
@data_options
@click.option("--ranges", type=Path, help="folder that `trtforge calibrate` wrote, to hold the model's scales to")
@click.option("--num-bisected", default=32, show_default=True, help="samples to run both on, evenly spread; 0: all")
@output_option("write all nodes here too (JSON)")
def bisect(reference: Path, candidate: Path, **given: Any) -> None:
    """Find the layer at which CANDIDATE (ONNX in FP16 or with Q/DQ nodes) loses what REFERENCE (FP32 ONNX) computes.

    Each node's SQNR before and after it, and what a sound rounding at the same places leaves. `validate` does this by
    itself where an engine fails.
    """
    from pipeline.judging import look_into

    if is_plan(reference):
        raise ConfigError(f"{reference}: is a plan; `trtforge validate {reference}` says the layer of what fails")
    look_into(reference, candidate, given)


@click.command()
@click.argument("engines", type=Path, nargs=-1, required=True)
@data_options
@BACKEND
@stage_options(Benchmark)
@output_option("write the numbers here too (JSON), the raw latencies beside it")
@STORE
def benchmark(engines: tuple[Path, ...], backend: str, **given: Any) -> None:
    """Time ENGINES of one backend against each other, or PLAN.toml's, on samples of --data."""
    from pipeline.judging import time_files

    if is_plan(engines[0]):
        if len(engines) > 1:
            raise ConfigError(f"{engines[1]}: has no effect beside a plan; give a plan, or engines")
        return by_plan(engines[0], given["store"], "benchmark")
    time_files([engine_from(path, backend, False) for path in engines], given)
    return None
