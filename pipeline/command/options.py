"""What the verbs' options are, and what they mean: samples, shapes, engines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.input_specs import sample_specs
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource, InputSpec
from calibration.graph.validity import check_file
from calibration.ranges.ranges import AUTO, METHODS
from engines import backend as backend_named
from engines import builders
from engines.backends import litert
from engines.contract import ShapeRange, SharingBackend
from engines.litert.facts import is_tflite
from engines.precision import FP32, PRECISIONS
from pipeline.artifact import Engine, ModelFile, OnnxModel, TfliteModel
from pipeline.builder.plugins import name_plugins
from pipeline.errors import ConfigError
from pipeline.output import checked_record

F = TypeVar("F", bound=Callable[..., Any])

STORE = click.option(
    "--store",
    type=Path,
    default=Path(".trtforge"),
    show_default=True,
    help="folder where results of plans are stored",
)
BACKEND = click.option(
    "--backend",
    type=click.Choice(builders()),
    default="onnxruntime",
    show_default=True,
    help="runtime of the engine",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    default=FP32.name,
    show_default=True,
    help="precision of the engine",
)
SIMULATE = click.option(
    "--simulate", is_flag=True, help="simulate Q/DQ nodes in floating point (accuracy of a placement for TensorRT)"
)
RANGES = click.option("--ranges", type=Path, help="folder written by `trtforge calibrate`; instead of --data")
RANGES_FOLDER = click.option("--ranges", type=Path, help="folder written by `trtforge calibrate`, for that model")
METHOD = click.option(
    "--method", type=click.Choice((AUTO, *METHODS)), default=AUTO, show_default=True,
    help="how each range is read from the tensor's histogram; with --ranges: another reading of the same histograms",
)  # fmt: skip
SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="a key of the plan with another value, such as build.workspace_mib=2048; repeatable",
)
"""Options that several verbs share."""

DATA_FLAGS = ("--data", "--input", "--labels", "--limit", "--preprocess", "--method")
"""What asks for ranges to be found anew."""


@dataclass(frozen=True)
class PlanOptions:
    """What the command line adds to a plan."""

    allow: tuple[str, ...] = ()
    """Functions that the plan of a bundle may run."""
    settings: tuple[str, ...] = ()
    """Keys of the plan with other values, as ``read_plan`` takes them."""
    flags: tuple[str, ...] = ("--allow", "--set")
    """Those of the verb that stand for the fields above."""
    text: str | None = None
    """Of a plan that was drafted here; None: the plan's file is read."""
    quiet: bool = False
    """Nothing is told of what is made and served."""


@dataclass(frozen=True)
class Caller:
    """Who calls a verb, as click's ``obj``: Python, where it is not the command line."""

    quiet: bool


def is_quiet() -> bool:
    """Whether whoever called the verb that is running wants nothing told of what is made."""
    caller = click.get_current_context().find_object(Caller)
    return caller is not None and caller.quiet


def names_from(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def plugin_option(function: F) -> F:
    """--plugins of a verb that loads engines: names the libraries; without it those that the environment names are."""

    @click.option(
        "--plugins",
        default="",
        metavar="A,B,…",
        help="shared libraries of TensorRT plugins, such as libmy.so, that engines were built with and may load",
    )
    @functools.wraps(function)
    def with_plugins(*arguments: Any, plugins: str, **options: Any) -> Any:
        if plugins:
            name_plugins([Path(name) for name in names_from(plugins)])
        return function(*arguments, **options)

    return with_plugins  # type: ignore[return-value]  # But for the option it is the same.


def plan_options(function: F) -> F:
    """--allow and --set, which the verb gets as ``beside_plan``."""

    @click.option(
        "--allow",
        default="",
        metavar="A,B,…",
        help="functions that the plan of a bundle names (module:function) and may run",
    )
    @SETTINGS
    @functools.wraps(function)
    def with_plan_options(*arguments: Any, allow: str, settings: tuple[str, ...], **options: Any) -> Any:
        return function(*arguments, beside_plan=PlanOptions(names_from(allow), settings, quiet=is_quiet()), **options)

    return with_plan_options  # type: ignore[return-value]  # But for the two options it is the same.


def plan_settings(function: F) -> F:
    """--set alone, of a verb that makes models, which gets it as ``beside_plan`` too; refused beside files."""

    @SETTINGS
    @functools.wraps(function)
    def with_settings(*arguments: Any, settings: tuple[str, ...], **options: Any) -> Any:
        first, *_ = (p.name for p in click.get_current_context().command.params if isinstance(p, click.Argument))
        if settings and not is_plan(options[str(first)]):
            raise ConfigError(f"--set {settings[0]}: has an effect only on a plan; drop it")
        return function(*arguments, beside_plan=PlanOptions((), settings, ("--set",), quiet=is_quiet()), **options)

    return with_settings  # type: ignore[return-value]  # But for the option it is the same.


def output_option(text: str) -> Callable[[F], F]:
    """-o, with what it names for this verb."""
    return click.option("-o", "--output", type=Path, help=text)


def data_options(function: F) -> F:
    """The options that name samples."""
    for option in (
        click.option("--preprocess", default="", metavar="TOML", help="such as 'scale = 0.0039, layout = \"nchw\"'"),
        click.option("--limit", default=0, help="number of samples to use, evenly spread; 0: all"),
        click.option("--labels", default="", help="labels: a key, 'folders', a file or a folder (docs/metrics.md)"),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="NAME=KEY",
            help="model input and its key in the .npz; repeatable",
        ),
        click.option("--data", metavar="PATH", help="samples: .npz, .npy, folder of images, or module:function"),
    ):
        function = option(function)
    return function


