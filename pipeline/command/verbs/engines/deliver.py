"""Write a baseline for Triton or DeepStream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.signing.trust import check_file
from pipeline.command.options import STORE, given_options, needed
from pipeline.delivery.contents import Delivered, delivered_from
from pipeline.delivery.deepstream import NETWORK_TYPES, deliver_to_deepstream, picture_from
from pipeline.delivery.triton import deliver_to_triton, triton_model
from pipeline.errors import ConfigError
from pipeline.gate.baseline import stored_baseline
from pipeline.gate.generations import check_name, check_stored
from pipeline.plan import read_plan
from pipeline.spelling import echo
from pipeline.trained.pixels import preprocess_of

ONLY_FOR = {"--as": "triton", "--max-batch": "triton", "--plan": "deepstream", "--network-type": "deepstream"}


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--to",
    "target",
    type=(click.Choice(["triton", "deepstream"]), click.Path(path_type=Path)),
    required=True,
    metavar="triton|deepstream FOLDER",
    help="the server, and its model repository or the folder of its configuration",
)
@click.option("--as", "model", default="", help="triton: the model's name in the repository  [default: NAME]")
@click.option("--max-batch", default=0, help="triton: largest batch  [default: the engine's]")
@click.option("--plan", type=Path, help="deepstream: the plan, for its [data.preprocess]")
@click.option(
    "--network-type",
    type=click.Choice(list(NETWORK_TYPES)),
    default="other",
    show_default=True,
    help="deepstream: what the outputs are; other: they are handed on as tensors",
)
@STORE
def deliver(names: tuple[str, ...], target: tuple[str, Path], store: Path, **options: Any) -> None:
    """Write the engine of baseline NAME, and a configuration that agrees with it, for a server.

    Triton: several NAMEs, of one network built on different GPUs, become one version from which each GPU takes its own.
    The engine is written first and the configuration last, each by one rename.
    """
    server, folder = target
    engines = [_engine(name, store) for name in names]
    for flag in given_options():
        if flag in ONLY_FOR and ONLY_FOR[flag] != server:
            raise ConfigError(f"{flag}: has no effect for {server}; drop it")
    if server == "triton":
        echo(deliver_to_triton(triton_model(options["model"] or names[0], engines, options["max_batch"]), folder))
        return
    if len(engines) > 1:
        raise ConfigError("deepstream: a configuration has one engine; give one NAME")
    plan = needed(options["plan"], "--plan", "name the plan, whose [data.preprocess] DeepStream has to do")
    picture = picture_from(engines[0], preprocess_of(read_plan(plan)))
    echo(deliver_to_deepstream(engines[0], picture, options["network_type"], folder))


def _engine(name: str, store: Path) -> Delivered:
    check_name(name)
    check_stored(name, store)
    baseline = stored_baseline(name, store)
    assert baseline is not None
    check_file(baseline.engine.path)
    return delivered_from(name, baseline.engine.path, baseline.engine.backend)
