"""Store an engine that passed its gate as a baseline."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from pipeline.command.options import (
    STORE,
)
from pipeline.errors import DataError
from pipeline.gate.baseline import (
    KEEP,
    Generation,
    baselines_in,
    generations,
    rollback,
    set_baseline,
    stored_baseline,
)
from pipeline.gate.generations import FOLDER, check_stored
from pipeline.signing.options import Sign
from pipeline.signing.statement import sign_file
from pipeline.spelling import echo, table_console


@click.group()
def baseline() -> None:
    """Store engines that passed their gate as baselines for later gates, list them, and go back to an earlier one.

    With `[gate] baseline = "last-good"`, or --baseline last-good, a gate measures its candidate along with that one.
    """


@baseline.command("set")
@click.argument("name")
@click.argument("folder", type=Path)
@click.option("--first", is_flag=True, help="also accept a gate that was undecided only because there was no baseline")
@click.option(
    "--keep", type=click.IntRange(min=0), default=KEEP, show_default=True, help="number of earlier generations to keep"
)
@STORE
def set_(name: str, folder: Path, first: bool, keep: int, store: Path) -> None:
    """Store the candidate of the passed gate in FOLDER as baseline NAME; the one before is kept for a rollback."""
    echo(set_baseline(name, folder, store, first=first, keep=keep).folder)


@baseline.command("rollback")
@click.argument("name")
@click.option(
    "--to", type=click.IntRange(min=1), default=None,
    help="number of the generation, from `trtforge baseline list`  [default: the one before the current one]",
)  # fmt: skip
@STORE
def rollback_(name: str, to: int | None, store: Path) -> None:
    """Make an earlier generation of baseline NAME the current one again; nothing is built.

    The engine that it replaces counts as withdrawn: a nightly job does not promote it again, `trtforge baseline set`
    does. Where TRTFORGE_SIGNING_KEY names a key, the engine is signed again, as the newest.
    """
    went_back = rollback(name, store, to or 0)
    folder = went_back.folder
    if (key := Sign().key()) is not None:  # So that it is the newest again, where engines are held to that.
        sign_file(went_back.engine.path, key)
    (current,) = (generation for generation in generations(name, store) if generation.is_current)
    echo(f"trtforge: {name} is generation {current.number} now, {current.record.engine.name}", err=True)
    echo(folder)


@baseline.command()
@click.argument("name")
@STORE
def show(name: str, store: Path) -> None:
    """Print the engine of baseline NAME, the machine it was measured on, and the budgets it was checked against."""
    check_stored(name, store)
    current = stored_baseline(name, store)
    assert current is not None
    record = current.record
    engine = record.engine
    for line in (
        f"{name}: {engine.name}, {engine.backend}, SHA-256 {engine.digest}",
        f"set {record.set_on}, gated {record.gated_on}",
        f"on {record.machine.describe()}",
        *(f"{check.outcome}: {check.sentence}" for check in record.checks),
        str(store / FOLDER / name / engine.path),
    ):
        echo(line)


@baseline.command("list")
@STORE
def list_(store: Path) -> None:
    """List all stored baselines with their generations, engines and dates; the current ones are checked."""
    table = Table("baseline", "generation", "engine", "set", "state", box=None, pad_edge=False)
    for name, baseline_or_error in baselines_in(store):
        damage = str(baseline_or_error) if isinstance(baseline_or_error, DataError) else ""
        listed = generations(name, store)
        if damage and not any(generation.is_current for generation in listed):
            table.add_row(Text(name), "–", "–", "–", Text(damage))
        for generation in listed:
            engine = generation.record.engine.name
            state = damage if generation.is_current and damage else _state(generation)
            table.add_row(
                Text(name), str(generation.number), Text(engine), _date(generation.record.set_on), Text(state)
            )
    if not table.rows:
        echo(f"trtforge: no baseline is stored in {store}; set one with `trtforge baseline set`", err=True)
        return
    table_console().print(table)


def _state(generation: Generation) -> str:
    if generation.is_current:
        return "current"
    return f"withdrawn {_date(generation.withdrawn_on)[:10]}" if generation.withdrawn_on else "earlier"


def _date(iso: str) -> str:
    """To the minute, UTC."""
    return iso[:16].replace("T", " ")
