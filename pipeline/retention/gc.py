"""Which results may go, and removing them: never what a baseline, a pin or a run of these days needs.

What stays, whatever its age: results of which a baseline's engine is one, results that are pinned, results that were
used in these days, and all that any of these was made from. The rest is removed oldest first: a folder is renamed into
``tmp/``, so that it is there as a whole or not at all, and then removed; what a kill leaves there the next call of any
verb with that store removes.

A run that is served a result notes the use (``Store``), under a lock that whoever removes takes too. So a result that
a run at work was served within the last day is never removed; what went before is made again.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.gate.baseline import Baseline, generations
from pipeline.gate.generations import names_in
from pipeline.output import TRAINING, alone, remove_ending_with, remove_unlocked
from pipeline.retention.inventory import TMP, Inventory, StoredResult, inventory_of
from pipeline.retention.pins import pinned
from pipeline.retention.signatures import needless_signatures
from pipeline.store import RECIPE, RESULT, Store

DAY_SECONDS = 86_400
LEAST_DAYS = 1
"""What was used in the last day stays whatever is asked for: a run at work may need it."""
DIGEST = re.compile(rb'"digest": "([0-9a-f]{64})"')
"""In a recipe: the content of something that went in."""
NUM_RANDOM_BYTES = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """What stays beside what is needed."""

    keep_days: float = 14.0
    """What was made or served within so many days."""
    keep_last: int = 3
    """Of each baseline and each pinned name: so many of the newest generations keep what they were made from."""
    max_gib: float = 0.0
    """Nothing goes while the store is no larger; 0: all goes that may."""


@dataclass(frozen=True)
class GcPlan:
    """What may go, and why the rest stays."""

    inventory: Inventory
    rules: Rules
    going: tuple[StoredResult, ...]
    """The oldest first."""
    num_bytes_freed: int
    num_used: int
    """Results that stay since they were used in these days."""
    num_held: int
    """Older ones that stay since a baseline or a pin needs them, or one that was used in these days."""
    num_spared: int
    """Older ones that nothing needs and that stay since the store is small enough."""
    trainings: tuple[Path, ...]
    """Folders of trainings that were interrupted, and not taken up again in these days."""
    signatures: tuple[Path, ...]
    """Of engines that are gone, or go with this."""


def plan_gc(store: Path, rules: Rules) -> GcPlan:
    """What may go; nothing is removed.

    Raises:
        ConfigError: a rule cannot be one.
        DataError: a pin or what a baseline remembers is damaged, so that nobody knows what they hold.
    """
    if rules.keep_days < 0 or rules.keep_last < 1 or rules.max_gib < 0:
        raise ConfigError("store gc: keep at least 0 days, the last 1 and 0 GiB")
    inventory = inventory_of(store)
    used_after = time.time() - max(rules.keep_days, LEAST_DAYS) * DAY_SECONDS
    older = {result.folder: result for result in inventory.results if result.used_s <= used_after}
    num_used = len(inventory.results) - len(older)
    held = _held(inventory, older, rules.keep_last) if older else set()
    free = [result for folder, result in older.items() if folder not in held]
    free += [result for result in inventory.damaged if result.used_s <= used_after]
    free.sort(key=lambda result: result.used_s)
    going = _until_it_fits(free, inventory, rules.max_gib)
    freed = inventory.num_bytes_freed(going)
    trainings = tuple(_trainings_before(store / TMP, used_after))
    signatures = _needless_signatures(inventory, going)
    num_spared = len(free) - len(going)
    return GcPlan(inventory, rules, tuple(going), freed, num_used, len(held), num_spared, trainings, signatures)


def sweep(plan: GcPlan) -> tuple[StoredResult, ...]:
    """Remove what the plan says, but for what was used since; returns what was removed.

    Raises:
        ConfigError: the store cannot be written.
        OSError: a folder cannot be renamed, as one of another user.
    """
    store = plan.inventory.folder
    Store(store)  # Removes what was left by a process that died.
    removed = []
    for result in plan.going:
        aside = store / TMP / secrets.token_hex(NUM_RANDOM_BYTES)
        with contextlib.suppress(FileNotFoundError):  # Another process was faster.
            with alone(store, store):
                if (result.folder / RESULT).stat().st_mtime > result.used_s:
                    continue
                result.folder.rename(aside)
            removed.append(result)
            remove_ending_with(aside, RESULT)
    for folder in plan.trainings:
        remove_unlocked(folder)
    for file in _needless_signatures(plan.inventory, removed):
        file.unlink(missing_ok=True)
    return tuple(removed)


def _needless_signatures(inventory: Inventory, going: Sequence[StoredResult]) -> tuple[Path, ...]:
    """What is left of engines once those results are gone; but for what was signed within a day, by a run at work."""
    gone = {result.folder for result in going}
    staying = [result for result in inventory.results if result.folder not in gone]
    return tuple(needless_signatures(inventory.folder, staying, time.time() - LEAST_DAYS * DAY_SECONDS))


def _trainings_before(folder: Path, used_after: float) -> Iterator[Path]:
    """Interrupted trainings whose last epoch was kept before that time."""
    for training in folder.glob(f"{TRAINING}*"):
        with contextlib.suppress(FileNotFoundError):  # It was taken up again and is done.
            if training.stat().st_mtime <= used_after:
                yield training


def _held(inventory: Inventory, older: Mapping[Path, StoredResult], keep_last: int) -> set[Path]:
    """The folders of those older ones that must stay, for themselves or since another was made from them."""
    store = inventory.folder
    makers: dict[str, list[StoredResult]] = {}
    by_name = {result.name: result for result in older.values()}
    for result in older.values():
        if content := result.content():
            makers.setdefault(content, []).append(result)
    needed = [by_name[name] for name in pinned(store, keep_last) if name in by_name]
    needed += [maker for content in _engines_of_baselines(store, keep_last) for maker in makers.get(content, ())]
    held = {result.folder for result in needed}
    waiting = [*needed, *(result for result in inventory.results if result.folder not in older)]
    while waiting:
        for maker in _forebears(waiting.pop(), makers):
            if maker.folder not in held:
                held.add(maker.folder)
                waiting.append(maker)
    return held


def _forebears(result: StoredResult, makers: Mapping[str, Sequence[StoredResult]]) -> Iterator[StoredResult]:
    """The results that have the content of what went into it."""
    try:
        with open(f"{result.folder}/{RECIPE}", "rb") as stream:  # noqa: PTH123  # A path takes longer than the file.
            recipe = stream.read()
    except OSError:
        return
    for digest in DIGEST.findall(recipe):
        yield from makers.get(digest.decode(), ())


def _engines_of_baselines(store: Path, keep_last: int) -> Iterator[str]:
    """The content digests of the engines of the newest generations, and of the current ones."""
    for name in names_in(store):
        listed = generations(name, store)
        for generation in {*listed[-keep_last:], *(g for g in listed if g.is_current)}:
            try:
                yield Baseline(generation.folder, generation.record).engine.digest()
            except OSError as error:
                log.warning("baseline '%s': its engine cannot be read (%s); what it was made from may go", name, error)


def _until_it_fits(free: list[StoredResult], inventory: Inventory, max_gib: float) -> list[StoredResult]:
    """So many of the oldest that the store is no larger than that."""
    if not max_gib:
        return free
    num_left, remaining = inventory.num_bytes(), dict(inventory.num_names)
    for number, result in enumerate(free):
        if num_left <= max_gib * (1 << 30):
            return free[:number]
        for file in result.files:
            remaining[file] -= 1
            num_left -= 0 if remaining[file] else inventory.sizes[file]
    return free
