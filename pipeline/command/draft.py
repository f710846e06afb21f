"""A plan that is drafted from a network and its data, for `init`, and for verbs that are given these instead of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.command.options import is_plan, needed, preprocess_from
from pipeline.errors import ConfigError
from pipeline.spelling import echo

if TYPE_CHECKING:
    from pipeline.drafting.draft import Draft

F = TypeVar("F", bound=Callable[..., Any])
CHOICES = ("data", "labels", "metric", "preprocess", "signature")
"""What ``draft_options`` gives."""


def draft_options(function: F) -> F:
    """The options that say what network and data do not."""
    for option in (
        click.option("--signature", default="serving_default", help="signature of a SavedModel"),
        click.option("--preprocess", default="", metavar="TOML", help="such as 'scale = 0.0039, layout = \"nchw\"'"),
        click.option("--metric", default="", help="accuracy metric; empty: one that fits the labels"),
        click.option("--labels", default="", help="labels: a key, 'folders', a file or a folder (docs/metrics.md)"),
        click.option("--data", default="", metavar="PATH", help="samples: folder, .npz, .npy, or module:function"),
    ):
        function = option(function)
    return function


def draft_for(source: str, choice: Mapping[str, str], store: Path, folder: Path) -> Draft:
    """Draft a plan in a folder; the network is exported into the store."""
    from pipeline.command.plan_run import open_store
    from pipeline.drafting.draft import UsersChoice, draft_plan
    from pipeline.sources.contract import source_from_path
    from pipeline.stages.export import Export

    data = needed(choice["data"], "--data", "name samples; this tool never makes up data")
    network = source_from_path(Path(source), choice["signature"])
    model = open_store(store).run(Export(), network)
    preprocess = preprocess_from(choice["preprocess"]) if choice["preprocess"] else None
    return draft_plan(network, model, data, UsersChoice(choice["labels"], choice["metric"], preprocess), folder)


def plan_text(path: Path, choice: Mapping[str, str], store: Path) -> tuple[Path, str | None]:
    """The path of a plan, and its text where it is drafted here, from a network and its data; it is then told.

    Raises:
        ConfigError: a plan was given beside the options of a draft, or something is to be answered first.
    """
    if is_plan(path):
        if beside := [f"--{name}" for name in CHOICES if choice[name] not in ("", "serving_default")]:
            raise ConfigError(f"{beside[0]}: has no effect together with a plan; write it into {path}")
        return path, None
    draft = draft_for(str(path), choice, store, Path())
    if draft.questions:
        asked = "; ".join(f"{where}: {text}" for where, text in draft.questions.items())
        raise ConfigError(
            f"{path}: network and data do not tell all that a plan needs: {asked}; give --preprocess, or write a plan "
            "with `trtforge init` and answer there"
        )
    echo(f"trtforge: the plan that is used; `trtforge init` writes it into a file\n{draft.text}", err=True)
    return Path(f"{_stem(path)}.toml"), draft.text


def _stem(source: Path) -> str:
    """What the report's folder is called after."""
    return source.stem.partition(":")[2] or source.stem
