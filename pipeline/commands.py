"""The verbs: each takes a plan (`PLAN.toml`), or works directly on files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from calibration.batches import Samples, input_specs_from_onnx, open_samples
from calibration.preprocess import Preprocess
from calibration.source import DataSource, InputSpec
from engines import BACKENDS
from engines.contract import Precision, ShapeRange
from pipeline.artifact import Engine, OnnxModel, Ranges
from pipeline.direct import make, record_of, stage_from_options, stage_options, work_folder
from pipeline.errors import CheckFailed, ConfigError
from pipeline.flow import Results
from pipeline.plan import PRECISIONS, Plan, read_plan, record_from_table, tomllib
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.build import Build, Target
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.export import Export, source_from_path
from pipeline.stages.infer import Infer, runner_of
from pipeline.stages.quantize import Quantize
from pipeline.store import Store

F = TypeVar("F", bound=Callable[..., Any])

STORE = click.option(
    "--store", type=Path, default=Path(".trtforge"), show_default=True, help="plan: where results are kept"
)
OUTPUT = click.option("-o", "--output", type=Path, help="the file to write")
BACKEND = click.option(
    "--backend", type=click.Choice(BACKENDS), default="onnxruntime", show_default=True, help="the runtime"
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="what the model was written for",
)
"""Options that several verbs share."""


def data_options(function: F) -> F:
    """The options that name samples."""
    for option in (
        click.option("--preprocess", default="", metavar="TOML", help="e.g. 'scale = 0.0039, layout = \"nchw\"'"),
        click.option("--limit", default=0, help="use so many samples, evenly spread; 0: all"),
        click.option("--labels", default="", help="key of the labels in an .npz, a CSV file, or 'folders'"),
        click.option(
            "--input", "inputs", multiple=True, metavar="NAME=KEY", help="model input and its key in the data"
        ),
        click.option("--data", metavar="PATH", help=".npz, .npy, folder of images, or module:function"),
    ):
        function = option(function)
    return function


def is_plan(path: Path) -> bool:
    """Whether a verb was given a plan rather than a file to work on."""
    return path.suffix == ".toml"


def run_plan(path: Path, store: Path, until: str) -> tuple[Plan, Store, Results]:
    """Run a plan up to a verb, and say on stderr what was made and what was served."""
    from pipeline.flow import run

    plan, opened = read_plan(path), Store(store)
    try:
        made = run(plan, opened, until)
    finally:
        for entry in opened.account:
            how = "served" if entry.served else f"made in {entry.seconds:.1f} s"
            click.echo(f"trtforge: {entry.stage:<9} {entry.digest[:12]}  {how}", err=True)
    return plan, opened, made


def by_plan(path: Path, store: Path, until: str) -> None:
    """A single verb on a plan: print what it made."""
    _, _, made = run_plan(path, store, until)
    if until == "export":
        click.echo(made.fp32.path)
    elif until == "calibrate" and made.ranges:
        click.echo(made.ranges.path)
    else:
        kept: dict[str, Mapping[Any, Any]] = {"cast": made.models, "quantize": made.models, "build": made.engines}
        kept |= {"infer": made.outputs, "validate": made.verdicts}
        for variant, artifact in kept.get(until, {}).items():
            click.echo(f"{variant.name}\t{artifact.path}")
        if until == "benchmark" and made.timings:
            click.echo(made.timings.path)
    if until == "validate":
        raise_failures({variant.name: verdict.read() for variant, verdict in made.verdicts.items()})


def raise_failures(verdicts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise CheckFailed if any verdict did not pass, with every failure."""
    said = [f"{name}: {failure}" for name, verdict in verdicts.items() for failure in verdict["failures"]]
    if said:
        raise CheckFailed("out of bound: " + "; ".join(said))


def needed(value: Any, flag: str, why: str) -> Any:
    """The value of an option that working on files needs."""
    if not value:
        raise ConfigError(f"{flag} is missing: {why}")
    return value


