"""Check which backends work here, and how to install the others."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from pipeline.command.diagnosis import Diagnosis, diagnose
from pipeline.command.options import STORE
from pipeline.errors import Unavailable
from pipeline.plan import read_plan
from pipeline.spelling import echo, table_console

ROOT = Path("/")
"""Where `doctor` looks for /etc, /proc and /sys; a test points it at a made-up tree."""


@click.command()
@click.argument("plan", type=Path, required=False)
@click.option("--json", "as_json", is_flag=True, help="print the diagnosis as JSON")
@STORE
def doctor(plan: Path | None, as_json: bool, store: Path) -> None:
    """Report which backends can build and run here, with versions, and why the others cannot and how to install them;
    and of each extra of this package what is installed, or the line that installs it.

    On a Jetson also: L4T and JetPack, CUDA, TensorRT, power mode, clocks and memory, and known problems.
    Exit status 3 if a backend of PLAN.toml (on a Jetson without a plan: tensorrt) cannot work here.
    """
    diagnosis = diagnose(ROOT, read_plan(plan) if plan is not None else None, store)
    if as_json:
        echo(diagnosis.json())
    else:
        _print_diagnosis(diagnosis)
    if reasons := diagnosis.why_not():
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise Unavailable(f"{', '.join(diagnosis.needed)}: cannot work here: {reasons[0]}{more}")


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    console = table_console()
    table = Table("backend", "builds", "runs", "versions")
    missing: list[str] = []
    for state in diagnosis.backends:
        versions = ", ".join(f"{name} {version}" for name, version in state.versions.items())
        table.add_row(state.name, _yes(state.can_build), _yes(state.can_run), versions or "–")
        reasons = dict.fromkeys(reason for reason in (state.why_not_build, state.why_not_run) if reason)
        missing += [f"{state.name}: {reason.removeprefix(f'{state.name}: ')}" for reason in reasons]
    console.print(table)
    for line in [
        *missing,
        *diagnosis.facts(),
        *(extra.line() for extra in diagnosis.extras),
        *(finding.line() for finding in diagnosis.findings),
    ]:
        echo(line)


def _yes(can: bool) -> str:
    return "yes" if can else "no"
