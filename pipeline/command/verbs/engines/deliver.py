"""Write a baseline for Triton, for DeepStream, or as a C++ program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from calibration.data.source import FUNCTION
from engines.plugin_library import libraries_named
from engines.signing.trust import check_file, trusted_keys
from pipeline.command.options import STORE, given_options, needed
from pipeline.delivery.contents import Delivered, delivered_from, delivering_to
from pipeline.delivery.cpp import EXAMPLE, cpp_program, deliver_to_cpp, is_changed
from pipeline.delivery.deepstream import NETWORK_TYPES, NetworkType, deliver_to_deepstream, picture_from
from pipeline.delivery.last_delivered import check_not_older, note_delivered
from pipeline.delivery.triton import deliver_to_triton, triton_model
from pipeline.errors import ConfigError
from pipeline.gate.baseline import stored_baseline
from pipeline.gate.generations import check_name, check_stored
from pipeline.plan import Plan, read_plan
from pipeline.spelling import echo
from pipeline.trained.pixels import preprocess_of

TARGETS = ("triton", "deepstream", "cpp")
ONLY_FOR = {
    "--as": ("triton",),
    "--max-batch": ("triton",),
    "--plan": ("deepstream", "cpp"),
    "--network-type": ("deepstream",),
}


class _Folder(click.Path):
    """Of a name; the empty text, as of a variable that is not set, would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the folder has no name", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--to",
    "target",
    type=(click.Choice(TARGETS), _Folder(path_type=Path)),
    required=True,
    metavar="triton|deepstream|cpp FOLDER",
    help="the server and its model repository or the folder of its configuration; cpp: the folder of a program",
)
@click.option("--as", "model", default="", help="triton: the model's name in the repository  [default: NAME]")
@click.option("--max-batch", default=0, help="triton: largest batch  [default: the engine's]")
@click.option("--plan", type=Path, help="deepstream, cpp: the plan, for its [data.preprocess]")
@click.option(
    "--network-type",
    type=click.Choice(list(NETWORK_TYPES)),
    default="other",
    show_default=True,
    help="deepstream: what the outputs are; other: they are handed on as tensors",
)
@STORE
def deliver(names: tuple[str, ...], target: tuple[str, Path], store: Path, **options: Any) -> None:
    """Write the engine of baseline NAME, with a configuration for a server that agrees with it, or a program for it.

    Triton: several NAMEs, of one network built on different GPUs, become one version from which each GPU takes its own.
    cpp: sources with CMake for TensorRT, TensorRT for RTX or ONNX Runtime.
    The engine is written first and the configuration last, each by one rename.
    """
    server, folder = target
    engines = [_engine(name, store) for name in names]
    for flag in given_options():
        if server not in ONLY_FOR.get(flag, TARGETS):
            raise ConfigError(f"{flag}: has no effect for {server}; drop it")
    if server == "triton":
        model = triton_model(options["model"] or names[0], engines, options["max_batch"])
        place = folder / model.name
        write: Callable[[], Path] = partial(deliver_to_triton, model, folder)
    else:
        place = folder
        write = _of_one(engines, target, options["plan"], options["network_type"])
    with delivering_to(place):
        for engine in engines:
            check_not_older(engine.name, engine.path, place, store)
        written = write()
        for engine in engines:
            note_delivered(engine.name, engine.path, place)
    echo(written)


def _compare_preprocess(engine: Delivered, plan: Plan) -> None:
    """Say where the plan does something else to samples than was done to those that the engine was judged on."""
    asked = preprocess_of(plan).describe()
    if engine.preprocess and engine.preprocess != asked:
        echo(
            f"trtforge: {plan.path}: its [data.preprocess] ({asked}) is not what the samples had that {engine.name} "
            f"was gated on ({engine.preprocess}); see that it is {engine.name}'s plan",
            err=True,
        )


def _of_one(
    engines: Sequence[Delivered], target: tuple[str, Path], file: Path | None, kind: NetworkType
) -> Callable[[], Path]:
    """What writes for that which has one engine, and does what the plan's [data.preprocess] says."""
    server, folder = target
    if len(engines) > 1:
        raise ConfigError(f"{server}: a configuration has one engine; give one NAME")
    who = "DeepStream" if server == "deepstream" else "the program"
    plan = read_plan(needed(file, "--plan", f"name the plan, whose [data.preprocess] {who} has to do"))
    _compare_preprocess(engines[0], plan)
    if server == "cpp":
        return _of_program(engines[0], plan, folder)
    return partial(deliver_to_deepstream, engines[0], picture_from(engines[0], preprocess_of(plan)), kind, folder)


def _of_program(engine: Delivered, plan: Plan, folder: Path) -> Callable[[], Path]:
    libraries = [*(plan.resolved(name) for name in plan.build.plugins), *libraries_named()]
    program = cpp_program(engine, preprocess_of(plan), libraries, trusted_keys())

    def write() -> Path:
        was_changed = is_changed(folder)
        written = deliver_to_cpp(program, folder)
        if was_changed:
            echo(f"trtforge: {folder / EXAMPLE}: was changed, and stays as it is", err=True)
        if FUNCTION.fullmatch(source := plan.data.evaluation.path):
            echo(f"trtforge: what {source} does to samples is not in the program, but [data.preprocess] is", err=True)
        return written

    return write


def _engine(name: str, store: Path) -> Delivered:
    check_name(name)
    check_stored(name, store)
    baseline = stored_baseline(name, store)
    assert baseline is not None
    check_file(baseline.engine.path)
    delivered = delivered_from(name, baseline.engine.path, baseline.engine.backend)
    return replace(delivered, preprocess=baseline.record.preprocess)
