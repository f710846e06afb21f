"""Try techniques on the network until one holds all bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from pipeline.command.draft import draft_options, plan_text
from pipeline.command.options import STORE, PlanOptions, plan_options
from pipeline.command.plan_run import open_plan, tell_time
from pipeline.command.reports import report_of_advice
from pipeline.errors import CheckFailed, NotDecided
from pipeline.report.table import print_table
from pipeline.spelling import echo, table_console
from pipeline.store import Stopwatch


@click.command()
@click.argument("plan", type=Path)
@draft_options
@click.option("--all", "everything", is_flag=True, help="go on to the end, also where a technique holds all bounds")
@plan_options
@STORE
def advise(plan: Path, everything: bool, beside_plan: PlanOptions, store: Path, **choice: str) -> None:
    """Try the techniques on the network of PLAN.toml, one after another, until one holds the bounds of [advise].

    Instead of a plan, a network and --data may be given, as to `trtforge init`.

    First post-training quantization: float16, dynamic range, integer, on every backend of the plan. Then what mends
    a loss at no cost: other ranges, equalization, rounding by data, mixed precision. Then quantization-aware
    training, where accuracy is still missed; and pruning before quantizing, where only the compressed size is.

    A table, report.json and report.html say of each what data it needs, its size, accuracy and latency with
    intervals, what it took to make, and where it does better or worse than is said of it in general. Exit status 0 if
    one holds all bounds, 5 if none does, 6 if that cannot be decided.
    """
    stopwatch = Stopwatch()
    path, text = plan_text(plan, choice, store)
    read, opened = open_plan(path, store, replace(beside_plan, text=text))
    record = report_of_advice(read, opened, everything=everything)
    folder = read.output_folder(read.advise)
    print_table(record, table_console())
    echo(folder / ("report.html" if read.report.html else "report.json"))
    tell_time(opened.account, stopwatch.spent())
    assert record.advice is not None, "write_advice wrote it"
    if record.advice.outcome == "fail":
        raise CheckFailed("no technique that was tried holds all bounds")
    if record.advice.outcome == "not decided":
        raise NotDecided("no technique surely holds all bounds")
