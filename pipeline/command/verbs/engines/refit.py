"""New weights -> an engine of the same graph."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import click

from pipeline.artifact import Engine
from pipeline.command.options import STORE, engine_from, is_quiet, model_file_from, output_option, plugin_option
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import open_store
from pipeline.errors import ConfigError
from pipeline.output import check_file_target, checked_record, make
from pipeline.refitting.refit import NO_RECORD, Refit
from pipeline.store import RESULT, Store, checked_result

DIGEST = re.compile("[0-9a-f]{6,64}")


@click.command()
@click.argument("engine")
@click.argument("model", type=Path)
@plugin_option
@output_option("engine file to write; its record is written next to it  [default: a result in the store]")
@STORE
def refit(engine: str, model: Path, output: Path | None, store: Path) -> VerbOutcome:
    """Put the weights of MODEL (an ONNX file that carries its precision) into ENGINE, in seconds instead of a build.

    ENGINE is an engine of TensorRT with its record, the folder of a result, or the digest of one in the store, built
    with --weights refittable from a model of the same graph; it stays as it is. One that was built with --weights
    stripped is filled: MODEL is the file that it was built from. The new engine is validated and gated as one that was
    built.
    """
    named, new = engine_named(engine, store), model_file_from(model)
    if output is None:
        return Made(open_store(store, quiet=is_quiet()).run(Refit(), named, new))
    check_file_target(output)
    return Made(make(output, partial(Refit(), engine=named, model=new)))


def engine_named(text: str, store: Path) -> Engine:
    """The engine in a file, in the folder of a result, or in the store's result of that digest.

    Raises:
        ConfigError: there is none, it is damaged, or its record is another engine's or not there.
    """
    path = Path(text)
    if (path / RESULT).is_file():
        return _of_result(path)
    if path.with_name(RESULT).is_file() and (engine := _of_result(path.parent)).path == path:
        return engine
    if path.exists() or not DIGEST.fullmatch(text):
        name = str(checked_record(path).get("backend", ""))
        if path.is_file() and not name:
            raise ConfigError(f"{path}: {NO_RECORD}")
        return engine_from(path, name or "tensorrt", False)
    if not store.is_dir():
        raise ConfigError(f"{text}: there is neither such a file nor a store in {store}; name an engine, or a --store")
    return _of_result(Store(store).find(text))


def _of_result(folder: Path) -> Engine:
    result, problem = checked_result(folder)
    if problem:
        raise ConfigError(f"{folder}: is damaged, {problem}; build the engine again")
    if not isinstance(result, Engine):
        raise ConfigError(f"{folder}: holds no engine; name the result of a build")
    return result
