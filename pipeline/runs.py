"""The verbs over whole runs: `run`, `pack`, `report`, `show`, `doctor`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from pipeline.command.options import STORE, given_options, is_plan, needed, output_option
from pipeline.command.plan_run import raise_failures, run_plan
from pipeline.direct import check_file_target, make, work_folder
from pipeline.errors import ConfigError, Unavailable
from pipeline.store import Store

if TYPE_CHECKING:
    from pipeline.command.diagnosis import Diagnosis
    from pipeline.plan import Plan

ROOT = Path("/")
"""Where `doctor` looks for /etc, /proc and /sys; a test points it at a made-up tree."""

LENGTH_OF_DIGEST = 64
"""Hexadecimal digits of SHA-256; the names of measurements are shorter, and shown whole."""


@click.command()
@click.argument("plan", type=Path)
@click.option("--backend", "backends", multiple=True, help="instead of the plan's backends; repeatable")
@STORE
def run(plan: Path, backends: tuple[str, ...], store: Path) -> None:
    """Run PLAN.toml: every variant built, validated and timed, a table on stdout, and a report.

    What has not changed is served from the store. Exit status 5 if a variant is out of its tolerances; the report is
    written all the same.
    """
    from pipeline.report.table import print_table

    read, opened, made = run_plan(plan, store, "benchmark", partial(with_backends, backends=backends))
    record = read.report(read, made, opened.account)
    print_table(record, Console())
    folder = read.resolved(read.report.folder)
    click.echo(folder / ("report.html" if read.report.html else "report.json"))
    raise_failures({variant.name: verdict.read() for variant, verdict in made.verdicts.items()})


def with_backends(plan: Plan, backends: tuple[str, ...]) -> Plan:
    """The plan with the backends of the command line, where there are any.

    Raises:
        ConfigError: there is no such backend.
    """
    from pipeline.plan import BUILDERS, nearest

    for name in backends:
        if name not in BUILDERS:
            raise ConfigError(f"--backend '{name}': no such backend{nearest(name, BUILDERS)}")
    return replace(plan, variants=replace(plan.variants, backends=backends)) if backends else plan


@click.command()
@click.argument("plan", type=Path)
@output_option("the bundle to write, such as bundle.tar")
@STORE
def pack(plan: Path, output: Path | None, store: Path) -> None:
    """Pack PLAN.toml's models, ranges, evaluation samples and reference answers into one file, for a device.

    `scripts/build_on_jetson BUNDLE` builds, judges and times the engines there. Table [pack] has the options.
    """
    target: Path = needed(output, "-o", "name the bundle to write, such as bundle.tar")
    check_file_target(target)
    read, _, made = run_plan(plan, store, "pack", lambda given: given.pack.narrowed(given))
    click.echo(make(target, partial(read.pack, plan=read, made=made)).path)


@click.command()
@click.argument("source", type=Path)
@click.option("-o", "--output", type=Path, help="the HTML file to write; none: only the table")
@STORE
def report(source: Path, output: Path | None, store: Path) -> None:
    """Print the table of SOURCE (a report.json), and draw its page; with PLAN.toml, run the plan."""
    from pipeline.report.page import html_from_record
    from pipeline.report.table import print_table, report_from_json

    if is_plan(source):
        if "-o" in given_options():
            raise ConfigError(f"-o: has no effect beside a plan; write [report] folder into {source}")
        click.get_current_context().invoke(run, plan=source, backends=(), store=store)
        return
    record = report_from_json(source)
    print_table(record, Console())
    if output is not None:
        check_file_target(output)
        with work_folder(output) as work:
            page = work / "report.html"
            page.write_text(html_from_record(record, source.parent), encoding="utf-8")
            page.replace(output)
        click.echo(output)


@click.command()
@click.argument("digest")
@STORE
def show(digest: str, store: Path) -> None:
    """Print what the result DIGEST (the first characters are enough) was made from, back to the trained network."""
    if not store.is_dir():
        raise ConfigError(f"{store}: there is no store; run a plan first, or name its store with --store")
    opened = Store(store)
    _show(opened.find(digest), opened.makers(), 0, set())


def _show(entry: Path, makers: Mapping[str, Path], depth: int, shown: set[Path]) -> None:
    """One result, and below it, indented, what it was made from."""
    recipe = json.loads((entry / "recipe.json").read_text(encoding="utf-8"))
    indent = "  " * depth
    name = entry.name[:12] if len(entry.name) == LENGTH_OF_DIGEST else entry.name
    click.echo(f"{indent}{recipe['stage']} {name}" + (" (as above)" if entry in shown else f"  {entry}"))
    if entry in shown:
        return
    shown.add(entry)
    for what in ("options", "versions"):
        words = ", ".join(f"{key} {json.dumps(value)}" for key, value in recipe[what].items())
        if words:
            click.echo(f"{indent}  {what}: {words}")
    given = [*recipe["inputs"], *recipe["named_inputs"].values()]
    made, outside = _origins(given, makers)
    for value in outside:
        click.echo(f"{indent}  from outside: {json.dumps(value)}")
    for other in made:
        _show(other, makers, depth + 1, shown)


def _origins(given: object, makers: Mapping[str, Path]) -> tuple[list[Path], list[object]]:
    """The results that stand anywhere in a recipe's inputs, and all else."""
    if isinstance(given, dict) and given.get("digest") in makers:
        return [makers[given["digest"]]], []
    if isinstance(given, (list, dict)) and "digest" not in given:
        parts = list(given.values()) if isinstance(given, dict) else given
        found = [_origins(part, makers) for part in parts]
        if any(made for made, _ in found) or isinstance(given, list):
            return [path for made, _ in found for path in made], [value for _, rest in found for value in rest]
    return [], [given]


@click.command()
@click.argument("plan", type=Path, required=False)
@click.option("--json", "as_json", is_flag=True, help="print all that was found as JSON, for other programs")
@STORE
def doctor(plan: Path | None, as_json: bool, store: Path) -> None:
    """Say which backends can build and run here, with versions; why the others cannot, and what installs them.

    On a Jetson also: L4T and JetPack, CUDA, TensorRT, power mode, clocks and memory, and what is known to go wrong.
    Exit status 3 if PLAN.toml's backends (on a Jetson without a plan: tensorrt) cannot work here.
    """
    from pipeline.command.diagnosis import diagnose
    from pipeline.plan import read_plan

    found = diagnose(ROOT, read_plan(plan) if plan is not None else None, store)
    if as_json:
        click.echo(found.json())
    else:
        _print_diagnosis(found)
    if reasons := found.why_not():
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise Unavailable(f"{', '.join(found.needed)}: cannot work here: {reasons[0]}{more}")


def _print_diagnosis(found: Diagnosis) -> None:
    console = Console()
    table = Table("backend", "builds", "runs", "versions")
    missing: list[str] = []
    for state in found.backends:
        versions = ", ".join(f"{name} {version}" for name, version in state.versions.items())
        table.add_row(state.name, _yes(state.can_build), _yes(state.can_run), versions or "–")
        reasons = dict.fromkeys(reason for reason in (state.why_not_build, state.why_not_run) if reason)
        missing += [f"{state.name}: {reason.removeprefix(f'{state.name}: ')}" for reason in reasons]
    console.print(table)
    for line in [*missing, *found.facts(), *(finding.line() for finding in found.findings)]:
        click.echo(line)


def _yes(can: bool) -> str:
    return "yes" if can else "no"


__all__: list[Any] = ["doctor", "pack", "report", "run", "show"]