def is_plan(path: Path) -> bool:
    """Whether a verb was given a plan rather than a file to work on."""
    return path.suffix == ".toml"


def given_options() -> list[str]:
    """The flags that stand on the command line of the verb that is running, and arguments beyond the first."""
    context = click.get_current_context()
    arguments, *_ = (p.name for p in context.command.params if isinstance(p, click.Argument))
    return [
        parameter.opts[0] if isinstance(parameter, click.Option) else parameter.make_metavar(context)
        for parameter in context.command.params
        if parameter.name != arguments
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]


def what_is(path: Path) -> str:
    """What is said of a path that is no file."""
    if path.is_dir():
        return "is a folder"
    return "is a device or a pipe, not a file" if path.exists() else "does not exist"


def model_from(path: Path) -> OnnxModel:
    """A user's ONNX file, a valid model but for its large weights, which are not read.

    Raises:
        ConfigError: there is no such file.
        ModelError: it is not a whole ONNX file, or no valid model.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {what_is(path)}; give an ONNX file")
    if is_tflite(path):
        raise ConfigError(
            f"{path}: is a .tflite file, an ONNX file is expected; `trtforge export {path} -o model.onnx` makes one"
        )
    input_specs_from_onnx(path)
    check_file(path)
    return OnnxModel(path)


def tflite_from(path: Path) -> TfliteModel:
    """A user's `.tflite` file, whose tables can be read.

    Raises:
        ConfigError: there is no such file.
        Unavailable: ai-edge-litert is not installed.
        EngineError: it is no `.tflite` file, or damaged.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {what_is(path)}; give a .tflite file")
    litert.tflite_facts(path)
    return TfliteModel(path)


def model_file_from(path: Path) -> ModelFile:
    """A user's `.tflite` file, by its magic or its ending, or else ONNX file; raises as what opens each."""
    is_named_so = path.suffix == ".tflite"
    return tflite_from(path) if path.is_file() and (is_named_so or is_tflite(path)) else model_from(path)


def model_specs(model: ModelFile) -> tuple[InputSpec, ...]:
    """The inputs of a model, as samples are stored."""
    return (
        specs_of(Engine(model.path, litert.NAME))
        if isinstance(model, TfliteModel)
        else input_specs_from_onnx(model.path)
    )


def needed(value: Any, flag: str, why: str) -> Any:
    """The value of an option that working on files needs."""
    if not value:
        raise ConfigError(f"{flag} is missing: {why}")
    return value


def samples_from(options: dict[str, Any], specs: tuple[InputSpec, ...]) -> Samples:
    """The samples that the data options name; takes these out of ``options``."""
    source, preprocess = data_from(options)
    return open_samples(source, specs, preprocess)


def data_from(options: dict[str, Any]) -> tuple[DataSource, Preprocess]:
    """Where the data options say that samples lie, and what is done to them; takes these out of ``options``."""
    pairs = {}
    for pair in options.pop("inputs"):
        name, _, key = pair.rpartition("=")
        if not name:
            raise ConfigError(f"--input '{pair}': is not NAME=KEY; write --input image=x_test")
        pairs[name] = key
    path = needed(options.pop("data"), "--data", "name samples; this tool never makes up data")
    source = DataSource(path=path, inputs=pairs, labels=options.pop("labels"), limit=options.pop("limit"))
    return source, preprocess_from(options.pop("preprocess"))


