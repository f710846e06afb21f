"""Show the size of stored results, remove unneeded ones, verify them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from engines.signing.trust import IN_STORE
from pipeline.command.options import STORE
from pipeline.command.plan_run import remember_digests
from pipeline.errors import CheckFailed, ConfigError
from pipeline.retention.gc import LEAST_DAYS, GcPlan, Rules, plan_gc, sweep
from pipeline.retention.inventory import DAMAGED, FileId, Inventory, StoredResult
from pipeline.retention.verify import verify as verify_all
from pipeline.spelling import echo, table_console

NAMES_APART = {"baselines": "baselines", "pins": "pins", "tmp": "at work", IN_STORE: IN_STORE, "": "not ours"}
GIB = 1 << 30
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@click.group()
def store() -> None:
    """See what the folder of results takes, remove what nothing needs any more, and verify the rest."""


@store.command()
@STORE
def size(store: Path) -> None:
    """Print the number, size and last use of results by stage, and what `trtforge store gc` would free.

    A file that has several names, as an engine that is also a baseline's, counts once, in the first line that has it.
    """
    _check_there(store)
    remember_digests()
    plan = plan_gc(store, Rules())
    table = Table("stage", "results", "size", "oldest use", "newest use", box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for row in _rows(plan.inventory):
        table.add_row(*row)
    table_console().print(table)
    echo(f"`trtforge store gc` would free {_bytes(plan.num_bytes_freed)}: {_number(plan.going)}")


@store.command()
@click.option(
    "--keep-days", type=click.FloatRange(min=0), default=Rules().keep_days, show_default=True,
    help="keep what was made or served within so many days, and at least within one",
)  # fmt: skip
@click.option(
    "--keep-last", type=click.IntRange(min=1), default=Rules().keep_last, show_default=True,
    help="newest generations of each baseline and pinned name that keep what they were made from",
)  # fmt: skip
@click.option(
    "--max-gib", type=click.FloatRange(min=0), default=Rules().max_gib, show_default=True,
    help="remove only so many, the oldest first, that the store is no larger; 0: all that nothing needs",
)  # fmt: skip
@click.option("--list", "listed", is_flag=True, help="print the folder of each result")
@click.option("--delete", is_flag=True, help="remove them; without it they are only counted")
@STORE
def gc(listed: bool, delete: bool, store: Path, **rules: Any) -> None:
    """Count the results that nothing needs any more, and with --delete remove them.

    Baselines with their generations and what jobs have pinned always stay, and so does what they were made from.
    """
    _check_there(store)
    remember_digests()
    plan = plan_gc(store, Rules(**rules))
    going = sweep(plan) if delete else plan.going
    if listed:
        for result in going:
            echo(result.folder)
    freed = plan.inventory.num_bytes_freed(going)
    echo(f"{'removed' if delete else 'would remove'} {_number(going)}, {_bytes(freed)}{_by_stage(going)}")
    if num := len(plan.trainings):
        trainings = "training that was" if num == 1 else "trainings that were"
        echo(f"{'removed' if delete else 'would remove'} {num} {trainings} interrupted and not taken up again")
    if num := len(plan.signatures):
        signatures = "signature of an engine that is" if num == 1 else "signatures of engines that are"
        echo(f"{'removed' if delete else 'would remove'} {num} {signatures} gone")
    echo(_staying(plan))
    left = plan.inventory.num_bytes() - plan.num_bytes_freed
    if 0 < plan.rules.max_gib * GIB < left:
        echo(f"trtforge: {_bytes(left)} stay, more than --max-gib; lower --keep-days or --keep-last", err=True)
    if (going or plan.trainings or plan.signatures) and not delete:
        options = [f"--{name.replace('_', '-')}={value:g}" for name, value in vars(plan.rules).items()]
        command = shlex.join(["trtforge", "store", "gc", *options, "--store", str(store), "--delete"])
        echo(f"trtforge: nothing was removed; to remove them: {command}", err=True)


@store.command()
@STORE
def verify(store: Path) -> None:
    """Read all results, baselines and pins again, and compare them with their checksums; exit status 5 for damage.

    A damaged result is moved to the folder `damaged` of the store and made again when it is needed; a damaged baseline
    stays where gates refuse it.
    """
    _check_there(store)
    verified = verify_all(store)
    for damage in verified.damages:
        where = f"; it is in {damage.aside} now" if damage.aside else ""
        echo(f"{damage.path}: {damage.problem}{where}")
    what = f"{verified.num_results} results and {verified.num_generations} generations of baselines"
    if verified.damages:
        raise CheckFailed(
            f"{store}: {len(verified.damages)} damaged, of {what}; damaged results are made again when they are "
            "needed, set damaged baselines again or roll them back"
        )
    echo(f"all of {what} are as they were published")


def _check_there(store: Path) -> None:
    if not store.is_dir():
        raise ConfigError(f"{store}: there is no store; run a plan first, or name its store with --store")


def _rows(inventory: Inventory) -> Iterator[tuple[str, ...]]:
    counted: set[FileId] = set()

    def new_bytes(files: Iterable[FileId]) -> str:
        new = set(files) - counted
        counted.update(new)
        return _bytes(inventory.num_bytes(new))

    by_stage: dict[str, list[StoredResult]] = {}
    for result in inventory.results:
        by_stage.setdefault(result.stage, []).append(result)
    if inventory.damaged:
        by_stage[DAMAGED] = inventory.damaged
    for stage, results in by_stage.items():
        used = sorted(result.used_s for result in results)
        taken = new_bytes(file for result in results for file in result.files)
        yield stage, str(len(results)), taken, _date(used[0]), _date(used[-1])
    for name, words in NAMES_APART.items():
        if files := inventory.apart.get(name):
            yield words, "", new_bytes(files), "", ""
    yield "total", str(len(inventory.results)), _bytes(inventory.num_bytes()), "", ""


def _by_stage(results: Iterable[StoredResult]) -> str:
    numbers: dict[str, int] = {}
    for result in results:
        numbers[result.stage] = numbers.get(result.stage, 0) + 1
    words = ", ".join(f"{stage} {number}" for stage, number in sorted(numbers.items()))
    return f" ({words})" if words else ""


def _staying(plan: GcPlan) -> str:
    parts = [
        f"{plan.num_used} used within {_days(max(plan.rules.keep_days, LEAST_DAYS))}",
        f"{plan.num_held} older that these, baselines or pins need",
    ]
    parts += [f"{plan.num_spared} older that fit within --max-gib"] if plan.num_spared else []
    return f"the rest stays: {', '.join(parts)}"


def _days(number: float) -> str:
    return "a day" if number == 1 else f"{number:g} days"


def _number(results: Iterable[StoredResult]) -> str:
    number = len(tuple(results))
    return f"{number:,} result{'' if number == 1 else 's'}"


def _bytes(number: float) -> str:
    unit = 0
    while number >= 1024 and unit < len(UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} {UNITS[unit]}" if unit == 0 or number >= 100 else f"{number:.1f} {UNITS[unit]}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")
