"""Store an engine that passed its gate as a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from pipeline.command.options import (
    STORE,
)
from pipeline.errors import ConfigError
from pipeline.gate.baseline import Baseline, baselines_in, read_baseline, set_baseline
from pipeline.spelling import echo, nearest, table_console


@click.group()
def baseline() -> None:
    """Store engines that passed their gate as baselines for later gates, and list them.

    With `[gate] baseline = "last-good"`, or --baseline last-good, a gate measures its candidate along with that one.
    """


@baseline.command("set")
@click.argument("name")
@click.argument("folder", type=Path)
@click.option("--first", is_flag=True, help="also accept a gate that was undecided only because there was no baseline")
@STORE
def set_(name: str, folder: Path, first: bool, store: Path) -> None:
    """Store the candidate of the passed gate in FOLDER as baseline NAME, replacing one of that name."""
    echo(set_baseline(name, folder, store, first=first).folder)


@baseline.command()
@click.argument("name")
@STORE
def show(name: str, store: Path) -> None:
    """Print the engine of baseline NAME, the machine it was measured on, and the budgets it was checked against."""
    stored_baseline = _kept(name, store)
    record = stored_baseline.record
    engine = record.engine
    for line in (
        f"{name}: {engine.name}, {engine.backend}, SHA-256 {engine.digest}",
        f"set {record.set_on}, gated {record.gated_on}",
        f"on {record.machine.describe()}",
        *(f"{check.outcome}: {check.sentence}" for check in record.checks),
        str(stored_baseline.engine.path),
    ):
        echo(line)


@baseline.command("list")
@STORE
def list_(store: Path) -> None:
    """List all stored baselines with their engines and dates."""
    table = Table("baseline", "engine", "set", "whole", box=None, pad_edge=False)
    for name, baseline_or_error in baselines_in(store):
        if isinstance(baseline_or_error, Baseline):
            table.add_row(
                Text(name), Text(baseline_or_error.record.engine.name), baseline_or_error.record.set_on, "yes"
            )
        else:
            table.add_row(Text(name), "–", "–", Text(str(baseline_or_error)))
    if not table.rows:
        echo(f"trtforge: no baseline is stored in {store}; set one with `trtforge baseline set`", err=True)
        return
    table_console().print(table)


def _kept(name: str, store: Path) -> Baseline:
    names: Sequence[str] = [stored_name for stored_name, _ in baselines_in(store)]
    if name not in names:
        close = nearest(name, list(names)) if names else "; set one with `trtforge baseline set`"
        raise ConfigError(f"baseline '{name}': is not stored in {store}{close}")
    return read_baseline(store / "baselines" / name)