def preprocess_from(text: str) -> Preprocess:
    """The preprocessing that ``--preprocess`` gives; none if it is empty."""
    if not text:
        return Preprocess()
    from pipeline.plan import table_from_toml
    from pipeline.strict import record_from_table

    try:
        table = table_from_toml(f"x = {{ {text} }}")
        if len(table) > 1:
            raise ConfigError(f"--preprocess '{text}': is more than one table; write it in one line")
    except ValueError as error:
        raise ConfigError(f"--preprocess '{text}': {error}; write it as in a plan, with commas between") from error
    return record_from_table(table["x"], Preprocess, "--preprocess")


def shape_ranges(options: dict[str, Any]) -> dict[str, ShapeRange]:
    """The optimization profile out of trtexec-like ``--min-shapes input:1x32x32x3``."""
    shapes_of_inputs: dict[str, dict[str, tuple[int, ...]]] = {}
    for which in ("min", "opt", "max"):
        for text in options.pop(f"{which}_shapes"):
            name, _, shape = text.rpartition(":")
            try:
                shapes_of_inputs.setdefault(name, {})[which] = tuple(int(part) for part in shape.split("x"))
            except ValueError as error:
                raise ConfigError(f"--{which}-shapes '{text}': is not NAME:1x32x32x3") from error
    for name, shapes in shapes_of_inputs.items():
        if len(shapes) < 3:
            raise ConfigError(f"shapes of '{name}': only {', '.join(shapes)} given; give min, opt and max")
    return {name: ShapeRange(**shapes) for name, shapes in shapes_of_inputs.items()}


def refuse_plan_options(options: dict[str, Any]) -> None:
    """What ``plan_options`` gives has no effect on files; takes it out of ``options``.

    Raises:
        ConfigError: something is given.
    """
    beside_plan: PlanOptions = options.pop("beside_plan")
    if beside_plan.allow:
        raise ConfigError("--allow: has an effect only on the plan of a bundle; drop it")
    if beside_plan.settings:
        raise ConfigError(f"--set {beside_plan.settings[0]}: has an effect only on a plan; drop it")


def profile_options(function: F) -> F:
    """--min-shapes, --opt-shapes, --max-shapes, once per dynamic input."""
    for which in ("max", "opt", "min"):
        text = f"{which} shape of an input with dynamic dimensions; repeatable"
        function = click.option(f"--{which}-shapes", multiple=True, metavar="NAME:1x32x32x3", help=text)(function)
    return function


def engine_from(path: Path, backend: str, simulate: bool) -> Engine:
    """A user's engine file.

    Raises:
        ConfigError: it does not exist, or its record says that it is another backend's, or is another engine's.
    """
    is_shared = isinstance(runtime := backend_named(backend), SharingBackend) and (path / runtime.DESCRIPTION).is_file()
    if not path.is_file() and not is_shared:
        raise ConfigError(f"{path}: {what_is(path)}; give an engine that `trtforge build` wrote, or an ONNX file")
    if not path.stat().st_size:
        raise ConfigError(f"{path}: is empty; copy or build it again")
    record = checked_record(path)
    made_by = record.get("backend", backend)
    if made_by != backend:
        raise ConfigError(f"{path}: was built by {made_by}, not {backend}; give --backend {made_by}")
    if not is_shared and is_tflite(path) and runtime.TAKES != TfliteModel.FORMAT:
        raise ConfigError(
            f"{path}: is a .tflite file, which {backend} does not run; `trtforge export {path} -o model.onnx` makes an "
            "ONNX file of it, or give --backend litert where that can be given"
        )
    smallest, largest = (int(record.get(name, 0)) for name in ("min_batch", "max_batch"))
    return Engine(path, backend, simulated=simulate, min_batch=smallest, max_batch=largest)


def specs_of(engine: Engine) -> tuple[InputSpec, ...]:
    """The inputs of an engine, from the engine itself."""
    if engine.is_onnx:
        return input_specs_from_onnx(engine.path)
    from pipeline.engine_runner import runner_of

    with runner_of(engine, 0) as runner:
        return sample_specs(InputSpec(spec.name, spec.dtype, spec.shape) for spec in runner.inputs)