def samples_from(given: dict[str, Any], specs: tuple[InputSpec, ...]) -> Samples:
    """The samples that the data options name; takes the options out of ``given``."""
    pairs = {}
    for pair in given.pop("inputs"):
        name, _, key = pair.rpartition("=")
        if not name:
            raise ConfigError(f"--input '{pair}': is not NAME=KEY; write --input image=x_test")
        pairs[name] = key
    path = needed(given.pop("data"), "--data", "name samples; this tool never makes up data")
    source = DataSource(path=path, inputs=pairs, labels=given.pop("labels"), limit=given.pop("limit"))
    text = given.pop("preprocess")
    try:
        table = tomllib.loads(f"x = {{ {text} }}")["x"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--preprocess '{text}': {error}; write it as in a plan, with commas between") from error
    return open_samples(source, specs, record_from_table(table, Preprocess, "--preprocess"), Path())


@click.command(short_help="Convert a trained network to FP32 ONNX.")
@click.argument("source", type=Path)
@click.option("--signature", default="serving_default", show_default=True, help="of a SavedModel")
@stage_options(Export)
@OUTPUT
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
    click.echo(make(output, partial(stage, source=network)).path)
    return None


@click.command(short_help="Find each tensor's range on representative samples.")
@click.argument("model", type=Path)
@data_options
@stage_options(Calibrate)
@OUTPUT
@STORE
def calibrate(model: Path, **given: Any) -> None:
    """Run representative samples through MODEL (FP32 ONNX), or PLAN.toml's, and write each tensor's range."""
    if is_plan(model):
        return by_plan(model, given["store"], "calibrate")
    samples = samples_from(given, input_specs_from_onnx(model))
    stage = stage_from_options(Calibrate(), given)
    output = needed(given["output"], "-o", "name the folder to write the ranges to")
    click.echo(make(output, partial(stage, model=OnnxModel(model), samples=samples)).path)
    return None


def ranges_for(model: OnnxModel, given: dict[str, Any], work: Path) -> Ranges:
    """The ranges that were given, or found now from the data that was given."""
    if given["ranges"]:
        return Ranges(given["ranges"])
    samples = samples_from(given, input_specs_from_onnx(model.path))
    return Calibrate(method=given["method"])(work, model, samples)


RANGES = click.option("--ranges", type=Path, help="folder that `trtforge calibrate` wrote; instead of --data")
METHOD = click.option(
    "--method", type=click.Choice(["entropy", "minmax", "percentile", "mse"]), default="entropy", show_default=True,
    help="with --data: how ranges are read",
)  # fmt: skip


def rewrite(verb: str, stage: Cast | Quantize, model: Path, given: dict[str, Any]) -> None:
    """What `cast` and `quantize` have in common: a model and ranges in, a model out."""
    if is_plan(model):
        by_plan(model, given["store"], verb)
        return
    stage = stage_from_options(stage, given)
    output = needed(given["output"], "-o", "name the ONNX file to write")
    input_specs_from_onnx(model)  # Says what is wrong with a model that cannot be read.
    with work_folder(output) as work:
        ranges = ranges_for(OnnxModel(model), given, work)
        click.echo(make(output, partial(stage, model=OnnxModel(model), ranges=ranges)).path)


@click.command(short_help="Write FP16 into the ONNX model.")
@click.argument("model", type=Path)
@data_options
@RANGES
@METHOD
@stage_options(Cast)
@OUTPUT
@STORE
def cast(model: Path, **given: Any) -> None:
    """Write FP16 into MODEL (FP32 ONNX), or PLAN.toml's; what leaves FP16's range on the data stays FP32."""
    rewrite("cast", Cast(), model, given)


@click.command(short_help="Write INT8 into the ONNX model as Q/DQ nodes.")
@click.argument("model", type=Path)
@data_options
@RANGES
@METHOD
@stage_options(Quantize)
@OUTPUT
@STORE
def quantize(model: Path, **given: Any) -> None:
    """Write INT8 into MODEL (FP32 ONNX), or PLAN.toml's, as Q/DQ nodes placed for a target."""
    rewrite("quantize", Quantize(), model, given)


def shape_ranges(given: dict[str, Any]) -> dict[str, ShapeRange]:
    """The optimization profile out of trtexec-like ``--min-shapes input:1x32x32x3``."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for which in ("min", "opt", "max"):
        for text in given.pop(f"{which}_shapes"):
            name, _, shape = text.rpartition(":")
            try:
                found.setdefault(name, {})[which] = tuple(int(part) for part in shape.split("x"))
            except ValueError as error:
                raise ConfigError(f"--{which}-shapes '{text}': is not NAME:1x32x32x3") from error
    for name, shapes in found.items():
        if len(shapes) < 3:
            raise ConfigError(f"shapes of '{name}': only {', '.join(shapes)} given; give min, opt and max")
    return {name: ShapeRange(**shapes) for name, shapes in found.items()}


def profile_options(function: F) -> F:
    """--min-shapes, --opt-shapes, --max-shapes, once per dynamic input."""
    for which in ("max", "opt", "min"):
        text = f"{which} shape of a dynamic input; repeatable"
        function = click.option(f"--{which}-shapes", multiple=True, metavar="NAME:1x32x32x3", help=text)(function)
    return function


@click.command(short_help="Build an engine from an ONNX model.")
@click.argument("model", type=Path)
@BACKEND
@PRECISION
@profile_options
@stage_options(Build)
@OUTPUT
@STORE
def build(model: Path, backend: str, precision: Precision, **given: Any) -> None:
    """Build an engine from MODEL (ONNX, its precision written in it), or PLAN.toml's engines."""
    if is_plan(model):
        return by_plan(model, given["store"], "build")
    target = Target(backend, precision, shape_ranges(given))
    stage = stage_from_options(Build(), given)
    input_specs_from_onnx(model)
    output = needed(given["output"], "-o", "name the engine to write; its record goes beside it")
    click.echo(make(output, partial(stage, model=OnnxModel(model), target=target)).path)
    return None


def engine_from(path: Path, backend: str, simulate: bool) -> Engine:
    """A user's engine file.

    Raises:
        ConfigError: it does not exist, or its record says that it is another backend's.
    """
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; give an engine that `trtforge build` wrote")
    made_by = record_of(path).get("backend", backend)
    if made_by != backend:
        raise ConfigError(f"{path}: was built by {made_by}, not {backend}; give --backend {made_by}")
    return Engine(path, backend, simulated=simulate)


def specs_of(engine: Engine) -> tuple[InputSpec, ...]:
    """The inputs of an engine, from the engine itself."""
    if engine.path.suffix == ".onnx":
        return input_specs_from_onnx(engine.path)
    with runner_of(engine, 0) as runner:
        return tuple(InputSpec(spec.name, spec.dtype, spec.shape) for spec in runner.inputs)


SIMULATE = click.option(
    "--simulate", is_flag=True, help="run Q/DQ nodes as a float simulation (accuracy of a TensorRT placement)"
)


@click.command(short_help="Run an engine on samples and keep its answers.")
@click.argument("engine", type=Path)
@data_options
@BACKEND
@SIMULATE
@stage_options(Infer)
@OUTPUT
@STORE
def infer(engine: Path, backend: str, simulate: bool, **given: Any) -> None:
    """Run ENGINE, or PLAN.toml's engines, on all samples; the outputs are saved in Polygraphy's format."""
    if is_plan(engine):
        return by_plan(engine, given["store"], "infer")
    opened = engine_from(engine, backend, simulate)
    samples = samples_from(given, specs_of(opened))
    stage = stage_from_options(Infer(), given)
    output = needed(given["output"], "-o", "name the file for the outputs, such as outputs.json")
    click.echo(make(output, partial(stage, engine=opened, samples=samples)).path)
    return None


@click.command(short_help="Judge an engine's answers against the FP32 model's.")
@click.argument("reference", type=Path)
@click.argument("candidate", type=Path, required=False)
@data_options
@click.option("--metric", default="", help="top1, top5, mae, cosine, auc or module:function")
@click.option("--metric-output", default="", help="the output that the metric reads, where there are several")
@click.option("--atol", type=float, help="largest absolute difference")
@click.option("--rtol", type=float, help="largest relative difference, added to atol")
@click.option("--min-cosine", type=float, help="smallest cosine similarity")
@click.option("--min-psnr-db", type=float, help="smallest peak signal-to-noise ratio, dB")
@click.option("--max-metric-drop", type=float, help="largest drop of the metric")
@BACKEND
@SIMULATE
@PRECISION
@OUTPUT
@STORE
def validate(reference: Path, candidate: Path | None, **given: Any) -> None:
    """Compare CANDIDATE with REFERENCE, or all engines of PLAN.toml with its FP32 model.

    Each is a file of outputs (.json from `trtforge infer` or `polygraphy run --save-outputs`), or a model to be run on
    --data: REFERENCE an ONNX file on ONNX Runtime, CANDIDATE an engine of --backend. Outputs are judged again with
    other tolerances without running anything. Exit status 5 if out of bound.
    """
    from pipeline.judging import judge_files

    if is_plan(reference):
        return by_plan(reference, given["store"], "validate")
    judge_files(reference, needed(candidate, "CANDIDATE", "name outputs or an engine to judge"), given)
    return None


@click.command(short_help="Time engines against each other.")
@click.argument("engines", type=Path, nargs=-1, required=True)
@data_options
@BACKEND
@stage_options(Benchmark)
@OUTPUT
@STORE
def benchmark(engines: tuple[Path, ...], backend: str, **given: Any) -> None:
    """Time ENGINES of one backend against each other, or PLAN.toml's, on samples of --data."""
    from pipeline.judging import time_files

    if is_plan(engines[0]):
        return by_plan(engines[0], given["store"], "benchmark")
    time_files([engine_from(path, backend, False) for path in engines], given)
    return None
