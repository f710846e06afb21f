"""Rebuild what changed of many plans, and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.command.cli import status_of
from pipeline.command.options import STORE
from pipeline.command.plan_run import remember_digests
from pipeline.nightly.fleet import read_fleet
from pipeline.nightly.job import night_of, to_do
from pipeline.nightly.line import Wanted
from pipeline.nightly.record import RECORD, LineRecord, NightRecord
from pipeline.nightly.report import PAGE, check_report, write_report
from pipeline.nightly.summary import print_night
from pipeline.spelling import echo, table_console


@click.command()
@click.argument("fleet", type=Path)
@click.option("--only", multiple=True, metavar="PATTERN", help="models, devices or MODEL.DEVICE alone; repeatable")
@click.option("--dry-run", is_flag=True, help="print what would be made, and why; make nothing")
@click.option("--always", is_flag=True, help="judge also what did not change")
@click.option(
    "--accept-machine", is_flag=True, help="after an upgrade of this machine: take what passes as the first last good"
)
@STORE
def nightly(fleet: Path, dry_run: bool, store: Path, **options: Any) -> None:
    """Tend all plans of FLEET.toml: make what is stale, validate it, gate it beside the last good engine, promote it.

    What passes its gate becomes the last good engine of its model and device, and is delivered where the fleet file
    says. A plan that fails stops no other. Killed at any moment, the next call goes on. The report is written to
    index.html, nightly.json, nightly.xml (JUnit), nightly.md and history.csv. The exit status is that of the worst.
    """
    remember_digests()
    fleet_file = read_fleet(fleet)
    wanted = Wanted(**options)
    if dry_run:
        looks = to_do(fleet_file, store, wanted)
        for looked in looks:
            echo(f"{looked.line.name}: {looked.error or '; '.join(looked.why)}")
        if not looks:
            echo("trtforge: nothing would be made", err=True)
        return
    check_report(fleet_file)
    night = night_of(fleet_file, store, wanted, status_of, _say)
    write_report(night, fleet_file.report_folder, html=fleet_file.nightly.html)
    print_night(night, table_console())
    echo(fleet_file.report_folder / (PAGE if fleet_file.nightly.html else RECORD))
    _exit(night)


def _say(record: LineRecord) -> None:
    if record.state in ("made", "failed"):
        echo(
            f"trtforge: {record.name}: {record.state} in {record.seconds:.1f} s, exit status {record.status}", err=True
        )


def _exit(night: NightRecord) -> None:
    if night.exit_status:
        raise click.exceptions.Exit(night.exit_status)
