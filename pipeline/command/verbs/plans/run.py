"""Run a plan: build, validate and benchmark every variant; report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from engines import builders
from pipeline.command.draft import draft_options, plan_text
from pipeline.command.on_devices import RUN, report_on, run_on
from pipeline.command.on_options import OnOptions, on_options
from pipeline.command.options import STORE, PlanOptions, plan_options
from pipeline.command.outcomes import VerbOutcome, failures_of, raise_failures
from pipeline.command.plan_run import open_plan, tell_time
from pipeline.command.reports import report_of_run
from pipeline.errors import ConfigError
from pipeline.plan import Plan
from pipeline.report.table import print_table
from pipeline.spelling import echo, nearest, table_console
from pipeline.store import Stopwatch


@click.command()
@click.argument("plan", type=Path)
@click.option("--backend", "backends", multiple=True, help="use this backend instead of those of the plan; repeatable")
@draft_options
@plan_options
@on_options
@STORE
def run(
    plan: Path, backends: tuple[str, ...], beside_plan: PlanOptions, on: OnOptions, store: Path, **choice: str
) -> VerbOutcome | None:
    """Run PLAN.toml: build, validate and benchmark every variant, print a table, and write a report.

    Instead of a plan, a network and --data may be given, as to `trtforge init`; the plan that is used is printed.

    Where INT8 is out of bounds, other ways to make it are tried, and what holds is said with its cost; see
    [report] num_remedies.

    Results that are up to date are taken from the store; benchmarks are always run again. Exit status 5 if a variant
    is out of tolerance; the report is written in that case too.

    With --on the plan is packed here, and run there as scripts/build_on_jetson runs a bundle: the report, the engines
    and their records come into the folder trtforge-on-USER@HOST beside the plan. The same command goes on where a
    connection broke.
    """
    stopwatch = Stopwatch()
    path, text = plan_text(plan, choice, store)
    drafted = replace(beside_plan, text=text)
    if on:
        return report_on(*run_on(path, store, on, drafted, replace(RUN, backends=backends)), tables=True)
    read, opened = open_plan(path, store, drafted, change=partial(with_backends, backends=backends))
    record, made = report_of_run(read, opened)
    print_table(record, table_console())
    folder = read.output_folder(read.report)
    echo(folder / ("report.html" if read.report.html else "report.json"))
    tell_time(opened.account, stopwatch.spent())
    raise_failures(failures_of({variant.name: verdict.read() for variant, verdict in made.verdicts.items()}))
    return None


def with_backends(plan: Plan, backends: tuple[str, ...]) -> Plan:
    """The plan with the backends of the command line, where there are any.

    Raises:
        ConfigError: there is no such backend.
    """
    for name in backends:
        if name not in builders():
            raise ConfigError(f"--backend '{name}': no such backend{nearest(name, builders())}")
    return replace(plan, variants=replace(plan.variants, backends=backends)) if backends else plan
