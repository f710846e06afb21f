"""Bundle a plan's models, samples and reference outputs in one file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from pipeline.command.options import STORE, needed, output_option
from pipeline.command.plan_run import run_plan
from pipeline.output import check_file_target, make
from pipeline.release.bundle_writer import narrowed, write_bundle
from pipeline.spelling import echo


@click.command()
@click.argument("plan", type=Path)
@output_option("bundle to write, such as bundle.tar")
@STORE
def pack(plan: Path, output: Path | None, store: Path) -> None:
    """Pack the models, ranges, evaluation samples and reference outputs of PLAN.toml into one file for a device.

    On the device, `scripts/build_on_jetson BUNDLE` builds, validates and benchmarks the engines. The options are in
    table [pack] of the plan.
    """
    target: Path = needed(output, "-o", "name the bundle to write, such as bundle.tar")
    check_file_target(target)
    read, _, made = run_plan(plan, store, "pack", narrowed)
    echo(make(target, partial(write_bundle, plan=read, made=made)).path)
