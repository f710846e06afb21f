"""Say which nodes of a model a backend takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from calibration.graph.validity import check_file
from engines import BACKENDS
from engines import backend as backend_named
from engines.litert.facts import is_tflite
from engines.support.answers import AskableBackend, InputShapes
from pipeline.artifact import ModelFile, OnnxModel
from pipeline.command.options import (
    STORE,
    PlanOptions,
    is_plan,
    output_option,
    plan_settings,
    plugin_option,
    tflite_from,
    what_is,
)
from pipeline.command.outcomes import VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.command.support_table import asked_of
from pipeline.errors import ConfigError, Unavailable
from pipeline.output import passing_folder, put
from pipeline.stages.support import Support, Whom


@click.command()
@click.argument("model", type=Path)
@click.option(
    "--backend",
    type=click.Choice(tuple(n for n in BACKENDS if isinstance(backend_named(n), AskableBackend))),
    help="runtime to ask; without it and --generation, the first of TensorRT's whose parser is here",
)
@stage_options(Support)
@plugin_option
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:1x32x32x3",
    help="shape of an input with dynamic dimensions, to count FLOPs at; without it each of them is 1; repeatable",
)
@click.option("--all", "all_nodes", is_flag=True, help="print every node, not only those that do not run")
@click.option("--json", "as_json", is_flag=True, help="print the answer as JSON")
@output_option("also write the answer to this JSON file")
@plan_settings
@STORE
def support(model: Path, backend: str | None, beside_plan: PlanOptions, **options: Any) -> VerbOutcome:
    """Say of each node of MODEL (ONNX, .tflite, or that of PLAN.toml) whether it runs, is folded, or does not run.

    An installed parser of TensorRT is asked, or with --generation 8.6 NVIDIA's list of the operators of that version.
    Then what would follow if the rest ran elsewhere: segments, crossings, share of the work. Exit status 4 if a node
    does not run.
    """
    if is_plan(model):
        return by_plan(model, options["store"], "support", beside_plan)
    stage = stage_from_options(Support(), options)
    if backend and stage.generation:
        raise ConfigError(f"--backend {backend}: has no effect beside --generation, whose list is asked; drop either")
    opened, output = _opened(model), options["output"]
    whom = Whom(backend or ("" if stage.generation else _first_parser()), stage.generation, _shapes(options["shapes"]))
    with passing_folder(output) as work:
        table = stage(work, opened, whom)
        if output is not None:
            shutil.copyfile(table.path, work / "copy")
            put(work / "copy", output, work)
        name = whom.backend or f"tensorrt {whom.generation}"
        return asked_of(model, {name: table}, as_json=options["as_json"], all_nodes=options["all_nodes"])


def _opened(path: Path) -> ModelFile:
    """A user's model, whatever the types of its inputs are.

    Raises:
        ConfigError: there is no such file.
        ModelError, EngineError: it is no valid model.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {what_is(path)}; give an ONNX or .tflite file")
    if path.suffix == ".tflite" or is_tflite(path):
        return tflite_from(path)
    check_file(path)
    return OnnxModel(path)


def _first_parser() -> str:
    """The first backend that refuses nodes of models and can be asked here.

    Raises:
        Unavailable: there is none.
    """
    reasons = []
    for name in BACKENDS:
        runtime = backend_named(name)
        if isinstance(runtime, AskableBackend) and runtime.REFUSES_NODES:
            if not (reason := runtime.why_not_ask()):
                return name
            reasons.append(reason)
    raise Unavailable(
        f"no parser of TensorRT can be asked here ({'; '.join(reasons)}); ask the list of a version with --generation "
        "8.6, say, or another runtime with --backend"
    )


def _shapes(texts: tuple[str, ...]) -> InputShapes:
    """``input:1x32x32x3`` to shapes by name; ConfigError."""
    shapes = {}
    for text in texts:
        name, _, shape = text.rpartition(":")
        try:
            shapes[name] = tuple(int(part) for part in shape.split("x"))
        except ValueError as error:
            raise ConfigError(f"--shape '{text}': is not NAME:1x32x32x3; write it so") from error
        if not name or min(shapes[name]) < 1:
            raise ConfigError(f"--shape '{text}': is not NAME:1x32x32x3 with positive sizes; write it so")
    return shapes
