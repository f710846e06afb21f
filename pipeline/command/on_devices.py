"""--on: a verb on a plan is done on other machines by ssh, and what it made there is brought here."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engines import backend, builders
from engines.support.answers import AskableBackend
from pipeline.artifact import Artifact
from pipeline.command.on_options import OnOptions
from pipeline.command.options import PlanOptions
from pipeline.command.outcomes import MadeOfPlan, VerbOutcome, print_lines
from pipeline.command.plan_run import run_plan
from pipeline.errors import ConfigError
from pipeline.page.template import check_drawable
from pipeline.page.whole_text import put_text
from pipeline.plan import Plan, plan_from_text, text_of_file
from pipeline.release.bundle_writer import code_allowed, narrowed, write_bundle
from pipeline.remote.archive import archive_from_tar, write_program
from pipeline.remote.device_files import GATE_FOLDER, REPORT_FOLDER
from pipeline.remote.job import Cargo, Terms, check_folder, on_devices
from pipeline.remote.outcome import DeviceOutcome, worst_status
from pipeline.remote.ssh import destinations_from
from pipeline.spelling import echo, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.record import Record

FOLDER = "trtforge-on"
THERE = "../../../store"
"""The store of a device, from the folder of an unpacked bundle."""


@dataclass(frozen=True)
class RemoteVerb:
    """What runs there: a verb of `trtforge` on the bundle's plan, for one backend."""

    words: tuple[str, ...]
    """The verb's arguments beside the plan, the store, and functions that may run."""
    writes: str
    """The folder that it writes there."""
    backends: tuple[str, ...] = ()
    """One that takes the place of [pack] backends; none: those."""


RUN = RemoteVerb(("run",), REPORT_FOLDER)


def run_on(
    path: Path, store: Path, on: OnOptions, beside_plan: PlanOptions, verb: RemoteVerb
) -> tuple[Plan, list[DeviceOutcome]]:
    """Pack a plan here, do the verb there, and bring what it made into a folder for each machine, beside the plan.

    Args:
        path: the plan.
        store: this machine's.
        on: where.
        beside_plan: what the command line adds to the plan.
        verb: what is done there.

    Raises:
        ConfigError, DataError, Unavailable, StageError, CheckFailed: nothing could be packed.
    """
    destinations = destinations_from(on.addresses)
    text = text_of_file(path, "a plan") if beside_plan.text is None else beside_plan.text
    plan = plan_from_text(text, path, beside_plan.settings)
    name = backend_of(plan, verb.backends)
    if plan.packed.manifest:
        raise ConfigError(f"{path}: is the plan of a bundle; give --on the plan that the bundle was packed from")
    table, wants_page = (plan.gate, plan.gate.html) if verb.writes == GATE_FOLDER else (plan.report, plan.report.html)
    if wants_page:
        check_drawable(f"{'gate' if table is plan.gate else 'report'}.html (or write html = false)")
    folders = {where: folder_of(plan, where.name) for where in destinations}
    for folder in folders.values():
        check_folder(folder)
    ask = len(destinations) == 1 and sys.stdin is not None and sys.stdin.isatty()
    runtime = backend(name)
    expected = plan.support.generation if isinstance(runtime, AskableBackend) and runtime.HAS_LISTS else ""
    terms = Terms(on.python, expected, on.clean, ask)
    arguments = arguments_of(plan, verb, name)

    @contextlib.contextmanager
    def prepared() -> Iterator[Cargo]:
        with tempfile.TemporaryDirectory(prefix="trtforge-") as work:
            read, _, made = run_plan(path, store, "pack", partial(narrowed_to, name=name), beside_plan)
            bundle = write_bundle(Path(work), read, made).path
            write_program(Path(work) / "program.tar")
            program = archive_from_tar(Path(work) / "program.tar")
            yield Cargo(program, archive_from_tar(bundle), arguments, verb.writes)

    return plan, on_devices(folders, terms, prepared, lambda line: echo(line, err=True))


def narrowed_to(plan: Plan, name: str) -> Plan:
    """The plan as it is packed, for one backend."""
    return narrowed(replace(plan, pack=replace(plan.pack, backends=(name,))))


def backend_of(plan: Plan, backends: Sequence[str]) -> str:
    """The one backend that is built for.

    Raises:
        ConfigError: there are several, or none of that name.
    """
    names = tuple(backends) or plan.pack.backends
    for name in names:
        if name not in builders():
            raise ConfigError(f"--backend '{name}': no such backend{nearest(name, builders())}")
    if len(set(names)) > 1:
        raise ConfigError(
            f"--on: builds for one backend, and {', '.join(names)} are named ([pack] backends); name it with --backend"
        )
    return names[0]


def arguments_of(plan: Plan, verb: RemoteVerb, name: str) -> tuple[str, ...]:
    """Those of scripts/build_on_jetson: the user's own metric and plugins may run where the user has them run."""
    words = (verb.words[0], "plan.toml", *verb.words[1:], "--store", THERE, *code_allowed(plan))
    return ("--backend", name, "--", *words)


def folder_of(plan: Plan, name: str) -> Path:
    """Where what a device made is brought: beside the plan, one for each device and plan."""
    stem = "" if plan.path.stem == "plan" else f"-{plan.path.stem}"
    return plan.resolved(f"{FOLDER}-{name}{stem}")


@dataclass(frozen=True, repr=False)
class DeviceReport(VerbOutcome):
    """The report of a run on a device."""

    record: Record
    path: Path
    """Of report.html, or report.json."""

    def print_to(self, console: Console) -> None:
        """The table, and the path."""
        from pipeline.report.table import print_table

        print_table(self.record, console)
        print_lines([self.path], console)


@dataclass(frozen=True, repr=False)
class DoneOnDevices(VerbOutcome):
    """What a verb came to on each of several machines."""

    outcomes: tuple[DeviceOutcome, ...]
    parts: tuple[tuple[DeviceOutcome, VerbOutcome], ...]
    """What is printed of those that brought something."""

    def print_to(self, console: Console) -> None:
        """Each, with its address above it where there are several and it is a table."""
        for outcome, part in self.parts:
            if len(self.outcomes) > 1 and not isinstance(part, MadeOfPlan):
                print_lines([f"{outcome.destination.address}:"], console)
            part.print_to(console)

    def remarks(self) -> Iterator[str]:
        """Why devices came to nothing."""
        return (outcome.sentence for outcome in self.outcomes if outcome.sentence)

    def check(self) -> None:
        """End with the exit status of the worst: each has said why."""
        if status := worst_status(outcome.status for outcome in self.outcomes):
            raise click.exceptions.Exit(status)


def report_on(plan: Plan, outcomes: Sequence[DeviceOutcome], *, tables: bool) -> DoneOnDevices:
    """What the devices made, and their pages, which are written."""
    from pipeline.report.page import html_from_record
    from pipeline.report.table import report_from_json

    parts: list[tuple[DeviceOutcome, VerbOutcome]] = []
    for outcome in outcomes:
        if not outcome.is_fetched:
            continue
        folder = outcome.folder / "report"
        record = report_from_json(folder / "report.json")
        if plan.report.html:
            put_text(html_from_record(record, folder), folder / "report.html")
        page = folder / ("report.html" if plan.report.html else "report.json")
        engines = MadeOfPlan({name: Artifact(path) for name, path in outcome.engines.items()})
        parts.append((outcome, DeviceReport(record, page) if tables else engines))
    return DoneOnDevices(tuple(outcomes), tuple(parts))
