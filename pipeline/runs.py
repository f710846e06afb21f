"""The verbs over whole runs: `run`, `report`, `show`, `doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from pipeline.commands import STORE, raise_failures, run_plan
from pipeline.errors import ConfigError
from pipeline.store import Store


@click.command(short_help="Run a whole plan.")
@click.argument("plan", type=Path)
@STORE
def run(plan: Path, store: Path) -> None:
    """Run PLAN.toml: every variant built, validated and timed, a table on stdout, and a report.

    What has not changed is served from the store. Exit status 5 if a variant is out of its tolerances; the report is
    written all the same.
    """
    from pipeline.reporting import print_table

    read, opened, made = run_plan(plan, store, "benchmark")
    record = read.report(read, made, opened.account)
    print_table(record, Console())
    folder = read.resolved(read.report.folder)
    click.echo(folder / ("report.html" if read.report.html else "report.json"))
    raise_failures({variant.name: verdict.read() for variant, verdict in made.verdicts.items()})


@click.command(short_help="Print and draw a run's report again.")
@click.argument("source", type=Path)
@click.option("-o", "--output", type=Path, help="the HTML file to write; none: only the table")
@STORE
def report(source: Path, output: Path | None, store: Path) -> None:
    """Print the table of SOURCE (a report.json), and draw its page; with PLAN.toml, run the plan."""
    from pipeline.reporting import print_table, report_from_json, write_html

    if source.suffix == ".toml":
        click.get_current_context().invoke(run, plan=source, store=store)
        return
    record = report_from_json(source)
    print_table(record, Console())
    if output is not None:
        write_html(record, output)
        click.echo(output)


@click.command(short_help="Walk a result's recipes back to the trained network.")
@click.argument("digest")
@STORE
def show(digest: str, store: Path) -> None:
    """Print what the result DIGEST (the first characters are enough) was made from, back to the trained network."""
    if not store.is_dir():
        raise ConfigError(f"{store}: there is no store; run a plan first, or name its store with --store")
    opened = Store(store)
    makers = opened.makers()
    todo: list[tuple[Path, int]] = [(opened.find(digest), 0)]
    while todo:
        entry, depth = todo.pop()
        recipe = json.loads((entry / "recipe.json").read_text())
        indent = "    " * depth
        click.echo(f"{indent}{recipe['stage']} {entry.name[:12]}  {entry}")
        for what in ("options", "versions"):
            words = ", ".join(f"{key} {json.dumps(value)}" for key, value in recipe[what].items())
            if words:
                click.echo(f"{indent}  {what}: {words}")
        for given in recipe["inputs"]:
            content = given.get("digest") if isinstance(given, dict) else None
            if content in makers:
                todo.append((makers[content], depth + 1))
            else:
                click.echo(f"{indent}  from outside: {json.dumps(given)}")


@click.command(short_help="Which backends work here, and why the others do not.")
def doctor() -> None:
    """Say which backends can build and run here, with versions; why the others cannot, and what installs them."""
    from engines.survey import survey

    console = Console()
    table = Table("backend", "builds", "runs", "versions")
    missing: list[str] = []
    for state in survey():
        versions = ", ".join(f"{name} {version}" for name, version in state.versions.items())
        table.add_row(state.name, _yes(state.can_build), _yes(state.can_run), versions or "–")
        reasons = dict.fromkeys(reason for reason in (state.why_not_build, state.why_not_run) if reason)
        missing += [f"{state.name}: {reason}" for reason in reasons]
    console.print(table)
    for line in missing:
        click.echo(line)


def _yes(can: bool) -> str:
    return "yes" if can else "no"


__all__: list[Any] = ["doctor", "report", "run", "show"]
