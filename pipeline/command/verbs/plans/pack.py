"""A plan's models, samples and answers in one file, for a device."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from pipeline.command.options import STORE, needed, output_option
from pipeline.command.plan_run import run_plan
from pipeline.output import check_file_target, make
from pipeline.release.bundle_writer import narrowed, write_bundle


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
    read, _, made = run_plan(plan, store, "pack", narrowed)
    click.echo(make(target, partial(write_bundle, plan=read, made=made)).path)
