"""Write a first plan for a network and its data."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command.draft import draft_for, draft_options
from pipeline.command.options import STORE
from pipeline.errors import ConfigError
from pipeline.page.whole_text import put_text
from pipeline.spelling import echo


@click.command()
@click.argument("source")
@draft_options
@click.option("-o", "--output", type=Path, default=Path("plan.toml"), show_default=True, help="plan to write")
@STORE
def init(source: str, output: Path, store: Path, **choice: str) -> None:
    """Read the network SOURCE and its data, and write a commented plan for `trtforge run` and `trtforge advise`.

    The network tells its inputs, the data its kind, its sets and whether labels fit; with class labels the network
    also tells in which scale it takes pixels. What neither tells stands in the plan as a question, with "?" where it
    has to be answered.

    SOURCE is what `trtforge export` takes. The exported network is kept in the store.
    """
    if output.exists():
        raise ConfigError(f"-o {output}: exists already; name another file, or remove it")
    if output.suffix != ".toml":
        raise ConfigError(f"-o {output}: a plan is a .toml file; name it so")
    draft = draft_for(source, choice, store, output.parent)
    put_text(draft.text, output)
    for where, question in draft.questions.items():
        echo(f'trtforge: {where} is to be answered, where "?" stands: {question}', err=True)
    echo(output)
