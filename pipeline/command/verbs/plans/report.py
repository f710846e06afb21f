"""Print a report.json as a table, or write its HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command.on_options import OnOptions
from pipeline.command.options import STORE, given_options, is_plan
from pipeline.command.verbs.plans.run import run
from pipeline.errors import ConfigError
from pipeline.output import check_file_target
from pipeline.page.whole_text import put_text
from pipeline.spelling import echo, table_console


@click.command()
@click.argument("source", type=Path)
@click.option("-o", "--output", type=Path, help="HTML file to write; without it only the table is printed")
@STORE
def report(source: Path, output: Path | None, store: Path) -> None:
    """Print SOURCE (a report.json, or its folder) as a table, and with -o write its HTML page; run PLAN.toml."""
    from pipeline.report.page import html_from_record
    from pipeline.report.table import print_table, report_from_json

    if is_plan(source):
        if "-o" in given_options():
            raise ConfigError(f"-o: has no effect together with a plan; write [report] folder into {source}")
        click.get_current_context().invoke(run, plan=source, backends=(), on=OnOptions(), store=store)
        return
    source = source / "report.json" if source.is_dir() else source
    record = report_from_json(source)
    print_table(record, table_console())
    if output is not None:
        check_file_target(output)
        put_text(html_from_record(record, source.parent), output)
        echo(output)
